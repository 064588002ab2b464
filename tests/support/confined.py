# SPDX-License-Identifier: Apache-2.0
"""Starts QEMU for a moment, to see which files it opens, or its error if it may not open them."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from sevsnp.errors import UserError
from sevsnp.qemu.confine import Access
from sevsnp.qemu.process import start, stop
from sevsnp.qemu.qmp import Qmp
from sevsnp.system.files import short_name

T = TypeVar("T")
SECONDS = 120.0


@contextlib.contextmanager
def up(
    qemu: Path, arguments: list[str], access: Access, machine: str = "none"
) -> Iterator[tuple["subprocess.Popen[bytes] | None", str]]:
    """A QEMU that has opened all its files and waits; or None and its messages, if it has ended."""
    with tempfile.TemporaryDirectory(prefix="sevsnp-") as name, short_name(Path(name)) as short:
        work = Path(name)
        words = ["-machine", machine, "-nodefaults", "-no-user-config", "-display", "none", "-S", *arguments]
        words += ["-qmp", f"unix:{short}/qmp,server=on,wait=off"]
        given = access._replace(scratch=(*access.scratch, name))
        process = start(qemu, words, given, terminal=False, messages=work / "said", sockets=short)
        try:
            try:
                with Qmp(short / "qmp", timeout=SECONDS, alive=lambda: process.poll() is None):
                    pass
            except UserError:
                process.wait(SECONDS)
                yield None, (work / "said").read_text()
            else:
                yield process, (work / "said").read_text()
        finally:
            stop(process)


def opened_by(qemu: Path, arguments: list[str], access: Access) -> tuple[list[str], str]:
    """The files that QEMU has open once it is up (none if it has ended), and its messages."""
    with up(qemu, arguments, access) as (process, said):
        return files_of(process.pid) if process else [], said


def files_of(pid: int) -> list[str]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(os.readlink(link))
    return found


def qemus_with(word: str) -> list[int]:
    """The processes that are, or are about to become, a QEMU with ``word`` in its options."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().decode(errors="replace")
                if word in words and "\0-sandbox\0" in words:
                    found.append(int(path.name))
    return found
