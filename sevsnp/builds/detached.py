# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine that outlive the command that starts them, and end when they are stopped."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sevsnp.system import record
from sevsnp.system.command import environment

# Seconds between SIGTERM and SIGKILL.
_GRACE = 10.0


def start_detached(argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path, log: Path, lock: int) -> int:
    """Start ``argv`` in a session of its own, without a terminal, and return its process number.

    Not with sevsnp.system.command on purpose: its processes end with this one. Its standard input is ``lock``, the
    descriptor of a locked file: the lock lasts as long as the process, however it ends. It must give none of its
    children this input.
    """
    words = [str(word) for word in argv]
    told = record.starting(words, env=dict(env))
    with log.open("wb") as stream:
        # The guardian would end a process with this run's TMPDIR.
        variables = environment({**env, "TMPDIR": os.environ.get("TMPDIR", "/var/tmp")})  # noqa: S108
        process = subprocess.Popen(
            words,
            env=variables,
            cwd=cwd,
            stdin=lock,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    told.ended(None)
    process.returncode = 0  # Popen would warn at its end that the process still runs, as it should
    return process.pid


def end_marked(mark: Mapping[str, str]) -> int:
    """End every process that has the variables ``mark`` in its environment; return how many there were.

    SIGTERM, and SIGKILL after ten seconds. Found by the environment, because a child may leave its session, and the
    number of a process that has ended may be another's.
    """
    found = _marked(mark)
    deadline = time.monotonic() + _GRACE
    _signal(found, signal.SIGTERM)
    while (left := _marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    while left and time.monotonic() < deadline + _GRACE:
        _signal(left, signal.SIGKILL)
        time.sleep(0.05)
        left = _marked(mark)
    return len(found)


def _signal(processes: Sequence[int], number: signal.Signals) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _marked(mark: Mapping[str, str]) -> list[int]:
    wanted = {os.fsencode(f"{name}={value}") for name, value in mark.items()}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or it has just ended
            if wanted <= set((process / "environ").read_bytes().split(b"\0")):
                found.append(int(process.name))
    return found
