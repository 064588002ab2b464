# SPDX-License-Identifier: Apache-2.0
"""A command with a terminal for its standard output and standard error."""

import contextlib
import os
import pty
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.processes import ends_with_us
from tests.support.waiting import NET


def on_pty(argv: Sequence[str], cwd: Path, **environment: str) -> tuple[int, str]:
    """The exit code and terminal output of ``argv``; ``environment`` replaces the terminal variables of this run."""
    kept: Mapping[str, str] = {name: text for name, text in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ends_with_us("timeout", str(NET), *argv), cwd=cwd, env={**kept, **environment},
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # the error means the end of a terminal's output
        while piece := os.read(ours, 1 << 16):
            written += piece
    os.close(ours)
    return process.wait(NET), written.decode()


def typed_password(argv: list[str], password: str) -> tuple[int, bytes]:
    """Exit code of ``argv`` in a session on a terminal of its own, where ``password`` is typed; what that showed."""
    pid, terminal = pty.fork()
    if pid == 0:  # what runs on the new terminal
        os.execv(argv[0], argv)
    shown = b""
    try:
        while b"Password of" not in shown:
            shown += os.read(terminal, 1024)
        os.write(terminal, password.encode() + b"\n")
        while piece := os.read(terminal, 1024):
            shown += piece
    except OSError:  # the end of a terminal
        pass
    finally:
        os.close(terminal)
        _, ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended), shown
