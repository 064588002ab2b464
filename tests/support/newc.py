# SPDX-License-Identifier: Apache-2.0
"""A reader of newc archives for tests. It follows the kernel's reader (init/initramfs.c), not our writer."""

import io
from dataclasses import dataclass

import zstandard

_HEADER = 110
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True)
class Member:
    """One archive member, with every header field that the kernel reads."""

    name: str
    data: bytes
    inode: int
    mode: int
    uid: int
    gid: int
    links: int
    mtime: int
    device: tuple[int, int]


def read_newc(data: bytes) -> list[Member]:
    """The members of one archive or of several joined ones; zeros between them are skipped."""
    members: list[Member] = []
    place = 0
    while place < len(data):
        if data[place] == 0:
            place += 1
            continue
        assert place % 4 == 0, f"a header at {place}, where the kernel finds none"
        header = data[place : place + _HEADER]
        assert header[:6] == b"070701", header[:6]
        fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        inode, mode, uid, gid, links, mtime, size, _, _, major, minor, name_size, check = fields
        assert check == 0
        name = data[place + _HEADER : place + _HEADER + name_size]
        assert name.endswith(b"\0") and b"\0" not in name[:-1]
        start = (place + _HEADER + name_size + 3) & ~3
        content = data[start : start + size]
        assert len(content) == size, "the archive ends early"
        place = (start + size + 3) & ~3
        assert not any(data[start + size : place])
        if name == b"TRAILER!!!\0":
            assert size == 0
            continue
        members.append(Member(name[:-1].decode(), content, inode, mode, uid, gid, links, mtime, (major, minor)))
    return members


def read_joined(data: bytes) -> list[list[Member]]:
    """The archives of a joined initramfs. Each is decompressed separately, from where the one before it ends."""
    archives: list[list[Member]] = []
    while data := data.lstrip(b"\0"):
        assert data.startswith(_ZSTD), data[:4]
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        plain = io.BytesIO()
        plain.write(decompressor.decompress(data))
        assert decompressor.eof, "a compressed archive ends early"
        archives.append(read_newc(plain.getvalue()))
        data = decompressor.unused_data
    return archives
