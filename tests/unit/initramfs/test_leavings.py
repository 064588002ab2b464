# SPDX-License-Identifier: Apache-2.0
"""Files that the tests share in TMPDIR are removed when the tests end, in whichever process they were made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

PROJECT = Path(__file__).resolve().parents[3]
# It makes a software secure processor, as all tests of evidence do.
ONE = "tests/unit/measurement/test_id_block_launch.py::test_reports_name_the_keys_that_signed_the_id_block"
CONTROL = """
import tempfile
from tests.support import evidence


def test_leaves():
    assert evidence.scratch().is_dir()
    tempfile.mkdtemp()
"""


def left(tmp_path: Path, *words: str) -> list[Path]:
    """What a run of pytest leaves in its TMPDIR; the guardian tidies up behind a process that is killed."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'base'}", *words]
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        argv,
        cwd=PROJECT,
        env={**kept, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    wait_until(lambda: not list(temporary.glob("sevsnp*")))
    return list(temporary.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["-n0", "-n1"])
def test_shared_evidence_leaves_nothing(tmp_path: Path, processes: str) -> None:
    assert left(tmp_path, processes, ONE) == []


@pytest.mark.slow
def test_control_a_file_that_is_left_is_detected(tmp_path: Path) -> None:
    """Control for the test above."""
    (tmp_path / "test_leaving.py").write_text(CONTROL)
    assert len(left(tmp_path, "-n0", f"--rootdir={PROJECT}", str(tmp_path / "test_leaving.py"))) == 1
