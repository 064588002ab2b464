# SPDX-License-Identifier: Apache-2.0
"""Change an unpacked source tree as a table says: texts that must be there exactly once are replaced or taken out.

The table is templates/firmware/changes.yaml, which describes its own form. In another version of the source a text may
be missing or there twice: then nothing is built, and the message names the file and the text.
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from sevsnp.errors import UserError
from sevsnp.system.yaml_loader import load


class Change(Protocol):
    """One entry of the table, checked."""

    def apply(self, tree: Path) -> None:
        """Change the files of ``tree``. Raises :class:`UserError` if one is not as the table expects it."""
        ...


@dataclass(frozen=True)
class Added:
    """The files of ``directory`` become the new directory ``place`` of the tree."""

    directory: Path
    place: PurePosixPath

    def apply(self, tree: Path) -> None:
        target = tree / self.place
        if target.exists():
            raise UserError(f"{self.place}: exists in the source, expected a new directory")
        target.mkdir(parents=True)
        for file in sorted(self.directory.iterdir()):
            shutil.copyfile(file, target / file.name)


@dataclass(frozen=True)
class Lines:
    """Lines that are taken out of ``file``; one that ends in ``{`` with all up to its ``}``."""

    file: PurePosixPath
    lines: tuple[str, ...]

    def apply(self, tree: Path) -> None:
        with _Edited(tree, self.file) as edited:
            for line in self.lines:
                edited.take_out(line)


@dataclass(frozen=True)
class Replaced:
    """Text that is replaced in ``file``: ``old``, with everything up to ``until`` if that is not empty."""

    file: PurePosixPath
    old: str
    until: str
    new: str

    def apply(self, tree: Path) -> None:
        with _Edited(tree, self.file) as edited:
            edited.replace(self.old, self.until, self.new)


class _Edited:
    """The text of one file of the tree. It is written back unless an error ends the context."""

    def __init__(self, tree: Path, file: PurePosixPath) -> None:
        self._path, self._file = tree / file, file

    def __enter__(self) -> "_Edited":
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise UserError(f"{self._file}: {error.strerror}: the table is for another source") from error
        # The source has files with either end of line. Latin-1 keeps every byte.
        self._end = "\r\n" if b"\r\n" in data else "\n"
        self._text = data.decode("latin-1").replace("\r\n", "\n")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._path.write_bytes(self._text.replace("\n", self._end).encode("latin-1"))

    def replace(self, old: str, until: str, new: str) -> None:
        start = self._find(old, 0, "")
        end = start + len(old)
        if until:
            end = self._find(until, end, f" after {_shown(old)}")
        self._text = self._text[:start] + new + self._text[end:]

    def take_out(self, line: str) -> None:
        pattern = re.compile(rf"^[ \t]*{re.escape(line)}[ \t]*$\n?", re.MULTILINE)
        found = [match.span() for match in pattern.finditer(self._text)]
        start, end = found[0] if len(found) == 1 else self._refuse(line, len(found), "")
        if line.endswith("{"):
            depth = 1
            while depth and end < len(self._text):
                depth += {"{": 1, "}": -1}.get(self._text[end], 0)
                end += 1
            if depth:
                raise UserError(f"{self._file}: {line}: found no }} that ends the block")
        self._text = self._text[:start] + self._text[end:]

    def _find(self, text: str, start: int, where: str) -> int:
        if (count := self._text.count(text, start)) != 1:
            self._refuse(text, count, where)
        return self._text.index(text, start)

    def _refuse(self, text: str, count: int, where: str) -> "tuple[int, int]":
        raise UserError(f"{self._file}: found {count} times{where}, expected once: {_shown(text)}")


def _shown(text: str) -> str:
    return repr(" ".join(text.split())[:80])


def read_changes(file: Path) -> tuple[Change, ...]:
    """The table in ``file``. Raises :class:`UserError` naming the entry with an unknown, missing or wrong value."""
    document = load(file, "a table of changes")
    if not isinstance(document, list) or not document:
        raise UserError(f"{file}: found a {type(document).__name__}, expected a list of changes")
    return tuple(_change(entry, file.parent, f"{file}: entry {number}") for number, entry in enumerate(document, 1))


# The keys of each kind of entry, by the key that tells the kind; those with a question mark may be left away.
_KINDS: Mapping[str, tuple[str, ...]] = {
    "add": ("add", "as"),
    "lines": ("file", "lines"),
    "old": ("file", "old", "new?"),
    "from": ("file", "from", "until", "new?"),
}


def _change(entry: Any, directory: Path, where: str) -> Change:
    kind = next((name for name in _KINDS if isinstance(entry, dict) and name in entry), None)
    if kind is None:
        raise UserError(f"{where}: expected one of {', '.join(_KINDS)}")
    allowed = _KINDS[kind]
    for key in entry:
        if key not in allowed and f"{key}?" not in allowed:
            raise UserError(f"{where}: unknown key {key!r}", f"known: {', '.join(allowed)}")
    for key in allowed:
        if key.endswith("?"):
            entry.setdefault(key[:-1], "")
        elif not _is_text(entry.get(key)) and key != "lines":
            raise UserError(f"{where}: {key}: found {entry.get(key)!r}, expected a text")
    if kind == "add":
        source = directory / _inside(entry["add"], where)
        if not source.is_dir():
            raise UserError(f"{where}: add: {source}: no such directory")
        return Added(source, _inside(entry["as"], where))
    place = _inside(entry["file"], where)
    if kind == "lines":
        return Lines(place, _lines(entry["lines"], where))
    if not isinstance(entry["new"], str):
        raise UserError(f"{where}: new: found {entry['new']!r}, expected a text")
    return Replaced(place, entry[kind], entry.get("until", ""), entry["new"])


def _lines(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(map(_is_text, value)):
        raise UserError(f"{where}: lines: found {value!r}, expected a list of lines")
    return tuple(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _inside(text: str, where: str) -> PurePosixPath:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{where}: found {text!r}, expected a path below the source")
    return path


def apply_changes(changes: Sequence[Change], tree: Path) -> None:
    """Apply ``changes`` to ``tree`` in their order. Raises :class:`UserError` for a tree that is not as expected."""
    for change in changes:
        change.apply(tree)
