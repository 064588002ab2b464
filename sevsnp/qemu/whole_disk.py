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

from sevsnp.errors import AGAIN, UserError
from sevsnp.qemu import vhdx
from sevsnp.qemu.disk_format import DiskFormat

# QEMU docs/interop/qcow2: bits of a table's entry.
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED, _ZERO = 1 << 62, 1
_EXTENDED_L2 = 1 << 4
_LARGEST_L1 = 32 << 20  # bytes; QEMU's own limit
_PROTECTIVE = 0xEE
MIB = 1 << 20
# VHDX: a table for 64 TiB, and the states of blocks that are there, wholly or in part.
_LARGEST_BAT, _PRESENT = 512 << 20, (6, 7)
# VMDK: the directory is in a footer; grains have a marker with their length; 2 TiB in grains of 4 KiB.
_AT_THE_END, _MARKED, _MOST_GRAINS = (1 << 64) - 1, 1 << 17, 1 << 29
_LARGEST_TABLE = 1 << 20


def check_not_cut(path: Path, form: DiskFormat) -> None:
    """Raises UserError if a raw disk ends before its partition table says, or another before the data that it names."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            if form in _NAMED:
                end = max(_NAMED[form](stream, size), default=0)
                if end >= size:
                    raise UserError(
                        f"IMAGE={path}: {form.name} that was cut short: it has {size} bytes, and data at byte {end}",
                        AGAIN,
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
    """Where tables and data of a qcow2 are, in bytes: the largest place of each table.

    Data that are not compressed are named by where they begin, compressed ones by where their last sector does.
    """
    stream.seek(0)
    header = stream.read(104).ljust(104, b"\0")
    version, bits, entries, level1 = struct.unpack(">4xI12xI12xIQ", header[:48])
    features = struct.unpack(">Q", header[72:80])[0] if version >= 3 else 0
    if not 9 <= bits <= 21:
        return  # QEMU says what is wrong with it
    shift = 62 - (bits - 8)
    within = (1 << shift) - 1
    step = 2 if features & _EXTENDED_L2 else 1
    tables = [entry & _OFFSET for entry in _words(stream, level1, min(entries * 8, _LARGEST_L1))]
    for table in filter(None, tables):
        yield table
        if table >= size:
            return
        yield max(
            (entry & within) // 512 * 512 + ((entry & (_COMPRESSED - 1)) >> shift) * 512
            if entry & _COMPRESSED
            else 0
            if entry & _ZERO and step == 1
            else entry & _OFFSET
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


def _grains(stream: BinaryIO, size: int) -> Iterator[int]:
    """Where the tables and the last grain of a VMDK are, in bytes (Virtual Disk Format 1.1)."""
    stream.seek(0)
    header = stream.read(512)
    flags, capacity, grain = struct.unpack_from("<IQQ", header, 8)
    (entries,), (directory,) = struct.unpack_from("<I", header, 44), struct.unpack_from("<Q", header, 56)
    if directory == _AT_THE_END:
        stream.seek(max(0, size - 1024))
        footer = stream.read(512)
        if footer[:4] != header[:4]:
            yield size  # what a reader needs first is missing
            return
        (directory,) = struct.unpack_from("<Q", footer, 56)
    tables = -(-capacity // max(1, grain * entries))
    if not grain or not entries or tables * entries > _MOST_GRAINS:
        return  # QEMU says what is wrong with it
    last = 0
    for table in filter(None, _sectors(stream, directory, tables)):
        yield table * 512
        if table * 512 >= size:
            return
        last = max(last, *_sectors(stream, table, entries))
    yield last * 512
    if flags & _MARKED and last > 1 and last * 512 < size:
        stream.seek(last * 512 + 8)
        yield last * 512 + 11 + struct.unpack("<I", stream.read(4))[0]


def _sectors(stream: BinaryIO, place: int, count: int) -> "array.array[int]":
    """A table of sector numbers that begins at the sector ``place``. Raises struct.error if the file ends before."""
    stream.seek(place * 512)
    numbers = array.array("I", stream.read(count * 4))
    if len(numbers) != count:
        raise struct.error("short table")
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _blocks(stream: BinaryIO, size: int) -> Iterator[int]:
    """The last byte of each present block of a VHDX ([MS-VHDX] 2.5.1.1), as far as the disk goes."""
    found = {region: (place, length) for region, place, length in vhdx.regions(stream)}
    metadata, (place, length) = found.get(vhdx.METADATA, (0, 0))[0], found.get(vhdx.BLOCKS, (0, 0))
    known = dict(vhdx.items(stream, metadata)) if metadata else {}
    if not place or not {vhdx.PARAMETERS, vhdx.DISK_SIZE, vhdx.SECTOR_SIZE} <= known.keys():
        return  # QEMU says what is wrong with it
    block = vhdx.number(stream, known[vhdx.PARAMETERS], "<I")
    capacity = vhdx.number(stream, known[vhdx.DISK_SIZE], "<Q")
    sector = vhdx.number(stream, known[vhdx.SECTOR_SIZE], "<I")
    if not MIB <= block <= 256 * MIB or sector not in (512, 4096):
        return
    # After each such number of blocks, the table has an entry for their bitmap.
    ratio = (1 << 23) * sector // block
    blocks = -(-capacity // block)
    entries = blocks + max(0, blocks - 1) // ratio
    if entries * 8 > min(length, _LARGEST_BAT):
        return
    stream.seek(place)
    for number, entry in enumerate(struct.unpack(f"<{entries}Q", stream.read(entries * 8))):
        if (number + 1) % (ratio + 1) and entry & 7 in _PRESENT:
            used = capacity - (blocks - 1) * block if number == entries - 1 else block
            yield (entry >> 20 << 20) + used - 1


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


_NAMED = {DiskFormat.QCOW2: _clusters, DiskFormat.VMDK: _grains, DiskFormat.VHDX: _blocks}
