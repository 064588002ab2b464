# SPDX-License-Identifier: Apache-2.0
"""The record of what `prepare_host` changed on a machine, which `prepare_host --undo` reads.

It is written before the changes are made, so a run that was interrupted can be undone, too.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.system.files import each_key_once

RECORD = "var/lib/openend2e-sevsnp/prepare_host.json"
FORMAT = 1


@dataclass(frozen=True)
class Changes:
    """``files``: SHA-256 of what was written, by path below /. ``packages`` and ``users``: which were added.

    ``upgraded``: the earlier version of each package that was there before.
    """

    files: dict[str, str]
    packages: tuple[str, ...] = ()
    upgraded: dict[str, str] = field(default_factory=dict)
    users: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.files or self.packages or self.upgraded or self.users)

    def plus(
        self, *, files: dict[str, str], packages: Iterable[str], upgraded: dict[str, str], users: Iterable[str]
    ) -> "Changes":
        """These changes and later ones; ``files`` has texts. Of two earlier versions, the first is the one to keep."""
        return Changes(
            {**self.files, **{path: digest(text.encode()) for path, text in files.items()}},
            tuple(dict.fromkeys((*self.packages, *packages))),
            {**{name: old for name, old in upgraded.items() if name not in self.packages}, **self.upgraded},
            tuple(dict.fromkeys((*self.users, *users))),
        )

    def text(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def digest(data: bytes) -> str:
    """SHA-256 as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def read_changes(root: Path) -> Changes:
    """The record below ``root``; nothing was changed if there is none. Raises :class:`UserError` for a damaged one."""
    path = root / RECORD
    try:
        found = json.loads(path.read_bytes(), object_pairs_hook=each_key_once)
        if found.pop("format") != FORMAT:
            raise ValueError(f"format: expected {FORMAT}")
        changes = Changes(
            dict(found["files"]), tuple(found["packages"]), dict(found["upgraded"]), tuple(found["users"])
        )
        texts = (*changes.files.values(), *changes.packages, *changes.upgraded.values(), *changes.users)
        if not all(isinstance(one, str) for one in texts):
            raise ValueError("expected texts")
        return changes
    except FileNotFoundError:
        return Changes({})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: not a record of prepare_host: {error}",
            "undo by hand what prepare_host has written (docs/hardware.md), and then remove this file",
        ) from None
