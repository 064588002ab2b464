# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine that outlive the command that starts them, and end when they are stopped."""

import contextlib
import fcntl
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


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock at ``path``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def end_session(leader: int) -> None:
    """End every process of the session that ``leader`` leads: SIGTERM, and SIGKILL after ten seconds.

    The caller knows that the leader lives (by its lock), so that the number is not another process's.
    """
    deadline = time.monotonic() + _GRACE
    number = signal.SIGTERM
    while members := _members(leader):
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        if number == signal.SIGTERM:
            while _members(leader) and time.monotonic() < deadline:
                time.sleep(0.05)
            number = signal.SIGKILL
        elif time.monotonic() > deadline + _GRACE:
            return
        else:
            time.sleep(0.05)


def _members(leader: int) -> list[int]:
    """The processes of a session that still run."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            # After the name in parentheses: state, parent, group, session (proc(5)).
            state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state not in "ZX":
                found.append(int(process.name))
    return found
