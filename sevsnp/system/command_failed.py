# SPDX-License-Identifier: Apache-2.0
"""The error text for an external command that failed: its last words first, the command to paste last."""

import errno
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.system.files import disks
from sevsnp.system.text import printable

# More characters of a command do not help the reader; the file with the whole output has the whole command too.
_SHOWN = 240
_TAIL = 2000


class CommandFailed(UserError):
    """A command ended with an exit code other than 0; ``said`` is the end of its standard error.

    If that is empty, ``said`` is the end of its ``output``: some commands report errors there (e2fsck). ``kept`` is the
    file with the whole output.
    """

    def __init__(
        self,
        words: Sequence[str],
        code: int,
        error: bytes,
        hint: str = "",
        *,
        output: bytes = b"",
        kept: Path | None = None,
    ) -> None:
        self.said = error.decode(errors="replace").strip()[-_TAIL:] or _text(output)
        name = Path(words[0]).name
        *before, last = self.said.splitlines() or [""]
        lines = [last if re.search(rf"\b{re.escape(name)}\b", last) else f"{name}: {last}"] if last else []
        lines += ["before that:", *(f"  {line}" for line in before)] if before else []
        super().__init__("\n".join([*lines, f"exit code {code} from: {shown(words, kept)}"]), hint)


def shown(words: Sequence[str], kept: Path | None = None) -> str:
    """A command to paste, and the file with its whole output.

    A long command is cut in the middle if there is a file.
    """
    command = shlex.join(words)
    if kept is None:
        return command
    if len(command) > _SHOWN:
        command = f"{command[: 2 * _SHOWN // 3]} … {command[-_SHOWN // 3 :]}"
    return f"{command}\nwhole output: {kept}"


def check_room(words: Sequence[str], temporary: str, said: bytes, kept: Path | None = None) -> None:
    """Raises UserError if a command has probably failed because a disk is full. Tools do not report that uniformly."""
    found = disks([*words, temporary])
    full = [str(disk) for disk, is_full in found.items() if is_full]
    if not full and os.strerror(errno.ENOSPC).encode() in said:
        full = [str(disk) for disk in found]  # the command has removed its files
    if full:
        raise UserError(
            f"{' or '.join(full)}: cannot be written: the disk is full\nin: {shown(words, kept)}",
            f"see: df -h {shlex.join(full)}",
        )


def _text(output: bytes) -> str:
    """The end of ``output`` if that is text."""
    end = output.strip()[-_TAIL:]
    return "" if b"\0" in end else printable(end.decode(errors="replace"), "\n\t")
