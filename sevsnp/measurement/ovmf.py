# SPDX-License-Identifier: Apache-2.0
"""Read the tables at the end of an AmdSev OVMF, which a launch and so the launch digest follow.

Sources: edk2 OvmfPkg/ResetVector (Ia16/ResetVectorVtf0.asm, X64/OvmfSevMetadata.asm); QEMU hw/i386/pc_sysfw_ovmf.c and
target/i386/sev.c. An SVSM that QEMU starts from a file of its own has the same tables. All integers are little-endian,
all GUIDs are in Microsoft byte order, all addresses are guest physical.
"""

import io
import struct
import uuid
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from sevsnp.errors import UserError
from sevsnp.system.regular import open_regular

PAGE = 4096
FOUR_GIB = 1 << 32
MAX_SIZE = 16 << 20  # QEMU maps no firmware larger than this below 4 GiB

_FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
_HASH_TABLE = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454").bytes_le
_RESET_BLOCK = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e").bytes_le
_METADATA = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc").bytes_le
_SVSM_INFO = uuid.UUID("a789a612-0597-4c4b-a49f-cbb1fe9d1ddd").bytes_le

_ENTRY = struct.Struct("<H16s")  # the size of the whole entry, then its GUID; the entry's data is before both
_TAIL = 32  # the reset vector; the table ends where it begins
_METADATA_HEADER = struct.Struct("<4sIII")  # "ASEV", length, version, number of sections
_SECTION = struct.Struct("<III")  # address, size, kind
_MAX_SECTIONS = 64
# Sections are measured page by page; a hostile table must not make the verifier hash for hours.
_MAX_MEASURED = 64 << 20
_AMDSEV = "give the firmware of OvmfPkg/AmdSev (Debian package ovmf-amdsev: OVMF.amdsev.fd)"
_SVSM = "give an SVSM as QEMU starts it beside an OVMF, not an IGVM file"


class SectionKind(IntEnum):
    """The kinds of SEV metadata sections that QEMU and edk2 know."""

    SNP_SEC_MEM = 1
    SNP_SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    SNP_KERNEL_HASHES = 0x10


@dataclass(frozen=True)
class Section:
    """A range of whole pages that is added to the guest at launch: address and size in bytes."""

    address: int
    size: int
    kind: SectionKind


@dataclass(frozen=True)
class Ovmf:
    """The firmware's size in bytes and the contents of its tables; ``sections`` are in the order of measurement.

    ``hash_table_address`` is the address of the kernel-hashes table, and ``hash_table_size`` bytes are free there. The
    table is inside the single page of the SNP_KERNEL_HASHES section; both values are 0 in a firmware without such a
    section. ``reset_eip`` is the address at which application processors start (32 bits).
    """

    size: int
    hash_table_address: int
    hash_table_size: int
    reset_eip: int
    sections: tuple[Section, ...]

    @classmethod
    def read(cls, path: Path) -> "Ovmf":
        """:func:`read_firmware` for a file; it reads only the file's tables."""
        try:
            with open_regular(path) as stream:
                return read_firmware(stream, stream.seek(0, io.SEEK_END), str(path))
        except OSError as error:
            raise UserError(f"{path}: cannot read the firmware: {error.strerror}") from error

    @property
    def address(self) -> int:
        """The address at which the firmware is mapped: it ends at 4 GiB."""
        return FOUR_GIB - self.size

    @property
    def hash_page_address(self) -> int:
        return self.hash_table_address & ~(PAGE - 1)

    @property
    def hash_page_offset(self) -> int:
        return self.hash_table_address & (PAGE - 1)


@dataclass(frozen=True)
class Svsm:
    """An SVSM: size in bytes, load address, address at which every vCPU starts (``eip``), and ``sections``."""

    size: int
    address: int
    eip: int
    sections: tuple[Section, ...]


def read_firmware(stream: BinaryIO, size: int, name: str = "firmware image", *, kernel_hashes: bool = True) -> Ovmf:
    """Read the tables of a firmware of ``size`` bytes from a seekable ``stream``; errors call the firmware ``name``.

    Raises :class:`UserError` unless the firmware is a whole, consistent build with SEV metadata. If ``kernel_hashes``
    is true, the firmware must also have SNP kernel hashes, as AmdSev has.
    """
    check_size(size, name)
    image = _Image(stream, size, name)
    table = _read_table(image)
    if _METADATA not in table:
        raise image.error("no SEV metadata: not an AmdSev build of OVMF")
    sections = _read_sections(image, table[_METADATA], FOUR_GIB - size)
    base, room = _read_hash_area(image, table, sections) if kernel_hashes else (0, 0)
    if _RESET_BLOCK not in table:
        raise image.error("no SEV-ES reset block")
    (reset,) = struct.unpack("<I", _exactly(image, table[_RESET_BLOCK], 4, "SEV-ES reset block"))
    if reset == 0:
        raise image.error("the SEV-ES reset block is empty")
    return Ovmf(size, base, room, reset, sections)


def read_svsm(stream: BinaryIO, size: int, end: int, name: str = "SVSM") -> Svsm:
    """Read the tables of an SVSM of ``size`` bytes from a seekable ``stream``; it is loaded to end at address ``end``.

    Raises :class:`UserError` for a file that is not an SVSM.
    """
    check_size(size, name, _SVSM)
    image = _Image(stream, size, name, _SVSM)
    table = _read_table(image)
    if _METADATA not in table or _SVSM_INFO not in table:
        raise image.error("no SEV metadata or no SVSM info: not an SVSM")
    (offset,) = struct.unpack("<I", _exactly(image, table[_SVSM_INFO], 4, "SVSM info"))
    if offset >= size:
        raise image.error(f"SVSM info: an entry at {offset:#x} of {size:#x} bytes")
    address = end - size
    return Svsm(size, address, address + offset, _read_sections(image, table[_METADATA], address))


def check_size(size: int, name: str, hint: str = _AMDSEV) -> None:
    """Raises :class:`UserError` for a firmware size that QEMU would not map, or that is not a multiple of a page."""
    if size <= 0 or size % PAGE or size > MAX_SIZE:
        raise UserError(f"{name}: found {size} bytes, expected a multiple of {PAGE} up to {MAX_SIZE}", hint)


def _read_hash_area(image: "_Image", table: dict[bytes, bytes], sections: tuple[Section, ...]) -> tuple[int, int]:
    """Address and size in bytes of the area for the kernel-hashes table."""
    hash_pages = [section for section in sections if section.kind == SectionKind.SNP_KERNEL_HASHES]
    if not hash_pages or _HASH_TABLE not in table:
        raise image.error("no SNP kernel-hashes section: not an AmdSev build of OVMF")
    base, room = struct.unpack("<II", _exactly(image, table[_HASH_TABLE], 8, "hash table area"))
    page = hash_pages[0]
    if len(hash_pages) > 1 or page.size != PAGE or not page.address <= base < base + room <= page.address + PAGE:
        raise image.error(f"hash table area {base:#x}+{room:#x} is not inside one kernel-hashes page")
    return base, room


class _Image:
    """Bounds-checked reads, and errors that name the firmware."""

    def __init__(self, stream: BinaryIO, size: int, name: str, hint: str = _AMDSEV) -> None:
        self.stream, self.size, self.name, self.hint = stream, size, name, hint

    def error(self, problem: str) -> UserError:
        return UserError(f"{self.name}: {problem}", self.hint)

    def read(self, offset: int, length: int, what: str) -> bytes:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise self.error(f"{what} reaches outside the image")
        self.stream.seek(offset)
        data = self.stream.read(length)
        if len(data) != length:
            raise self.error(f"{what}: found {len(data)} bytes, expected {length}")
        return data


def _exactly(image: _Image, data: bytes, length: int, what: str) -> bytes:
    # A later edk2 may append fields; the known fields come first.
    if len(data) < length:
        raise image.error(f"{what}: found {len(data)} bytes, expected {length}")
    return data[:length]


def _read_table(image: _Image) -> dict[bytes, bytes]:
    """The footer table by GUID. It is read backwards, because each entry's header comes after its data."""
    end = image.size - _TAIL - _ENTRY.size
    length, guid = _ENTRY.unpack(image.read(end, _ENTRY.size, "footer table"))
    if guid != _FOOTER:
        raise image.error("no OVMF footer table: not an OVMF image, or one without SEV support")
    if length < _ENTRY.size:
        raise image.error(f"footer table: found length {length}, expected at least {_ENTRY.size}")
    rest = image.read(end + _ENTRY.size - length, length - _ENTRY.size, "footer table")
    table: dict[bytes, bytes] = {}
    while rest:
        if len(rest) < _ENTRY.size:
            raise image.error(f"footer table: {len(rest)} bytes left over")
        length, guid = _ENTRY.unpack(rest[-_ENTRY.size :])
        if not _ENTRY.size <= length <= len(rest):
            raise image.error(f"footer table: an entry of {length} bytes where {len(rest)} are left")
        if guid in table:
            raise image.error(f"footer table: two entries {uuid.UUID(bytes_le=guid)}")
        table[guid] = rest[-length : -_ENTRY.size]
        rest = rest[:-length]
    return table


def _read_sections(image: _Image, entry: bytes, ceiling: int) -> tuple[Section, ...]:
    (from_end,) = struct.unpack("<I", _exactly(image, entry, 4, "SEV metadata pointer"))
    start = image.size - from_end
    header = image.read(start, _METADATA_HEADER.size, "SEV metadata")
    signature, length, version, count = _METADATA_HEADER.unpack(header)
    if signature != b"ASEV" or version != 1:
        raise image.error(f"SEV metadata: found {signature!r} version {version}, expected b'ASEV' version 1")
    if not 0 < count <= _MAX_SECTIONS or length < _METADATA_HEADER.size + count * _SECTION.size:
        raise image.error(f"SEV metadata: {count} sections do not fit {length} bytes")
    body = image.read(start + _METADATA_HEADER.size, count * _SECTION.size, "SEV metadata")
    sections = tuple(_section(image, *fields) for fields in _SECTION.iter_unpack(body))
    if sum(section.size for section in sections) > _MAX_MEASURED:
        raise image.error(f"SEV metadata: sections of more than {_MAX_MEASURED} bytes")
    # A page can be added to a guest only once, so sections must not overlap. The table's order is the order of
    # measurement, so sort only a copy for this check.
    ordered = sorted(sections, key=lambda section: section.address)
    ends = [section.address + section.size for section in ordered]
    if any(end > after.address for end, after in zip(ends, ordered[1:], strict=False)) or ends[-1] > ceiling:
        raise image.error("SEV metadata: sections overlap each other or the firmware")
    return sections


def _section(image: _Image, address: int, size: int, kind: int) -> Section:
    if kind not in SectionKind.__members__.values():
        raise image.error(f"SEV metadata: a section of unknown kind {kind:#x}: its measurement cannot be predicted")
    single = kind in (SectionKind.SNP_SECRETS, SectionKind.CPUID)
    if address % PAGE or size % PAGE or size == 0 or (single and size != PAGE):
        raise image.error(f"SEV metadata: section {address:#x}+{size:#x} is not made of whole pages")
    return Section(address, size, SectionKind(kind))
