# SPDX-License-Identifier: Apache-2.0
"""Puts a finished output in its place.

A user's files in a tree, such as the disk of a guest that ran from a host bundle, exist nowhere else. They are never
moved: only what is beside them is replaced. So they are in their place whatever fails, and if the process is killed.
"""

import os
import shlex
import stat
from collections.abc import Collection, Sequence
from pathlib import Path

from sevsnp.errors import UserError


def users(tree: Path, ignored: Collection[str], own: Collection[str]) -> list[str]:
    """The names at the top of ``tree`` that a build or a clean must leave: sorted; none if it is no directory.

    These are the names in ``ignored`` and, in a tree that has such names, each directory that is not in ``own``.
    """
    if not ignored or not _is_directory(tree):
        return []
    return sorted(
        entry.name for entry in tree.iterdir() if entry.name in ignored or (entry.name not in own and entry.is_dir())
    )


def check_users(tree: Path, ignored: Sequence[str], own: Collection[str]) -> None:
    """Raise UserError if a user's directory in ``tree`` would be part of it: one that has no name in ``ignored``.

    The last of ``ignored`` is the directory that takes it.
    """
    others = [name for name in users(tree, ignored, own) if name not in ignored]
    if others:
        place = shlex.quote(str(tree / ignored[-1]))
        moved = shlex.join(str(tree / name) for name in others)
        raise UserError(
            f"{tree}: found {', '.join(others)}, expected no directory that was not built: a build would remove it",
            f"keep it in a directory that builds leave alone: mkdir -p {place} && mv {moved} {place}",
        )


def put(made: Path, path: Path, ignored: Collection[str] = (), own: Collection[str] = ()) -> None:
    """Move ``made``, a file or a directory, to ``path``; what is there goes into the directory of ``made``.

    The user's files (:func:`users`) in a directory at ``path`` stay there. If this fails, what was at ``path`` is put
    back. Raises OSError.
    """
    aside = made.with_name(f"{made.name}.old")
    if _is_directory(made) and (stay := users(path, ignored, own)):
        _exchange(made, path, aside, stay)
    elif _is_directory(path) or (_is_directory(made) and (path.exists() or path.is_symlink())):
        # A directory cannot be replaced in one step: there is no directory at this path for an instant.
        try:
            path.rename(aside)
            made.rename(path)
        except BaseException:
            if os.path.lexists(aside):
                aside.rename(path)
            raise
    else:
        made.replace(path)


def _exchange(made: Path, path: Path, aside: Path, stay: Collection[str]) -> None:
    """Replace what is in the directory ``path``, except the names in ``stay``."""
    aside.mkdir()
    emptied = False
    try:
        _move(path, aside, stay)
        emptied = True
        _move(made, path, stay)
        if _mode(path) != _mode(made):
            path.chmod(_mode(made))
    except BaseException:
        if emptied:
            _move(path, made, stay)
        _move(aside, path, stay)
        raise


def _move(source: Path, target: Path, stay: Collection[str]) -> None:
    for entry in sorted(source.iterdir()):
        if entry.name not in stay:
            entry.rename(target / entry.name)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
