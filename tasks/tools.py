"""The command-line tools: the guest's get_report, and the verifiers."""

import sys
from pathlib import Path

from tasks.graph import Task, artefact
from tasks.project import BUILD

BIN = BUILD / "bin"


def task_build_tools() -> Task:
    """Make build/bin: get_report for any guest, and the verifiers"""
    return artefact(
        "sevsnp.tools:make_tools",
        inputs={"get_report_source": Path("initramfs/get_report.py")},
        outputs={name: BIN / name for name in ("get_report", "verify_report", "verify_report_emulated")},
        params={"project": str(Path.cwd()), "python": sys.executable},
        cached=False,  # they name this directory
    )
