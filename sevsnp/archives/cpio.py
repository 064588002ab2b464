# SPDX-License-Identifier: Apache-2.0
"""The newc cpio archives that the kernel unpacks as initramfs (Documentation/driver-api/early-userspace/buffer-format).

Entries are written in the given order with zero times, fixed inode numbers and numeric owners, so that equal content
gives equal bytes. File contents are streamed and nothing is unpacked: owners, device nodes and modes need no privilege.
"""

import stat
from collections.abc import Iterable
from typing import BinaryIO

from sevsnp.archives.rootfs import directory_entry
from sevsnp.archives.tar import Entry, Kind
from sevsnp.errors import UserError

_TRAILER = "TRAILER!!!"
_TYPES = {
    Kind.FILE: stat.S_IFREG,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER: stat.S_IFCHR,
    Kind.BLOCK: stat.S_IFBLK,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.FIFO: stat.S_IFIFO,
}


def with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """The entries sorted by name, with missing parents; a later entry replaces an earlier one of the same name."""
    by_name = {entry.name: entry for entry in entries if entry.name}
    for name in list(by_name):
        parent = name.rpartition("/")[0]
        while parent and parent not in by_name:
            by_name[parent] = directory_entry(parent)
            parent = parent.rpartition("/")[0]
    return [by_name[name] for name in sorted(by_name)]


def write_cpio(entries: Iterable[Entry], stream: BinaryIO) -> None:
    """Write the entries, in the given order, and the trailer; padded to 512 bytes so that archives can be joined.

    Hard links become copies. Raises :class:`UserError` for a file of 4 GiB or more, which the format cannot hold.
    """
    written = 0
    for inode, entry in enumerate(entries, start=1):
        written += _write_entry(entry, inode, stream)
    trailer = _header(_TRAILER, inode=0, mode=0, links=1)
    stream.write(trailer + b"\0" * (-(written + len(trailer)) % 512))


def _header(
    name: str,
    *,
    inode: int,
    mode: int,
    links: int,
    owner: tuple[int, int] = (0, 0),
    size: int = 0,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    raw = name.encode(errors="surrogateescape") + b"\0"
    fields = (inode, mode, *owner, links, 0, size, 0, 0, *device, len(raw), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + raw
    return header + b"\0" * (-len(header) % 4)


def _write_entry(entry: Entry, inode: int, stream: BinaryIO) -> int:
    link = entry.target.encode(errors="surrogateescape")
    size = entry.content.size if entry.content else len(link)
    if size >= 1 << 32:
        raise UserError(f"{entry.name}: found {size} bytes, expected less than 4 GiB in a cpio archive")
    header = _header(
        entry.name,
        inode=inode,
        mode=_TYPES[entry.kind] | entry.mode,
        links=2 if entry.kind is Kind.DIRECTORY else 1,
        owner=(entry.uid, entry.gid),
        size=size,
        device=entry.device,
    )
    stream.write(header)
    for piece in entry.content.pieces() if entry.content else (link,):
        stream.write(piece)
    stream.write(b"\0" * (-size % 4))
    return len(header) + size + -size % 4
