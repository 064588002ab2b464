# SPDX-License-Identifier: Apache-2.0
"""Reads newc cpio archives into entries, as the kernel does (init/initramfs.c); what it would skip is refused.

The archive may come from anywhere: every length is checked before it is used. Nothing is unpacked, and for a file's
content only its place is kept in memory.
"""

import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from sevsnp.archives.tar import PATH_MAX, Content, Entry, Kind, normal_name
from sevsnp.errors import UserError

MAGICS = (b"070701", b"070702")  # the second one has check sums, which the kernel does not compare
_HEADER = 110
_MOST_ENTRIES = 1_000_000
_TRAILER = "TRAILER!!!"
_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFIFO: Kind.FIFO,
}


class _Archive:
    """One archive that begins at byte ``start`` of the file ``path``; messages call the file ``shown``."""

    def __init__(self, path: Path, stream: BinaryIO, start: int, shown: Path) -> None:
        self.path, self._stream, self._start, self._shown = path, stream, start, shown
        self.end = start
        self._size = stream.seek(0, 2)

    def refused(self, what: str) -> UserError:
        return UserError(f"{self._shown}: damaged cpio archive: byte {self.end}: {what}")

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        self.skip(size)
        self._stream.seek(self.end - size)
        return self._stream.read(size)

    def skip(self, size: int) -> None:
        if size > self._size - self.end:
            raise self.refused(f"found the file's end, expected {size} bytes")
        self.end += size

    def align(self) -> None:
        """To the next multiple of four. At the very end of a file the padding may be missing."""
        self.end = min(self.end + -(self.end - self._start) % 4, self._size)


def read_newc(path: Path, start: int = 0, shown: Path | None = None) -> tuple[list[Entry], int]:
    """The entries of the archive that begins at byte ``start`` of ``path``, in its order, and the byte after its end.

    Hard links have the same content. Messages call the file ``shown``. Raises UserError for a damaged archive, a
    name outside the root, a socket, or more than 1,000,000 entries.
    """
    entries: list[Entry] = []
    links: dict[tuple[int, int, int], list[int]] = {}
    with path.open("rb") as stream:
        archive = _Archive(path, stream, start, shown or path)
        while True:
            fields, name = _header(archive)
            inode, mode, uid, gid, count, _, size, major, minor, *device = fields[:11]
            if name == _TRAILER:
                archive.skip(size)
                archive.align()
                return entries, archive.end
            if len(entries) == _MOST_ENTRIES:
                raise archive.refused(f"more than {_MOST_ENTRIES} entries")
            entry = _entry(archive, name, mode, size, (device[0], device[1]))
            entries.append(replace(entry, uid=uid, gid=gid))
            if entry.kind is Kind.FILE and count > 1:
                same = links.setdefault((major, minor, inode), [])
                same.append(len(entries) - 1)
                _share(entries, same)


def _header(archive: _Archive) -> tuple[list[int], str]:
    """The thirteen numbers of the next header, and its name."""
    header = archive.take(_HEADER)
    if header[:6] not in MAGICS or not re.fullmatch(b"[0-9A-Fa-f]{104}", header[6:]):
        archive.end -= _HEADER
        raise archive.refused("found no header of a newc archive")
    fields = [int(header[place : place + 8], 16) for place in range(6, _HEADER, 8)]
    if not 1 < fields[11] <= PATH_MAX:
        raise archive.refused(f"found a name of {fields[11]} bytes, expected 2 to {PATH_MAX}")
    raw = archive.take(fields[11])
    if raw.find(b"\0") != len(raw) - 1:
        raise archive.refused("found a name with a zero byte inside, or without one at its end")
    archive.align()
    return fields, raw[:-1].decode(errors="surrogateescape")


def _entry(archive: _Archive, name: str, mode: int, size: int, device: tuple[int, int]) -> Entry:
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is None:
        raise archive.refused(f"found {name!r} of the type {stat.S_IFMT(mode):#o}, which no initramfs needs")
    place, target, content = archive.end, "", None
    if kind is Kind.SYMLINK:
        if size > PATH_MAX:
            raise archive.refused(f"found a link of {size} bytes, expected at most {PATH_MAX}")
        target = archive.take(size).partition(b"\0")[0].decode(errors="surrogateescape")
    else:
        archive.skip(size)
        if kind is Kind.FILE:
            content = Content(size, (f"{archive.path}:{name}", place), archive.path, place)
    archive.align()
    return Entry(
        normal_name(name, archive.path),
        kind,
        mode & 0o7777,
        target=target,
        device=device if kind in (Kind.CHARACTER, Kind.BLOCK) else (0, 0),
        content=content,
    )


def _share(entries: list[Entry], same: list[int]) -> None:
    """Give the hard links ``same`` one content: writers put the bytes into one of them, mostly into the last."""
    last = entries[same[-1]].content
    first = entries[same[0]].content
    shared = last if last and last.size else first
    for place in same:
        entries[place] = replace(entries[place], content=shared)
