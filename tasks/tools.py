"""The command-line tools: the guest's get_report, the verifiers and what goes with them."""

import sys
from pathlib import Path

from sevsnp.tools import MODULES
from tasks.graph import Task, artefact
from tasks.project import BUILD

BIN = BUILD / "bin"


def task_build_tools() -> Task:
    """Make build/bin: get_report for any guest, the verifiers, measure, idblock-generator and more"""
    return artefact(
        "sevsnp.tools:make_tools",
        inputs={"get_report_source": Path("initramfs/get_report.py")},
        outputs={"get_report": BIN / "get_report", **{name.replace("-", "_"): BIN / name for name in MODULES}},
        params={"project": str(Path.cwd()), "python": sys.executable},
        cached=False,  # they name this directory
    )
