# SPDX-License-Identifier: Apache-2.0
"""build/bin: the verifiers trust no file in the directory in which they are called."""

import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.commands.tools import make_tools

PROJECT = Path(__file__).resolve().parents[2]


COMMANDS = (
    "verify_report", "verify_report_emulated", "inspect_report", "measure", "idblock_generator", "sev_feature_info",
    "tcb_floors",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_the_verifiers_load_no_code_from_the_current_directory(tmp_path: Path, name: str) -> None:
    outputs = {name: tmp_path / name for name in ("get_report", "get_report_emulated", *COMMANDS)}
    make_tools(
        get_report_source=PROJECT / "initramfs" / "get_report.py",
        emulated_provider=PROJECT / "initramfs" / "emulated" / "emulated_provider.py",
        project=str(PROJECT),
        python=sys.executable,
        **outputs,
    )
    hostile = tmp_path / "evidence"
    hostile.mkdir()
    (hostile / "argparse.py").write_text("print('PWNED')\nraise SystemExit(0)\n")
    text = outputs[name].read_text()
    assert " -P " in text
    done = subprocess.run([outputs[name], "--help"], cwd=hostile, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "PWNED" not in done.stdout and "usage:" in done.stdout
    # Control: without -P the host's file is the one that runs.
    outputs[name].write_text(text.replace(" -P ", " "))
    done = subprocess.run([outputs[name], "--help"], cwd=hostile, capture_output=True, text=True, timeout=60)
    assert done.stdout == "PWNED\n"
