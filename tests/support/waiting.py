# SPDX-License-Identifier: Apache-2.0
"""Waiting in tests: until an event has happened, never for a number of seconds; and a clock that a test sets itself.

The duration of anything depends on the machine: with a busy loop on each core everything takes several times as long. A
test's time-out is therefore only a net for faults, far above the need of a slow machine, and no test asserts seconds
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

# Seconds after which a test gives up waiting.
NET = 120.0


def wait_until(condition: Callable[[], Thing], what: Callable[[], object] = str, net: float = NET) -> Thing:
    """Evaluate ``condition`` every 20 ms, later every 100 ms, until it holds, and return its value.

    After ``net`` seconds, raises AssertionError with the text of ``what``.
    """
    end, pause = time.monotonic() + net, 0.02
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"not in {net:.0f} s: {what() or condition}")
        time.sleep(pause)
        # Reading a guest's console takes time from the guest.
        pause = min(1.1 * pause, 0.1)
    return found


class Clock:
    """Replaces the module ``time`` in a module under test: time passes only when the test says so.

    ``slept`` are the requested pauses; none of them is made.
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
    """Processor seconds, user and system, of a command and the children that it waited for; it must succeed."""
    with subprocess.Popen(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, argv
    return used.ru_utime + used.ru_stime


def seconds_used(pid: int) -> float:
    """Processor seconds, user and system, that all threads of a running process have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime, proc_pid_stat(5)
