# SPDX-License-Identifier: Apache-2.0
"""Downloads that are kept by content in one directory, bounded: those that were not used for longest go first."""

import contextlib
import os
from pathlib import Path

from sevsnp.system.files import remove_tree
from sevsnp.system.locks import locked, locked_if_free

_LOCK = ".lock"


def in_use(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Nothing is removed from the directory while the context lasts."""
    return locked(directory / _LOCK, shared=True)


def note_use(path: Path) -> None:
    """A file's modification time is its last use."""
    with contextlib.suppress(OSError):  # a cache that is read only
        os.utime(path)


def prune(directory: Path, limit: int) -> int:
    """Remove files until the rest takes at most ``limit`` bytes; returns how many. 0 if another run uses them."""
    with locked_if_free(directory / _LOCK) as free:
        if not free:
            return 0
        files = []
        for path in directory.iterdir():
            if path.name.startswith(".") and path.name != _LOCK:
                remove_tree(path)  # what a killed run left
            elif path.name != _LOCK:
                files.append((path.stat(), path))
        total = removed = 0
        for status, path in sorted(files, key=lambda each: each[0].st_mtime_ns, reverse=True):
            total += status.st_blocks * 512
            if total > limit:
                path.unlink(missing_ok=True)
                removed += 1
        return removed
