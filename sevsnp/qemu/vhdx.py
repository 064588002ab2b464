# SPDX-License-Identifier: Apache-2.0
"""Reads the tables of a VHDX image ([MS-VHDX] 2.2.3 and 2.6): where its regions are, and its metadata."""

import struct
from collections.abc import Iterator
from typing import BinaryIO

# GUIDs in the byte order of the file. Regions: the metadata, and the block allocation table.
METADATA = bytes.fromhex("06a27c8b90479a4bb8fe575f050f886e")
BLOCKS = bytes.fromhex("6677c22d23f600429d64115e9bfd4a08")
# Items of the metadata: block size and flags, the size of the disk, its sector size, and the name of a parent.
PARAMETERS = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
DISK_SIZE = bytes.fromhex("2442a52f1bcd7648b2115dbed83bf4b8")
SECTOR_SIZE = bytes.fromhex("1dbf41816fa90947ba47f233a8faab5f")
PARENT = bytes.fromhex("2d5fd3a80bb34d45abf7d3d84834ab0c")
_REGIONS = 192 << 10
_MOST = 2047
_LARGEST = 1 << 20


def regions(stream: BinaryIO) -> "Iterator[tuple[bytes, int, int]]":
    """The GUID, place and length in bytes of each region. Raises struct.error if the file ends before."""
    for entry in _table(stream, _REGIONS, "<I", 8, 16):
        yield (entry[:16], *struct.unpack_from("<QI", entry, 16))


def items(stream: BinaryIO, metadata: int) -> "Iterator[tuple[bytes, int]]":
    """The GUID and place of each item in the metadata region that begins at ``metadata``. Raises struct.error."""
    for entry in _table(stream, metadata, "<H", 10, 32):
        yield entry[:16], metadata + struct.unpack_from("<I", entry, 16)[0]


def number(stream: BinaryIO, place: int, form: str) -> int:
    """The number at a place, of a struct ``form``. Raises struct.error."""
    stream.seek(place)
    (found,) = struct.unpack(form, stream.read(struct.calcsize(form)))
    return int(found)


def _table(stream: BinaryIO, place: int, form: str, count_at: int, header: int) -> list[bytes]:
    stream.seek(place)
    data = stream.read(_LARGEST)
    (count,) = struct.unpack_from(form, data, count_at)
    return [data[header + 32 * i : header + 32 * (i + 1)] for i in range(min(count, _MOST))]
