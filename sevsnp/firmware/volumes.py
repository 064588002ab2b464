# SPDX-License-Identifier: Apache-2.0
"""Read a firmware image: its volumes, files and sections, decompressed, down to the code itself.

Source: UEFI Platform Initialization 1.8, volume 3 (firmware volumes 3.2.1, files 3.2.3, sections 3.2.4). All integers
are little-endian. The image is untrusted: every length is checked, and work and memory are bounded.
"""

import lzma
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

# The limit in bytes for all unpacked sections together; those of AmdSev have 16 MiB.
MAX_CONTENT = 96 << 20
MAX_IMAGE = 16 << 20
# The limit for volumes, files and sections together; our OVMF has 518, and Debian's have up to 776. A section can have
# 4 bytes, so the limit in bytes does not bound the work.
MAX_PARTS = 1 << 14
_MAX_DEPTH = 8

_VARIABLES = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_FFS2 = uuid.UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3").bytes_le
_FFS3 = uuid.UUID("5473c07a-3dcb-4dca-bd6f-1e9689e7349a").bytes_le
LZMA = uuid.UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf").bytes_le
_CRC32 = uuid.UUID("fc1bcdb0-7d31-49aa-936a-a4600d9dd083").bytes_le

_VOLUME = struct.Struct("<16x16sQ4sIHHHBB")  # GUID, length, signature, attributes, header length, checksum, extension
_FILE = struct.Struct("<16sHBB3sB")  # GUID, checksums, type, attributes, size, state
_LARGE = 0x01
_RAW_FILE, _DXE_CORE, _PAD_FILE = 0x01, 0x05, 0xF0
_COMPRESSED, _GUIDED, _VOLUME_SECTION = 0x01, 0x02, 0x17
_PROCESSING_REQUIRED = 0x01


class Unreadable(Exception):
    """The image does not follow the specification, or its packing format is unknown here."""


class Leaf(NamedTuple):
    """The body ``data`` of a section or file that holds no further sections; ``place`` says where it is."""

    place: str
    data: bytes


@dataclass(frozen=True)
class Packed:
    """An LZMA section of the image: the offsets of its header and of its packed data, their length, and the content."""

    header: int
    data: int
    length: int
    content: bytes


class _Walk:
    def __init__(self) -> None:
        self.room = MAX_CONTENT
        self.parts = 0
        self.packed: list[Packed] = []
        self.file_types: set[int] = set()

    def image(self, data: bytes) -> Iterator[Leaf]:
        if not 0 < len(data) <= MAX_IMAGE:
            raise Unreadable(f"{len(data)} bytes, expected up to {MAX_IMAGE}")
        offset = 0
        while offset < len(data):
            length = self._volume_length(data, offset, f"{offset:#x}")
            yield from self.volume(data[offset : offset + length], f"{offset:#x}", 0, offset)
            offset += length
        # If the code was not found, it is in a part that was not read, so the image cannot be judged.
        if _DXE_CORE not in self.file_types:
            raise Unreadable("found no code that starts a kernel")

    def _count(self, place: str) -> None:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise Unreadable(f"{place}: more than {MAX_PARTS} volumes, files and sections")

    @staticmethod
    def _volume_length(data: bytes, offset: int, place: str) -> int:
        if len(data) - offset < _VOLUME.size:
            raise Unreadable(f"{place}: {len(data) - offset} bytes left over after the last volume")
        _, length, signature, *_ = _VOLUME.unpack_from(data, offset)
        if signature != b"_FVH":
            raise Unreadable(f"{place}: no firmware volume")
        if not _VOLUME.size <= length <= len(data) - offset:
            raise Unreadable(f"{place}: a volume of {length} bytes where {len(data) - offset} are left")
        return int(length)

    def volume(self, data: bytes, place: str, depth: int, base: int | None) -> Iterator[Leaf]:
        """``base`` is the volume's offset in the image, None inside a packed section."""
        self._count(place)
        kind, _, _, _, header, _, extension, _, _ = _VOLUME.unpack_from(data)
        if kind == _VARIABLES:
            yield Leaf(f"{place}: variables", data)
            return
        if kind not in (_FFS2, _FFS3):
            raise Unreadable(f"{place}: a volume of unknown format {uuid.UUID(bytes_le=kind)}")
        start = header
        if extension:
            if extension + 20 > len(data):
                raise Unreadable(f"{place}: the volume's extension is outside it")
            start = extension + int(struct.unpack_from("<I", data, extension + 16)[0])
        offset = -(-start // 8) * 8
        while offset + _FILE.size <= len(data):
            name, _, file_type, attributes, size3, _ = _FILE.unpack_from(data, offset)
            if data[offset : offset + _FILE.size] == b"\xff" * _FILE.size:
                break
            self._count(place)
            head, size = _FILE.size, int.from_bytes(size3, "little")
            if attributes & _LARGE and kind == _FFS3:
                if offset + 32 > len(data):
                    raise Unreadable(f"{place}: a file reaches outside its volume")
                head, size = 32, int(struct.unpack_from("<Q", data, offset + 24)[0])
            if not head <= size <= len(data) - offset:
                raise Unreadable(f"{place}: a file of {size} bytes where {len(data) - offset} are left")
            inner = f"{place}/{uuid.UUID(bytes_le=name)}"
            body = data[offset + head : offset + size]
            self.file_types.add(file_type)
            if file_type in (_RAW_FILE, _PAD_FILE):
                yield Leaf(inner, body)
            else:
                yield from self.sections(body, inner, depth, None if base is None else base + offset + head)
            offset += -(-size // 8) * 8
        # The space after the last file must be free; otherwise a part is hidden or was misread.
        if data[offset:].strip(b"\xff"):
            raise Unreadable(f"{place}: found bytes after the last file")

    def sections(self, data: bytes, place: str, depth: int, base: int | None) -> Iterator[Leaf]:
        if depth > _MAX_DEPTH:
            raise Unreadable(f"{place}: sections nested more than {_MAX_DEPTH} deep")
        offset = 0
        while offset + 4 <= len(data):
            self._count(place)
            size, kind, head = int.from_bytes(data[offset : offset + 3], "little"), data[offset + 3], 4
            if size == 0xFFFFFF and offset + 8 <= len(data):
                size, head = int.from_bytes(data[offset + 4 : offset + 8], "little"), 8
            if not head <= size <= len(data) - offset:
                raise Unreadable(f"{place}: a section of {size} bytes where {len(data) - offset} are left")
            section = data[offset : offset + size]
            yield from self._section(kind, section, head, place, depth, None if base is None else base + offset)
            offset += -(-size // 4) * 4

    def _section(
        self, kind: int, section: bytes, head: int, place: str, depth: int, base: int | None
    ) -> Iterator[Leaf]:
        if kind == _VOLUME_SECTION:
            inner = section[head:]
            if self._volume_length(inner, 0, place) != len(inner):
                raise Unreadable(f"{place}: found bytes after a volume")
            yield from self.volume(inner, place, depth + 1, None if base is None else base + head)
        elif kind == _COMPRESSED:
            if len(section) < head + 5 or section[head + 4] != 0:
                raise Unreadable(f"{place}: a section with an unsupported compression")
            yield from self.sections(section[head + 5 :], place, depth + 1, None)
        elif kind == _GUIDED:
            if len(section) < head + 20:
                raise Unreadable(f"{place}: a section without its header")
            guid, start, attributes = struct.unpack_from("<16sHH", section, head)
            if not head + 20 <= start <= len(section):
                raise Unreadable(f"{place}: a section without data")
            if guid == LZMA:
                content = self._unpack(section[start:], place)
                if base is not None:
                    self.packed.append(Packed(base, base + start, len(section) - start, content))
                yield from self.sections(content, place, depth + 1, None)
            elif guid == _CRC32 or not attributes & _PROCESSING_REQUIRED:
                yield from self.sections(section[start:], place, depth + 1, None)
            else:
                raise Unreadable(f"{place}: a section with an unsupported encapsulation")
        else:
            yield Leaf(f"{place} section {kind:#x}", section[head:])

    def _unpack(self, data: bytes, place: str) -> bytes:
        try:
            unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=128 << 20)
            content = unpacker.decompress(data, self.room + 1)
        except lzma.LZMAError as error:
            raise Unreadable(f"{place}: a packed section that cannot be unpacked: {error}") from None
        if len(content) > self.room:
            raise Unreadable(f"{place}: more than {MAX_CONTENT} bytes of content")
        size = int.from_bytes(data[5:13], "little")
        if len(content) != size:
            raise Unreadable(f"{place}: {len(content)} bytes unpacked, its header says {size}")
        self.room -= len(content)
        return content


def leaves(image: bytes) -> Iterator[Leaf]:
    """Yield each part of ``image`` without further sections. Raises :class:`Unreadable` for a part it cannot read."""
    return _Walk().image(image)


def packed_sections(image: bytes) -> list[Packed]:
    """The LZMA sections that are in ``image`` itself, not inside other sections, in order. Raises Unreadable."""
    walk = _Walk()
    for _ in walk.image(image):
        pass
    return walk.packed
