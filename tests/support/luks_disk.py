# SPDX-License-Identifier: Apache-2.0
"""The places of a volume's blocks and tags on the disk, so that a test can change one of them as a host could.

The kernel's drivers/md/dm-integrity.c: get_area_and_offset, get_data_sector, get_metadata_sector_and_offset. After the
LUKS header come a superblock, the journal, and for each 16 MiB of data first the tags and then the data.
"""

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sevsnp.images.luks2 import HEADER_SIZE
from tests.support.luks_guests import put, read_disk

BLOCK = 4096
TAG = 48  # HMAC-SHA-256, then the IV
SUPERBLOCK = HEADER_SIZE
# The superblock's fields: offset and struct format.
FIELDS = {
    "version": (8, "<B"),
    "log2_interleave_sectors": (9, "<B"),
    "integrity_tag_size": (10, "<H"),
    "journal_sections": (12, "<I"),
    "provided_data_sectors": (16, "<Q"),
    "flags": (24, "<I"),
    "log2_sectors_per_block": (28, "<B"),
    "log2_blocks_per_bitmap_bit": (29, "<B"),
    "recalc_sector": (32, "<Q"),
}
# Flags of the superblock: the kernel makes tags anew from the present data; a bitmap says for which blocks.
RECALCULATING, DIRTY_BITMAP = 2, 4
_MAGIC = b"integrt\0"
_SECTOR = 512
_SUPERBLOCK_SIZE = 4096
# A journal section: 8 sectors of entries (120 bytes each, 4 in a sector), and a block for each of the 32 entries.
_SECTION = 8 * _SECTOR + 32 * BLOCK


def field(image: Path, name: str) -> int:
    """A field of the superblock."""
    offset, form = FIELDS[name]
    found: int
    (found,) = struct.unpack(form, read_disk(image, SUPERBLOCK + offset, struct.calcsize(form)))
    return found


def packed(name: str, value: int) -> tuple[int, bytes]:
    """A change of a superblock field: its offset and the new bytes."""
    offset, form = FIELDS[name]
    return SUPERBLOCK + offset, struct.pack(form, value)


@dataclass(frozen=True)
class Places:
    """Offsets in a disk image: ``first`` is that of the first run of tags, ``area`` the bytes of data in each run."""

    first: int
    area: int

    @classmethod
    def of(cls, image: Path) -> "Places":
        assert read_disk(image, SUPERBLOCK, 8) == _MAGIC
        assert field(image, "integrity_tag_size") == TAG
        assert field(image, "log2_sectors_per_block") == 3
        first = SUPERBLOCK + _SUPERBLOCK_SIZE + field(image, "journal_sections") * _SECTION
        return cls(first, _SECTOR << field(image, "log2_interleave_sectors"))

    def _area(self, block: int) -> tuple[int, int]:
        area, inside = divmod(block, self.area // BLOCK)
        return self.first + area * (self.area + self.area // BLOCK * TAG), inside

    def tag(self, block: int) -> int:
        """The offset of the tag of a block of the mapping."""
        start, inside = self._area(block)
        return start + inside * TAG

    def data(self, block: int) -> int:
        """The offset of a block's data."""
        start, inside = self._area(block)
        return start + self.area // BLOCK * TAG + inside * BLOCK


def flip(image: Path, offset: int) -> tuple[int, bytes]:
    """The change of one bit, for :func:`changed`."""
    return offset, bytes([read_disk(image, offset, 1)[0] ^ 1])


def swapped(image: Path, first: int, second: int, size: int) -> list[tuple[int, bytes]]:
    """The changes that exchange ``size`` bytes at two offsets."""
    return [(first, read_disk(image, second, size)), (second, read_disk(image, first, size))]


@contextlib.contextmanager
def changed(image: Path, *changes: tuple[int, bytes]) -> Iterator[None]:
    """Change bytes of an image, which may be in use, at these offsets, and restore them at the end."""
    before = [(offset, put(image, offset, data)) for offset, data in changes]
    try:
        yield
    finally:
        for offset, data in reversed(before):
            put(image, offset, data)
