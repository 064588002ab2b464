# SPDX-License-Identifier: Apache-2.0
"""What is said of an external command that failed: its last words first, and the command to paste last."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.system.files import write_atomic

# More than this of a command says nothing to who reads an error; all of it, and all that it said, is kept in the file.
_SHOWN = 240
FAILED = Path(".cache") / "failed-command"


class CommandFailed(UserError):
    """A command ended with another exit code than 0; ``said`` is the end of its standard error."""

    def __init__(self, words: Sequence[str], code: int, error: bytes, hint: str = "") -> None:
        text = error.decode(errors="replace").strip()
        self.said = text[-2000:]
        name = Path(words[0]).name
        *before, last = self.said.splitlines() or [""]
        lines = [last if re.search(rf"\b{re.escape(name)}\b", last) else f"{name}: {last}"] if last else []
        lines += ["before that:", *(f"  {line}" for line in before)] if before else []
        super().__init__("\n".join([*lines, f"exit code {code} from: {shown(words, text)}"]), hint)


def shown(words: Sequence[str], said: str = "") -> str:
    """A command as one pastes it; of a long one both ends, and the name of the file that has all of it.

    With what it ``said``, its whole standard error.
    """
    command = shlex.join(words)
    if len(command) <= _SHOWN:
        return command
    try:
        if not FAILED.parent.is_dir():
            return command
        write_atomic(FAILED, f"{command}\n\n{said}\n", 0o600)
    except OSError:
        return command  # full, or somebody else's
    return f"{command[: 2 * _SHOWN // 3]} … {command[-_SHOWN // 3 :]}   (in full: {FAILED})"
