# SPDX-License-Identifier: Apache-2.0
"""What tests wait with: until a thing has happened, never for so many seconds; and a clock that a test sets itself.

How long anything takes is the machine's affair: with a busy loop on each core all of it takes several times as long. So
a time-out of a test is a net for a fault, far above what a slow machine needs, and no test asserts seconds
(tests/unit/project/test_no_wall_clock.py).
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Thing = TypeVar("Thing")

# Seconds after which a test gives up what does not happen.
NET = 120.0


def wait_until(condition: Callable[[], Thing], what: Callable[[], object] = str, net: float = NET) -> Thing:
    """Ask for ``condition`` every 20 ms, later every 100 ms, until it holds, and return what it gave.

    Raises AssertionError with what ``what`` says after ``net`` seconds.
    """
    end, pause = time.monotonic() + net, 0.02
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not in {net:.0f} s: {what() or condition}")
        time.sleep(pause)
        # To read a guest's console takes time that the guest lacks.
        pause = min(1.1 * pause, 0.1)
    return found


class Clock:
    """In place of the module ``time`` in a module under test: its seconds pass when the test says so.

    ``slept`` are the pauses that were asked for; none of them is made.
    """

    def __init__(self) -> None:
        self._now = 1000.0
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def monotonic(self) -> float:
        with self._lock:
            return self._now

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._now += seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)


def cpu_seconds(argv: Sequence[str | Path], cwd: Path, env: Mapping[str, str] | None = None) -> float:
    """Processor seconds, user and system, that a command and what it waited for took; it must succeed."""
    with subprocess.Popen(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, argv
    return used.ru_utime + used.ru_stime
