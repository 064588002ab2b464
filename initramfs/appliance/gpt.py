# SPDX-License-Identifier: Apache-2.0
"""Reads a GUID partition table (UEFI specification 2.10, chapter 5.3) where the kernel does not.

The kernel reads the first table only, and in the sectors of the disk that it sees: a disk with sectors of 4,096 bytes
that became an image, and one whose first table is lost, have no partitions for it.
"""

import zlib
from dataclasses import dataclass
from typing import BinaryIO

_SIGNATURE = b"EFI PART"
_SECTORS = (512, 4096)
_HEADER = 92
_MOST, _LARGEST = 1024, 4096

# Discoverable Partitions Specification: the types of the partitions that systemd-gpt-auto-generator mounts, on x86-64.
ROOT = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
USR = "8484680c-9521-48c6-9c11-b0720656f69e"
VAR = "4d21b016-b534-45c2-a9fb-5c16e091fd2d"
PLACES = {
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "/home",
    "3b8f8425-20e0-4f3b-907f-1a25a76f98e8": "/srv",
    VAR: "/var",
    USR: "/usr",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "/boot",
}
NO_AUTO = 1 << 63


@dataclass(frozen=True)
class Partition:
    """An entry of the table: ``start`` and ``size`` in bytes; type and identity as text; its name and its flags."""

    number: int
    start: int
    size: int
    type: str
    uuid: str
    name: str
    flags: int


@dataclass(frozen=True)
class Table:
    """A valid table: ``sector`` is the size in bytes in which it counts, ``backup`` whether it is the second one."""

    sector: int
    backup: bool
    partitions: "tuple[Partition, ...]"


def read_gpt(stream: BinaryIO, size: int) -> "Table | None":
    """The table of a disk of ``size`` bytes: the first that is valid, else the one at its end. None without any."""
    for backup in (False, True):
        for sector in _SECTORS:
            place = size // sector - 1 if backup else 1
            partitions = _read(stream, place, sector)
            if partitions is not None:
                return Table(sector, backup, partitions)
    return None


def _read(stream: BinaryIO, place: int, sector: int) -> "tuple[Partition, ...] | None":
    stream.seek(place * sector)
    header = stream.read(sector)
    if header[:8] != _SIGNATURE or len(header) < sector:
        return None
    length, checksum = _number(header, 12, 4), _number(header, 16, 4)
    if not _HEADER <= length <= sector or _number(header, 24, 8) != place:
        return None
    if zlib.crc32(header[:16] + bytes(4) + header[20:length]) != checksum:
        return None
    first, count, size = _number(header, 72, 8), _number(header, 80, 4), _number(header, 84, 4)
    if count > _MOST or not 128 <= size <= _LARGEST:
        return None
    stream.seek(first * sector)
    table = stream.read(count * size)
    if zlib.crc32(table) != _number(header, 88, 4):
        return None
    entries = [table[number * size : (number + 1) * size] for number in range(count)]
    return tuple(_partition(number, entry, sector) for number, entry in enumerate(entries, 1) if any(entry[:16]))


def _partition(number: int, entry: bytes, sector: int) -> Partition:
    first, last = _number(entry, 32, 8), _number(entry, 40, 8)
    return Partition(
        number,
        first * sector,
        (last - first + 1) * sector,
        mixed_uuid(entry[:16]),
        mixed_uuid(entry[16:32]),
        entry[56:128].decode("utf-16-le", "replace").partition("\0")[0],
        _number(entry, 48, 8),
    )


def _number(data: bytes, place: int, size: int) -> int:
    return int.from_bytes(data[place : place + size], "little")


def plain_uuid(data: bytes) -> str:
    """A UUID from its 16 bytes in order."""
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def mixed_uuid(data: bytes) -> str:
    """A UUID in a GPT's form: its first three fields are little-endian."""
    return plain_uuid(data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:])
