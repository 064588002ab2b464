# SPDX-License-Identifier: Apache-2.0
"""A detached run whose guest is no more than its files: the tasks speaks and silent, as its console is."""

from pathlib import Path

import pytest

from tests.conftest import PROJECT

DODO = """
import os
import time
from pathlib import Path

from sevsnp.host.state import Run, held

def work(line):
    state = Path(os.environ["GUEST_STATE"])
    with held(state, Run("verity", "emulated", "none", 1, 2), ""):
        (state / "new").write_text(line)
        (state / "new").rename(state / "serial.log")
        time.sleep(600)

def task_speaks():
    return {"actions": [(work, ["a line"])]}

def task_silent():
    return {"actions": [(work, [""])]}
"""


def pretended(directory: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to ``directory``, where doit then has these tasks; the guest's state directory is ``state``."""
    (directory / "dodo.py").write_text(DODO)
    monkeypatch.chdir(directory)
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("GUEST_STATE", str(state))
