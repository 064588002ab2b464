# SPDX-License-Identifier: Apache-2.0
"""Partition tables and superblocks as other programs write them, without root: GPT in any sectors, MD members."""

import struct
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path

MIB = 1 << 20
SECTOR_4K = 4096
_MAGIC = 0xA92B4EFC

# Type, identity, name, content, flags.
Part = tuple[str, str, str, Path, int]


def gpt_disk(disk: Path, parts: Sequence[Part], sector: int) -> Path:
    """A raw disk with a GPT that counts in ``sector`` bytes: each part at a whole MiB, both tables, boot record.

    Without that record, which protects the disk from programs that know no GPT, Linux does not look for the table.
    """
    entries, place = b"", MIB
    with disk.open("wb") as stream:
        for kind, identity, name, content, flags in parts:
            size = content.stat().st_size
            stream.seek(place)
            stream.write(content.read_bytes())
            first, last = place // sector, (place + size) // sector - 1
            entries += uuid.UUID(kind).bytes_le + uuid.UUID(identity).bytes_le
            entries += struct.pack("<QQQ", first, last, flags) + name.encode("utf-16-le").ljust(72, b"\0")
            place += -(-size // MIB) * MIB
        table = entries.ljust(128 * 128, b"\0")
        room = -(-len(table) // sector)
        sectors = place // sector + MIB // sector
        stream.truncate(sectors * sector)
        # UEFI 2.10, 5.2.3: one entry, of type EE, for the whole disk.
        stream.seek(446)
        stream.write(struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, sectors - 1))
        stream.seek(510)
        stream.write(b"\x55\xaa")
        for own, other, at in ((1, sectors - 1, 2), (sectors - 1, 1, sectors - 1 - room)):
            header = bytearray(b"EFI PART" + struct.pack("<IIII", 0x10000, 92, 0, 0))
            header += struct.pack("<QQQQ", own, other, 2 + room, sectors - 2 - room) + bytes(16)
            header += struct.pack("<QIII", at, 128, 128, zlib.crc32(table))
            struct.pack_into("<I", header, 16, zlib.crc32(header))
            stream.seek(own * sector)
            stream.write(header)
            stream.seek(at * sector)
            stream.write(table)
    return disk


def member_superblock(device: Path, version: str, array: uuid.UUID, *, name: str, number: int) -> None:
    """Make a file the member ``number`` of a clean RAID 1 of two (linux/raid/md_p.h); its data begin at 1 MiB.

    In the versions whose superblock is at the end, the data begin at 0.
    """
    size = device.stat().st_size // 512
    places = {"1.2": 8, "1.1": 0, "1.0": (size - 16) // 8 * 8, "0.90": size // 128 * 128 - 128}
    place = places[version]
    if version == "0.90":
        block = bytearray(4096)
        parts = struct.unpack("<4I", array.bytes)
        struct.pack_into("<6I", block, 0, _MAGIC, 0, 90, 0, 0, parts[0])
        struct.pack_into("<7I", block, 24, 0, 1, place // 2, 2, 2, int(name.rpartition(":")[2]), 0)
        struct.pack_into("<3I", block, 52, *parts[1:])
        struct.pack_into("<8I", block, 128, 0, 1, 2, 2, 0, 0, 0, 1)  # clean; both active and working; one event
        for which, descriptor in ((0, 512), (1, 640), (number, 3968)):  # the members, and this one
            struct.pack_into("<5I", block, descriptor, which, 0, 0, which, 6)  # active and in sync
        total = sum(struct.unpack("<1024I", block))
        struct.pack_into("<I", block, 152, (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF)
    else:
        start = 2048 if version in ("1.2", "1.1") else 0
        room = (size if start else place) - start
        block = bytearray(256 + 2 * 2)
        struct.pack_into("<4I", block, 0, _MAGIC, 1, 0, 0)
        block[16:32] = array.bytes
        block[32 : 32 + len(name)] = name.encode()
        struct.pack_into("<QiIQIi", block, 64, 1, 1, 0, room, 0, 2)
        struct.pack_into("<QQQQI", block, 128, start, room, place, 0, number)
        block[168:184] = uuid.uuid5(array, str(number)).bytes
        struct.pack_into("<QQQII", block, 192, 1, 2, (1 << 64) - 1, 0, 2)
        struct.pack_into("<2H", block, 256, 0, 1)
        total = sum(struct.unpack(f"<{len(block) // 4}I", block))
        struct.pack_into("<I", block, 216, (total & 0xFFFFFFFF) + (total >> 32) & 0xFFFFFFFF)
    with device.open("r+b") as stream:
        stream.seek(place * 512)
        stream.write(block)
