# SPDX-License-Identifier: Apache-2.0
"""A hostile ACPI table, assembled by hand: its AML writes a mark to an I/O port when the guest's kernel interprets it.

Encoding: ACPI 6.5, chapter 20 (AML) and section 5.2.6 (table header).
"""

import struct
from dataclasses import dataclass

_SYSTEM_IO = 1
_BYTE_ACCESS = 1  # lock rule: NoLock; update rule: Preserve
_SYSTEM_BUS = b"\\_SB_"
_HEADER_SIZE = 36


def _package_length(value: int, *, itself: bool) -> bytes:
    """A PkgLength. With ``itself`` it includes its own bytes, as everywhere except in the width of a field."""
    for extra in range(4):
        total = value + (1 + extra if itself else 0)
        if total < (64 if extra == 0 else 1 << (4 + 8 * extra)):
            if extra == 0:
                return bytes([total])
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"a package of {value} bytes")


def _package(opcode: bytes, content: bytes) -> bytes:
    return opcode + _package_length(len(content), itself=True) + content


def _region(name: bytes, port: int) -> bytes:
    """One byte of I/O space as an operation region, and a field of its eight bits."""
    region = b"\x5b\x80" + name + bytes([_SYSTEM_IO]) + b"\x0b" + struct.pack("<H", port) + b"\x0a\x01"
    field = name + bytes([_BYTE_ACCESS]) + b"BYTE" + _package_length(8, itself=False)
    return region + _package(b"\x5b\x81", field)


def _method(name: bytes, body: bytes) -> bytes:
    return _package(b"\x14", name + b"\x00" + body)


@dataclass(frozen=True)
class Ids:
    """What a table's header says of itself, and the name of its device: no two tables may have the same device."""

    signature: bytes = b"SSDT"
    oem: bytes = b"HOSTIL"
    table: bytes = b"HOSTMARK"
    device: bytes = b"EVIL"


def marking_ssdt(port: int, mark: bytes, ids: Ids = Ids()) -> bytes:
    r"""An SSDT with a device below ``\_SB`` whose ``_INI`` writes ``mark`` to the I/O port, byte by byte.

    The kernel runs ``_INI`` of every present device as soon as it has loaded the tables; firmware does not interpret
    AML. ``ids`` are for a table of another kind with the same code.
    """
    stores = b"".join(b"\x70\x0a" + bytes([byte]) + b"BYTE" for byte in mark)
    device = ids.device + _region(b"PORT", port) + _method(b"_INI", stores)
    body = _package(b"\x10", _SYSTEM_BUS + _package(b"\x5b\x82", device))
    size = _HEADER_SIZE + len(body)
    header = struct.pack("<4sIBB6s8sI4sI", ids.signature, size, 2, 0, ids.oem, ids.table, 1, b"HAND", 1)
    checksum = -sum(header + body) & 0xFF
    return header[:9] + bytes([checksum]) + header[10:] + body
