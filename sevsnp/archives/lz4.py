# SPDX-License-Identifier: Apache-2.0
"""Decompresses the lz4 format that the kernel reads (lib/decompress_unlz4.c), which lz4 calls its legacy format.

After the magic come blocks: four bytes with the block's length (little-endian), and a block of the LZ4 block format
(lz4/doc/lz4_Block_format.md), at most 8 MiB when decompressed. There is no end mark.
"""

from collections.abc import Iterator
from typing import BinaryIO

MAGIC = b"\x02\x21\x4c\x18"
_BLOCK = 8 << 20
_MOST = _BLOCK + _BLOCK // 255 + 16  # what a block that cannot be compressed takes


def unpack_legacy(stream: BinaryIO) -> Iterator[bytes]:
    """The decompressed blocks after the magic. The stream is then at the file's end, or at padding of zeros.

    Raises ValueError for a damaged block.
    """
    while len(head := stream.read(4)) == 4 and head != bytes(4):
        size = int.from_bytes(head, "little")
        if head == MAGIC:
            continue
        if size > _MOST:
            raise ValueError(f"found a block of {size} bytes, expected at most {_MOST}")
        block = stream.read(size)
        if len(block) < size:
            raise ValueError("the compressed data ends early")
        yield unpack_block(block)
    if head == bytes(4):
        stream.seek(-4, 1)


def unpack_block(block: bytes) -> bytes:
    """A decompressed block. Raises ValueError for a damaged one, and for more than 8 MiB."""
    found = bytearray()
    place, end = 0, len(block)
    while place < end:
        token = block[place]
        length, place = _length(block, place + 1, token >> 4)
        if length > end - place or len(found) + length > _BLOCK:
            raise ValueError("found a literal that is too long")
        found += block[place : place + length]
        place += length
        if place == end:  # the last sequence has literals only
            return bytes(found)
        distance = int.from_bytes(block[place : place + 2], "little")
        length, place = _length(block, place + 2, token & 15)
        length += 4
        if not 0 < distance <= len(found) or len(found) + length > _BLOCK:
            raise ValueError("found a match that is too long, or that begins before the block")
        start = len(found) - distance
        # A match may reach into what it makes: its bytes then repeat.
        found += found[start : start + length] if distance >= length else _repeated(found[start:], length)
    raise ValueError("the compressed data ends early")


def _length(block: bytes, place: int, length: int) -> tuple[int, int]:
    """A length whose first four bits are given, and the place after its further bytes."""
    more = 255 if length == 15 else 0
    while more == 255:
        if place >= len(block):
            raise ValueError("the compressed data ends early")
        more = block[place]
        length, place = length + more, place + 1
    return length, place


def _repeated(pattern: bytearray, length: int) -> bytearray:
    return (pattern * (length // len(pattern) + 1))[:length]
