# SPDX-License-Identifier: Apache-2.0
"""The command-line tools: the guest's get_report, the verifiers, and the tools for reference values."""

import sys
from pathlib import Path

from tasks.graph import Task, artefact
from tasks.project import BUILD

BIN = BUILD / "bin"
_NAMES = (
    "get_report", "get_report_emulated", "verify_report", "verify_report_emulated", "inspect_report", "measure",
    "idblock-generator", "sev-feature-info", "tcb-floors",
)  # fmt: skip


def task_build_tools() -> Task:
    """Make build/bin: get_report, the verifiers, measure, idblock-generator

    Writes the commands: get_report for the guest, verify_report and inspect_report for its evidence, measure and
    idblock-generator for reference values, sev-feature-info for a host, tcb-floors for a policy. docs/commands.md says
    how each is called.

    Next: build/bin/verify_report --help
    """
    return artefact(
        "sevsnp.commands.tools:make_tools",
        inputs={
            "get_report_source": Path("initramfs/get_report.py"),
            "emulated_provider": Path("initramfs/emulated/emulated_provider.py"),
        },
        outputs={name.replace("-", "_"): BIN / name for name in _NAMES},
        params={"project": str(Path.cwd()), "python": sys.executable},
        cached=False,  # they contain the path of this directory
    )
