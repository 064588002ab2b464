# SPDX-License-Identifier: Apache-2.0
"""Puts the stage's file together: an EFI image (PE32+) of the stage's code, the ACPI tables and the kernel.

QEMU and the firmware treat it as a kernel. So it also has the kernel's setup header (Linux,
Documentation/arch/x86/boot.rst), from which QEMU reads that an initrd may be given; nothing else reads it.
"""

import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.stage.layout import NAMES, PE
from sevsnp.stage.tables import ADDRESS, all_tables

# Addresses in the image; initramfs/stage/stage.ld has the same.
CODE, CARRIED, TABLES, KERNEL = 0x1000, 0x2000, 0x3000, 0x8000
_PAGE, _BLOCK = 0x1000, 0x200
_HEADERS = 0x600
# The setup header begins here; one byte in it says where it ends.
_SETUP, _MAGIC, _JUMP = 0x1F1, 0x202, 0x201
_SETUP_LIMIT = 0x280
_APPLICATION = 10
# Microsoft, PE format: contents and rights of a section.
_CODE_RX, _DATA_R = 0x60000020, 0x40000040


@dataclass(frozen=True)
class Section:
    """A section of the image: its name (at most 8 bytes), its address in the image, its content and its rights."""

    name: bytes
    address: int
    content: bytes
    rights: int


def sections(code: bytes, tables: bytes, kernel: bytes) -> tuple[Section, ...]:
    """The sections of a stage in the order of their addresses. Raises ValueError if one has no room."""
    carried = struct.pack("<QQQ", ADDRESS, len(tables), len(kernel))
    contents = (
        (CODE, code, _CODE_RX),
        (CARRIED, carried, _DATA_R),
        (TABLES, tables, _DATA_R),
        (KERNEL, kernel, _DATA_R),
    )
    found = tuple(Section(name, *content) for name, content in zip(NAMES, contents, strict=True))
    for one, following in pairwise(found):
        if not 0 < len(one.content) <= following.address - one.address:
            raise ValueError(f"{one.name.decode()}: {len(one.content)} bytes do not fit in front of the next section")
    return found


def setup_header(kernel: bytes) -> bytes:
    """The setup header of ``kernel``, from byte 0x1F1 to its end, for a file whose setup part is 1,024 bytes long."""
    end = _MAGIC + kernel[_JUMP]
    header = bytearray(kernel[_SETUP:end])
    header[0] = 1  # sectors of 512 bytes behind the first
    return bytes(header)


def stage_image(code: bytes, tables: bytes, kernel: bytes) -> bytes:
    """The stage's file. ``kernel`` must be one that :func:`check_kernel` accepts."""
    parts = sections(code, tables, kernel)
    rows, contents, place = [], [], _HEADERS
    for part in parts:
        room = _padded(len(part.content), _BLOCK)
        row = (part.name, len(part.content), part.address, room, place, 0, 0, 0, 0, part.rights)
        rows.append(struct.pack("<8sIIIIIIHHI", *row))
        contents += [part.content, bytes(room - len(part.content))]
        place += room
    headers = bytearray(_HEADERS)
    headers[:2] = b"MZ"
    struct.pack_into("<I", headers, 0x3C, PE)
    header = setup_header(kernel)
    headers[_SETUP : _SETUP + len(header)] = header
    described = b"".join([_pe_header(parts), *rows])
    headers[PE : PE + len(described)] = described
    return b"".join([headers, *contents])  # one copy of the kernel, which is large


def _padded(size: int, unit: int) -> int:
    return size + -size % unit


def _pe_header(parts: tuple[Section, ...]) -> bytes:
    """Signature, COFF header and optional header: no time, no checksum, no relocations (the code needs none)."""
    code, *data = (_padded(len(part.content), _BLOCK) for part in parts)
    size = parts[-1].address + _padded(len(parts[-1].content), _PAGE)
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII",
        *(0x20B, 0, 0, code, sum(data), 0, CODE, CODE),  # magic, linker, sizes, entry point, base of code
        *(0, _PAGE, _BLOCK, 0, 0, 0, 0, 0, 0, 0),  # image base, alignments, versions
        *(size, _HEADERS, 0, _APPLICATION, 0x100),  # sizes, checksum, subsystem; 0x100: no data is run as code
        *(0, 0, 0, 0, 0, 16),  # stack, heap, flags, number of directories
    ) + bytes(16 * 8)
    # x86-64; executable, large addresses.
    coff = struct.pack("<HHIIIHH", 0x8664, len(parts), 0, 0, 0, len(optional), 0x22)
    return b"PE\0\0" + coff + optional


def check_kernel(path: Path, kernel: bytes) -> None:
    """Refuse a file that is no Linux kernel with an EFI stub for x86-64. Raises :class:`UserError`."""
    hint = "give the package of a kernel with an EFI stub, or none: the pinned kernel has it"
    if len(kernel) < _SETUP_LIMIT or kernel[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise UserError(f"{path}: no Linux kernel: the setup header is missing", hint)
    pe = int.from_bytes(kernel[0x3C:0x40], "little")
    if kernel[:2] != b"MZ" or kernel[pe : pe + 6] != b"PE\0\0\x64\x86":
        raise UserError(f"{path}: the kernel has no EFI stub for x86-64", hint)
    if _MAGIC + kernel[_JUMP] > _SETUP_LIMIT:
        raise UserError(f"{path}: the setup header ends at {_MAGIC + kernel[_JUMP]:#x}, expected at most 0x280", hint)


def check_stage(stage: Path, vcpus: int, *, code: Path, tables: Path, kernel: Path) -> None:
    """Refuse a file that is not the stage made of the three others, or whose tables are not those for ``vcpus`` vCPUs.

    Raises :class:`UserError`.
    """
    if tables.read_bytes() != all_tables(vcpus):
        raise UserError(f"{tables}: not the ACPI tables for {vcpus} vCPUs")
    if stage.read_bytes() != stage_image(code.read_bytes(), tables.read_bytes(), kernel.read_bytes()):
        raise UserError(f"{stage}: not made of {code}, {tables} and {kernel}")


def make_stage(*, code: Path, tables: Path, kernel: Path, output: Path) -> None:
    """Write the stage with ``kernel`` to ``output``.

    ``code`` is that of :mod:`sevsnp.images.stage_code`, ``tables`` those of :mod:`sevsnp.stage.tables`. Raises
    :class:`UserError` for a file that is no kernel.
    """
    content = kernel.read_bytes()
    check_kernel(kernel, content)
    output.write_bytes(stage_image(code.read_bytes(), tables.read_bytes(), content))
