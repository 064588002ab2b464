# SPDX-License-Identifier: Apache-2.0
"""Joins the layers of a container image into one tree, as a container's engine would unpack them one over the other.

Source: the OCI image specification, layer.md ("Applying changesets", "Whiteouts"). A layer is not trusted: its names
are followed inside the tree only, so no link leads out of it, and a whiteout removes nothing above its own directory.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from sevsnp.archives.links import follow
from sevsnp.archives.plain_tar import MOST_ENTRIES
from sevsnp.archives.rootfs import EPOCH
from sevsnp.archives.tar import Entry, Kind
from sevsnp.errors import UserError

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
# What AUFS kept beside the files for itself. Engines skip it.
_AUFS = ".wh..wh."


class Tree:
    """The entries of the layers so far, by their real names; ``lost`` counts attributes that were left out."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {"": Entry("", Kind.DIRECTORY, 0o755, mtime=EPOCH)}
        self.lost: Counter[str] = Counter()
        self._inside: dict[str, set[str]] = {"": set()}

    def linked(self, name: str) -> Entry | None:
        """The entry to which a later layer's hard link with the target ``name`` points; None if there is none."""
        above, _, last = name.rpartition("/")
        real = self._real(above)
        return None if real is None else self.entries.get(_join(real, last))

    def apply(self, entries: Iterable[Entry], layer: str) -> None:
        """Put a layer's entries, in their order, over the tree; its whiteouts come first, and concern the tree alone.

        Raises UserError for a whiteout of no name, and for an entry below something that is not a directory.
        """
        own = []
        for entry in entries:
            name = entry.name.rpartition("/")[2]
            if any(part.startswith(_AUFS) for part in entry.name.split("/")) and name != _OPAQUE:
                continue
            if name.startswith(_WHITEOUT):
                self._hide(entry.name, layer)
            else:
                own.append(entry)
        for entry in own:
            self._put(entry, layer)
        if len(self.entries) > MOST_ENTRIES:
            raise UserError(f"{layer}: more than {MOST_ENTRIES} files in the image")

    def _hide(self, name: str, layer: str) -> None:
        above, _, last = name.rpartition("/")
        hidden = last.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise UserError(f"{layer}: entry {name!r}: a whiteout of {hidden!r}, expected the name of one file")
        directory = self._real(above)
        if directory is None:
            return  # a whiteout of what no layer has
        if last == _OPAQUE:
            for each in list(self._inside.get(directory, ())):
                self._remove(_join(directory, each))
        else:
            self._remove(_join(directory, hidden))

    def _put(self, entry: Entry, layer: str) -> None:
        if entry.attributes:
            self.lost.update(entry.attributes)
            entry = replace(entry, attributes=())
        if not entry.name:
            self.entries[""] = entry
            return
        above, _, last = entry.name.rpartition("/")
        directory = self._made(above, layer, entry.name)
        name = _join(directory, last)
        old = self.entries.get(name)
        if old is not None and (old.kind is not Kind.DIRECTORY or entry.kind is not Kind.DIRECTORY):
            self._remove(name)
        self._add(replace(entry, name=name))

    def _add(self, entry: Entry) -> None:
        above, _, last = entry.name.rpartition("/")
        self.entries[entry.name] = entry
        self._inside[above].add(last)
        if entry.kind is Kind.DIRECTORY:
            self._inside.setdefault(entry.name, set())

    def _remove(self, name: str) -> None:
        if name not in self.entries:
            return
        above, _, last = name.rpartition("/")
        self._inside[above].discard(last)
        stack = [name]
        while stack:
            each = stack.pop()
            del self.entries[each]
            stack += [_join(each, inside) for inside in self._inside.pop(each, ())]

    def _made(self, path: str, layer: str, shown: str) -> str:
        """The real name of a directory; it is made if it is missing."""
        real = self._real(path)
        if real is None:
            raise UserError(f"{layer}: entry {shown!r}: found a loop of symbolic links, expected a directory")
        missing: list[str] = []
        place = real
        while place not in self.entries:
            missing.append(place)
            place = place.rpartition("/")[0]
        if self.entries[place].kind is not Kind.DIRECTORY:
            kind = self.entries[place].kind.name.lower()
            raise UserError(f"{layer}: entry {shown!r}: /{place}: found a {kind}, expected a directory")
        for name in reversed(missing):
            self._add(Entry(name, Kind.DIRECTORY, 0o755, mtime=EPOCH))
        return real

    def _real(self, path: str) -> str | None:
        """``path`` with all links followed inside the tree; None for a loop of links."""
        try:
            return follow(path, self._target)
        except OSError:
            return None

    def _target(self, name: str) -> str | None:
        entry = self.entries.get(name)
        return entry.target if entry is not None and entry.kind is Kind.SYMLINK else None


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name
