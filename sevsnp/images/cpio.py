"""The newc cpio archives that the kernel unpacks as initramfs (Documentation/driver-api/early-userspace/buffer-format).

Written in sorted order with zero times, fixed inode numbers and numeric owners, so that equal content gives equal
bytes. File contents are copied from streams: owners, device nodes and modes need no privilege, and nothing is unpacked.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sevsnp.errors import UserError
from sevsnp.files import CHUNK

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Content:
    """``size`` bytes of a file at ``offset``; read when the entry is written."""

    path: Path
    offset: int
    size: int


@dataclass(frozen=True)
class Entry:
    """One archive member. ``mode`` holds type and permissions; ``data`` is a symlink's target or small content."""

    name: str
    mode: int
    data: bytes | Content = b""
    uid: int = 0
    gid: int = 0
    device: tuple[int, int] = (0, 0)

    @property
    def size(self) -> int:
        return self.data.size if isinstance(self.data, Content) else len(self.data)


def directory(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, stat.S_IFDIR | mode)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def regular(name: str, data: bytes | Content, mode: int = 0o644) -> Entry:
    return Entry(name, stat.S_IFREG | mode, data)


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """The entries by name, a later one replacing an earlier of the same name, with missing parents as 0755 root."""
    by_name = {entry.name: entry for entry in entries}
    for name in list(by_name):
        parent = name.rpartition("/")[0]
        while parent and parent not in by_name:
            by_name[parent] = directory(parent)
            parent = parent.rpartition("/")[0]
    return [by_name[name] for name in sorted(by_name)]


def write_cpio(entries: Iterable[Entry], stream: BinaryIO) -> None:
    """Write the entries, in the given order, and the trailer; padded to 512 bytes so that archives can be joined."""
    written = 0
    for inode, entry in enumerate(entries, start=1):
        written += _write_entry(entry, inode, stream)
    written += _write_entry(Entry(_TRAILER, 0), 0, stream)
    stream.write(b"\0" * (-written % 512))


def _write_entry(entry: Entry, inode: int, stream: BinaryIO) -> int:
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        raise UserError(f"{entry.name}: found an absolute or parent path, expected a path inside the archive")
    name = entry.name.encode() + b"\0"
    if entry.size >= 1 << 32:
        raise UserError(f"{entry.name}: found {entry.size} bytes, expected less than 4 GiB in a cpio archive")
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (inode, entry.mode, entry.uid, entry.gid, links, 0, entry.size, 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    stream.write(header + b"\0" * (-len(header) % 4))
    if isinstance(entry.data, Content):
        _copy(entry.data, stream)
    else:
        stream.write(entry.data)
    stream.write(b"\0" * (-entry.size % 4))
    padded_header = len(header) + -len(header) % 4
    return padded_header + entry.size + -entry.size % 4


def _copy(content: Content, stream: BinaryIO) -> None:
    left = content.size
    with content.path.open("rb") as source:
        source.seek(content.offset)
        while left:
            piece = source.read(min(CHUNK, left))
            if not piece:
                raise UserError(f"{content.path}: ends {left} bytes early; it changed while it was read")
            stream.write(piece)
            left -= len(piece)
