# SPDX-License-Identifier: Apache-2.0
"""What is said of an external command that failed: its last words first, and the command to paste last."""

import errno
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.system.files import disks
from sevsnp.system.text import printable

# More than this of a command says nothing to who reads an error; all of it is in the file with all that it said.
_SHOWN = 240
_TAIL = 2000


class CommandFailed(UserError):
    """A command ended with another exit code than 0; ``said`` is the end of its standard error.

    Where that is empty, of its ``output``: some say there what is wrong (e2fsck). ``kept`` is the file that has all.
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
    """A command as one pastes it, and the file that has all that it said; of a long one, which is there, both ends."""
    command = shlex.join(words)
    if kept is None:
        return command
    if len(command) > _SHOWN:
        command = f"{command[: 2 * _SHOWN // 3]} … {command[-_SHOWN // 3 :]}"
    return f"{command}\nwhole output: {kept}"


def check_room(words: Sequence[str], temporary: str, said: bytes, kept: Path | None = None) -> None:
    """Raises UserError where a command has probably failed for want of room: tools have many words for it, or none."""
    found = disks([*words, temporary])
    full = [str(disk) for disk, is_full in found.items() if is_full]
    if not full and os.strerror(errno.ENOSPC).encode() in said:
        full = [str(disk) for disk in found]  # it has tidied up behind itself
    if full:
        raise UserError(
            f"{' or '.join(full)}: cannot be written: the disk is full\nin: {shown(words, kept)}",
            f"see: df -h {shlex.join(full)}",
        )


def _text(output: bytes) -> str:
    """The end of what is text."""
    end = output.strip()[-_TAIL:]
    return "" if b"\0" in end else printable(end.decode(errors="replace"), "\n\t")
