# SPDX-License-Identifier: Apache-2.0
"""AML and resource descriptors, as far as the DSDT of a guest needs them (ACPI 6.5, chapter 20 and section 6.4)."""

import re
import struct

_SCOPE, _NAME, _PACKAGE, _BUFFER = b"\x10", b"\x08", b"\x12", b"\x11"
_DEVICE = b"\x5b\x82"
# A range whose ends are fixed, and which the device hands on to the devices behind it (6.4.3.5.1).
_FIXED_PRODUCER = 0x0C
_MEMORY, _PORTS, _BUSES = 0, 1, 2
_END_TAG = b"\x79\x00"  # a checksum of 0: none is computed (6.4.2.9)


def package_length(size: int) -> bytes:
    """The PkgLength of ``size`` bytes behind it (20.2.4); it counts its own bytes too."""
    for extra in range(4):
        total = size + 1 + extra
        if extra == 0 and total < 1 << 6:
            return bytes([total])
        if extra and total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"{size} bytes are too many for one package")


def name_path(text: str) -> bytes:
    r"""A name of one segment, as ``_HID`` or ``\_SB`` (20.2.2)."""
    match = re.fullmatch(r"(\\?)([A-Z_][A-Z0-9_]{0,3})", text)
    if not match:
        raise ValueError(f"{text!r} is no name of one segment")
    return match[1].encode() + match[2].ljust(4, "_").encode()


def integer(value: int) -> bytes:
    """A constant in its shortest form (20.2.3)."""
    if value in (0, 1):
        return bytes([value])
    for prefix, form in ((b"\x0a", "<B"), (b"\x0b", "<H"), (b"\x0c", "<I"), (b"\x0e", "<Q")):
        if value < 1 << 8 * struct.calcsize(form):
            return prefix + struct.pack(form, value)
    raise ValueError(f"{value:#x} has more than 64 bits")


def eisa_id(text: str) -> bytes:
    """The constant for an EISA identifier, as PNP0A08 (19.3.4): three letters of 5 bits, and four hex digits."""
    match = re.fullmatch(r"([A-Z])([A-Z])([A-Z])([0-9A-F]{4})", text)
    if not match:
        raise ValueError(f"{text!r} is no EISA identifier")
    first, second, third = (ord(letter) - 0x40 for letter in match.groups()[:3])
    return b"\x0c" + struct.pack(">HH", first << 10 | second << 5 | third, int(match[4], 16))


def _packed(opcode: bytes, content: bytes) -> bytes:
    return opcode + package_length(len(content)) + content


def name(path: str, value: bytes) -> bytes:
    """``Name (path, value)``."""
    return _NAME + name_path(path) + value


def package(*elements: bytes) -> bytes:
    """``Package () {elements}``."""
    return _packed(_PACKAGE, bytes([len(elements)]) + b"".join(elements))


def buffer(content: bytes) -> bytes:
    """``Buffer () {content}``."""
    return _packed(_BUFFER, integer(len(content)) + content)


def scope(path: str, *terms: bytes) -> bytes:
    """``Scope (path) {terms}``."""
    return _packed(_SCOPE, name_path(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """``Device (path) {terms}``."""
    return _packed(_DEVICE, name_path(path) + b"".join(terms))


def resources(*descriptors: bytes) -> bytes:
    """``ResourceTemplate () {descriptors}``: a buffer that the end tag closes."""
    return buffer(b"".join(descriptors) + _END_TAG)


def fixed_ports(first: int, count: int) -> bytes:
    """``IO``: ``count`` ports from ``first`` on, which the device itself decodes (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, 1, count)


def buses(first: int, last: int) -> bytes:
    """``WordBusNumber``: the PCI buses behind the device (6.4.3.5.3)."""
    return _words(_BUSES, 0, first, last)


def ports(first: int, last: int) -> bytes:
    """``WordIO``: the ports for the devices behind this one (6.4.3.5.3); 3: no range of ISA is left out."""
    return _words(_PORTS, 3, first, last)


def memory(first: int, last: int) -> bytes:
    """``DWordMemory``: writable, uncached memory for the devices behind this one (6.4.3.5.2)."""
    return _address_space(0x87, "I", _MEMORY, 1, first, last)


def _words(kind: int, flags: int, first: int, last: int) -> bytes:
    return _address_space(0x88, "H", kind, flags, first, last)


def _address_space(tag: int, form: str, kind: int, flags: int, first: int, last: int) -> bytes:
    # Granularity, first, last, translation, length.
    content = struct.pack(f"<BBB5{form}", kind, _FIXED_PRODUCER, flags, 0, first, last, 0, last - first + 1)
    return struct.pack("<BH", tag, len(content)) + content
