# SPDX-License-Identifier: Apache-2.0
"""A killed test run leaves none of its own long-running processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
RUN = """
import subprocess, sys
from tests.support.processes import ends_with_us
words = ["sleep", "300"]
process = subprocess.Popen(ends_with_us(*words) if sys.argv[1] == "with" else words, start_new_session=True)
print(process.pid, flush=True)
process.wait()
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("how", "ends"), [("with", True), ("without", False)])
def test_a_process_of_a_test_ends_with_the_test_run(how: str, ends: bool) -> None:
    """The second case is the control."""
    with subprocess.Popen([sys.executable, "-c", RUN, how], cwd=PROJECT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        started = int(run.stdout.readline())
        try:
            while b"sleep" not in Path(f"/proc/{started}/cmdline").read_bytes().split(b"\0")[0]:
                time.sleep(0.01)
            run.kill()
            run.wait()
            deadline = time.monotonic() + (60 if ends else 1)
            while alive(started) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert alive(started) is not ends
        finally:
            if alive(started):
                os.kill(started, signal.SIGKILL)
