# SPDX-License-Identifier: Apache-2.0
"""Hostile ACPI tables, assembled by hand: their AML writes a mark to an I/O port when the guest's kernel interprets it.

Encoding: ACPI 6.5, chapter 20 (AML) and section 5.2.6 (table header).
"""

import hashlib
import re
import struct

_SYSTEM_IO = 1
_BYTE_ACCESS = 1  # lock rule: NoLock; update rule: Preserve
_SYSTEM_BUS = b"\\_SB_"
_HEADER_SIZE = 36
_CHECKSUM = 9  # its offset in the header
_NOTHING = b"\xa3"  # NoopOp
# Offsets in the FADT (ACPI 6.5, table 5.9): SMI_CMD, which ACPI_ENABLE follows, and both forms of PM1a_CNT_BLK.
_SMI_COMMAND, _PM1A_CONTROL, _X_PM1A_CONTROL = 48, 64, 172
_ALWAYS_ZERO = 0x62C  # enables general-purpose events that q35 does not have


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


def _marking(device: bytes, port: int, mark: bytes) -> bytes:
    r"""AML of a device below ``\_SB`` whose ``_INI`` writes ``mark`` to the I/O port, byte by byte.

    The kernel runs ``_INI`` of every present device as soon as it has loaded the tables; firmware does not interpret
    AML.
    """
    stores = b"".join(b"\x70\x0a" + bytes([byte]) + b"BYTE" for byte in mark)
    content = device + _region(b"PORT", port) + _method(b"_INI", stores)
    return _package(b"\x10", _SYSTEM_BUS + _package(b"\x5b\x82", content))


def marking_table(
    port: int, mark: bytes, signature: str = "SSDT", oem: bytes = b"HOSTIL", table: bytes = b"HOSTMARK"
) -> bytes:
    """A table that writes ``mark`` when the kernel has loaded it. Two tables with different marks can be loaded.

    ``oem`` has 6 bytes, ``table`` (the OEM's table ID) 8.
    """
    body = _marking(b"E" + hashlib.sha256(mark).hexdigest()[:3].upper().encode(), port, mark)
    header = struct.pack(
        "<4sIBB6s8sI4sI", signature.encode(), _HEADER_SIZE + len(body), 2, 0, oem, table, 1, b"HAND", 1
    )
    return header[:_CHECKSUM] + bytes([-sum(header + body) & 0xFF]) + header[_CHECKSUM + 1 :] + body


def replace_dsdt(tables: bytearray, port: int, mark: bytes) -> None:
    """Replace the DSDT among the host's ``tables`` by one of the same size that writes ``mark``."""
    place, size = _find(tables, b"DSDT")
    body = _marking(b"EDSD", port, mark)
    tables[place + _HEADER_SIZE : place + size] = body.ljust(size - _HEADER_SIZE, _NOTHING)


def replace_fadt(tables: bytearray, port: int, mark: bytes) -> None:
    """Change the FADT so that the kernel writes ``mark``, one byte, to the port when it switches ACPI on.

    The control register seems to be elsewhere, where a bit that says "on" is never set.
    """
    place, _ = _find(tables, b"FACP")
    struct.pack_into("<IB", tables, place + _SMI_COMMAND, port, mark[0])
    struct.pack_into("<I", tables, place + _PM1A_CONTROL, _ALWAYS_ZERO)
    struct.pack_into("<Q", tables, place + _X_PM1A_CONTROL + 4, _ALWAYS_ZERO)


def _find(tables: bytearray, signature: bytes) -> tuple[int, int]:
    """Place and size of the first table with this signature."""
    for match in re.finditer(re.escape(signature), tables):
        size = int.from_bytes(tables[match.start() + 4 : match.start() + 8], "little")
        if _HEADER_SIZE <= size <= len(tables) - match.start():
            return match.start(), size
    raise ValueError(f"no {signature.decode()}")
