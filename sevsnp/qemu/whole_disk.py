# SPDX-License-Identifier: Apache-2.0
"""Refuses disk images that were cut short, as by half a download: what is missing would be read as zeros.

Only the image's own tables are read, by this program: no cluster that they name may begin behind the file's end. A
last cluster may be short, since QEMU does not write what it knows to be zero.
"""

import array
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sevsnp.errors import UserError
from sevsnp.qemu.disk_format import DiskFormat

AGAIN = "download or copy it again, and compare its digest with its author's"
# QEMU docs/interop/qcow2: bits of a table's entry.
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED, _ZERO = 1 << 62, 1
_EXTENDED_L2 = 1 << 4
_LARGEST_L1 = 32 << 20  # bytes; QEMU's own limit
_PROTECTIVE = 0xEE
_LARGEST_TABLE = 1 << 20


def check_not_cut(path: Path, form: DiskFormat) -> None:
    """Raises UserError if a raw disk ends before its partition table says, or a qcow2 before its clusters do."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if form is DiskFormat.QCOW2:
                end = max(_clusters(stream, size), default=0)
                if end >= size:
                    raise UserError(
                        f"IMAGE={path}: cut short: it has {size} bytes, and data that begin at byte {end}", AGAIN
                    )
            elif form is DiskFormat.RAW and (end := max(_partitions(stream), default=0)) > size:
                raise UserError(
                    f"IMAGE={path}: ends before its partition table says: it has {size} bytes, expected {end}", AGAIN
                )
    except OSError as error:
        raise UserError(f"IMAGE={path}: cannot be read: {error.strerror or error}") from error
    except struct.error:
        raise UserError(f"IMAGE={path}: cut short: it ends within its own tables", AGAIN) from None


def _clusters(stream: BinaryIO, size: int) -> Iterator[int]:
    """Where tables and data of a qcow2 begin, in bytes: the largest place of each table."""
    stream.seek(0)
    header = stream.read(104).ljust(104, b"\0")
    version, bits, entries, level1 = struct.unpack(">4xI12xI12xIQ", header[:48])
    features = struct.unpack(">Q", header[72:80])[0] if version >= 3 else 0
    if not 9 <= bits <= 21:
        return  # QEMU says what is wrong with it
    within = (1 << (62 - (bits - 8))) - 1
    step = 2 if features & _EXTENDED_L2 else 1
    tables = [entry & _OFFSET for entry in _words(stream, level1, min(entries * 8, _LARGEST_L1))]
    for table in filter(None, tables):
        yield table
        if table >= size:
            return
        yield max(
            entry & within if entry & _COMPRESSED else 0 if entry & _ZERO and step == 1 else entry & _OFFSET
            for entry in _words(stream, table, 1 << bits)[::step]
        )


def _words(stream: BinaryIO, place: int, length: int) -> "array.array[int]":
    """Big-endian words of 64 bits. Raises struct.error if the file ends before."""
    stream.seek(place)
    data = stream.read(length)
    if len(data) != length:
        raise struct.error("short table")
    words = array.array("Q", data)
    if sys.byteorder == "little":
        words.byteswap()
    return words


def _partitions(stream: BinaryIO) -> Iterator[int]:
    """Where each partition ends, in bytes; nothing for a disk without a table."""
    stream.seek(0)
    start = stream.read(4096 + 512)
    for sector in (512, 4096):
        if start[sector : sector + 8] == b"EFI PART":
            yield from _gpt(stream, start[sector : sector + 512].ljust(512, b"\0"), sector)
            return
    if start[510:512] != b"\x55\xaa" or start[0x438:0x43A] == b"\x53\xef" or start[:4] == b"XFSB":
        return
    rows = [struct.unpack_from("<B3xB3xII", start, 446 + 16 * number) for number in range(4)]
    # A boot sector without a table has program code here.
    if all(status in (0, 0x80) and (not kind or (first and count)) for status, kind, first, count in rows):
        yield from ((first + count) * 512 for _, kind, first, count in rows if kind not in (0, _PROTECTIVE))


def _gpt(stream: BinaryIO, header: bytes, sector: int) -> Iterator[int]:
    """UEFI 5.3.2 and 5.3.3: the table's first sector, number and size of its entries; each one's last sector."""
    first, count, size = struct.unpack_from("<QII", header, 72)
    if size < 128 or count * size > _LARGEST_TABLE:
        return
    stream.seek(first * sector)
    table = stream.read(count * size)
    for place in range(0, len(table) - 127, size):
        if table[place : place + 16] != bytes(16):
            yield (struct.unpack_from("<Q", table, place + 40)[0] + 1) * sector
