# SPDX-License-Identifier: Apache-2.0
"""A root file system as an editable tree of entries. Paths are followed as the guest itself would follow them."""

from collections.abc import Iterable
from dataclasses import replace

from sevsnp.archives.links import follow
from sevsnp.archives.rootfs import EPOCH, directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Entry, Kind, without_security
from sevsnp.errors import UserError

_SMALL = 16 << 20


class Tree:
    """Entries by name. A given path may lead through symbolic links; a new entry is made at the path's real place."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.entries = {entry.name: entry for entry in entries}

    def ordered(self) -> list[Entry]:
        """All entries, a directory before its content."""
        return [entry for _, entry in sorted(self.entries.items(), key=lambda item: item[0].split("/"))]

    def find(self, path: str) -> Entry | None:
        """The entry at ``path`` with all links followed; None if there is none."""
        return self.entries.get(self._real(path, last=True))

    def at(self, path: str) -> Entry | None:
        """The entry at ``path``, where the last name may be a link; None if there is none."""
        return self.entries.get(self._real(path, last=False))

    def has(self, path: str) -> bool:
        """Whether there is an entry at ``path``, even a dangling link."""
        return self._real(path, last=False) in self.entries

    def names(self, directory: str) -> list[str]:
        """The names directly in a directory; none if there is no directory."""
        prefix = f"{self._real(directory, last=True)}/".lstrip("/")
        return sorted(
            n.removeprefix(prefix) for n in self.entries if n.startswith(prefix) and "/" not in n[len(prefix) :]
        )

    def text(self, path: str) -> str:
        """A small file's content; empty if there is no file. Bytes that are not UTF-8 survive a write."""
        entry = self.find(path)
        if entry is None or entry.content is None:
            return ""
        if entry.content.size > _SMALL:  # by its name in the image: its archive may be a file that is already removed
            raise UserError(f"/{entry.name}: a text file of {entry.content.size} bytes, expected at most {_SMALL}")
        return entry.content.read(_SMALL).decode("utf-8", "surrogateescape")

    def write(self, path: str, text: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """Write a file; an existing file keeps its owner, mode and name, and loses its hard links."""
        data = text.encode("utf-8", "surrogateescape")
        old = self.find(path)
        if old is not None and old.kind is Kind.FILE:
            new = text_entry(old.name, data)
            self.entries[old.name] = replace(without_security(old), content=new.content, mtime=EPOCH)
            return
        name = self._place(path)
        self.entries[name] = text_entry(name, data, mode, uid, gid)

    def append(self, path: str, line: str, mode: int = 0o644) -> None:
        """Add a line to a file, which is made with ``mode`` if there is none."""
        text = self.text(path)
        self.write(path, f"{text}{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n", mode)

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link; it replaces an existing file."""
        name = self._place(path)
        self.entries[name] = link_entry(name, target)

    def directory(self, path: str, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Make a directory; an existing directory stays as it is."""
        entry = self.find(path)
        if entry is None or entry.kind is not Kind.DIRECTORY:
            name = self._place(path)
            self.entries[name] = directory_entry(name, mode, uid, gid)

    def remove(self, path: str) -> None:
        """Remove a file or a link."""
        del self.entries[self._real(path, last=False)]

    def clear(self, path: str) -> None:
        """Remove a directory with its content; does nothing if there is none."""
        name = self._real(path, last=True)
        self.entries = {n: entry for n, entry in self.entries.items() if n != name and not n.startswith(f"{name}/")}

    def add(self, entry: Entry) -> None:
        """Add an entry of another tree, under its name here."""
        name = self._place(entry.name)
        self.entries[name] = replace(entry, name=name)

    def _place(self, path: str) -> str:
        """The real name of ``path`` for a new entry; makes its directories.

        Raises UserError if it leads through a file.
        """
        above, _, last = path.strip("/").rpartition("/")
        if above:
            real = self._real(above, last=True)
            entry = self.entries.get(real)
            if entry is None:
                self.directory(real)
            elif entry.kind is not Kind.DIRECTORY:
                raise UserError(f"/{above}: found a {entry.kind.name.lower()} in the image, expected a directory")
            above = self._real(above, last=True)
        return f"{above}/{last}".lstrip("/")

    def _real(self, path: str, *, last: bool) -> str:
        """``path`` without links (the last name's only if ``last``). A missing file has the name it would get."""
        try:
            return follow(path, self._target, last=last)
        except OSError:
            raise UserError(f"/{path}: the symbolic links form a loop") from None

    def _target(self, name: str) -> str | None:
        entry = self.entries.get(name)
        return entry.target if entry is not None and entry.kind is Kind.SYMLINK else None
