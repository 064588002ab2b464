# SPDX-License-Identifier: Apache-2.0
"""Make our firmware: change Debian's pinned AmdSev OVMF so that it starts nothing but the three hashed files.

The changes are made in the unpacked content of the image's only packed section, which is then packed again. Input,
places and output are pinned: another build of the input is refused, and so is another result of the compressor.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

from sevsnp.errors import UserError
from sevsnp.firmware.gate import find_roads
from sevsnp.firmware.known import OURS, STOCK
from sevsnp.firmware.volumes import Packed, Unreadable, packed_sections
from sevsnp.system.command import run


class Change(NamedTuple):
    """One change: ``old`` is in the unpacked content at exactly the offsets ``places``, and becomes ``new``."""

    old: bytes
    new: bytes
    places: tuple[int, ...]


# The name in a device path. No fw_cfg file can have the new name: fw_cfg names consist of 8-bit characters, and neither
# zero extension nor sign extension of 8 bits gives these code units.
_NODE = bytes.fromhex("04041200")  # media device path, file path, 18 bytes: UEFI 2.10, section 10.3.5.4
_NAME = "shim".encode("utf-16-le")
# A comparison with a signature, and the jump after it (jne). The jump becomes unconditional (jmp), so that no input
# passes the comparison; another signature alone would not ensure this.
_SIGNATURE = b"PCIR"
# The place where BdsDxe continues after the kernel has returned or could not be started. Our firmware does not look for
# something else to start: it prints a message and stops.
_GOES_ON = bytes.fromhex("4531ff ba02000000 4889d9 31ff 4c89bd58fcffff e8")
_STOPS = bytes.fromhex(
    "488d0dce740000"  # lea rcx, [the text "%a: No bootable option was found."]
    "488d15c0740000"  # lea rdx, [the name "BdsDxe"]
    "e8d28bffff"  # call the function that prints
    "ebfe"  # jmp to itself
)
# The default boot file of a disk. The new name has a colon, which no FAT file name can have.
_DEFAULT = "\\EFI\\BOOT\\BOOTX64.EFI"
# Sizes from the host that the firmware uses for memory before it verifies anything. For a size that is too large, our
# firmware jumps to the same instruction for ever (75fe, 72fe) or limits the size to the available room.
# PlatformPei, a stored fw_cfg file: its size must be 1 byte to 32 KiB.
_KEPT = bytes.fromhex("8b433b 85c0 0f84b0010000 448d7006")
_KEPT_LIMITED = bytes.fromhex("8b433b 448d7006 ffc8 c1e80f 75fe 90")
# QemuKernelLoaderFsDxe, the kernel's two parts: the sum of their sizes must not overflow.
_SUM = bytes.fromhex("4101c4 4883fb0c 7407 bb0c000000 ebc5")
_SUM_LIMITED = bytes.fromhex("4101c4 72fe 83fb0c 7406 b30c ebc7 6690")
# The same driver, the number of fw_cfg files: only its lowest byte counts. QEMU has 32 files by default.
_COUNT = bytes.fromhex("89c3 4989de 48c1e306")
_COUNT_LIMITED = bytes.fromhex("0fb6d8 4989de c1e306")
CHANGES = (
    Change(_NODE + _NAME, _NODE + "\u2460\u2461\u2462\u2463".encode("utf-16-le"), (0x1AD8B4,)),
    Change(_SIGNATURE + b"\x75", b"\xff" * 4 + b"\xeb", (0x14C1A3, 0x14C63A)),
    Change(_GOES_ON, _STOPS, (0x1A50EB,)),
    Change(_KEPT, _KEPT_LIMITED, (0xFF43,)),
    Change(_SUM, _SUM_LIMITED, (0x1E147F,)),
    Change(_COUNT, _COUNT_LIMITED, (0x1E1A54,)),
    Change(
        _DEFAULT.encode("utf-16-le"),
        _DEFAULT.replace("X64.", "X64:").encode("utf-16-le"),
        (0x1ACAAE, 0x1C5714, 0x1DA9C4),
    ),
)

# The program with which the pinned Python packs: the .lzma file format, which UEFI's LZMA sections use, at xz's highest
# preset. The sizes are those of the stock image: a 16 MiB dictionary, and lc, lp and pb in bits.
_PACK = """\
import lzma, sys
sizes = {"dict_size": 1 << 24, "lc": 3, "lp": 0, "pb": 2}
filters = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, **sizes}]
sys.stdout.buffer.write(lzma.compress(sys.stdin.buffer.read(), format=lzma.FORMAT_ALONE, filters=filters))
"""
_REMEDY = "the pinned Python and its liblzma make the same again: ./doitw packages"
_SIZE_FIELD = slice(5, 13)  # after the five bytes of properties; the firmware's unpacker needs the size there


def make_firmware(*, stock: Path, python: Path, output: Path) -> None:
    """Write our firmware to ``output`` from the image ``stock``; ``python`` is the Python of the pinned tree.

    Raises :class:`UserError` for another input, and if the result is not the pinned one.
    """
    image = stock.read_bytes()
    found = hashlib.sha256(image).hexdigest()
    if found != STOCK:
        raise UserError(
            f"{stock}: found SHA-256 {found}, expected {STOCK}: the firmware can only be made from this build",
            "restore the ovmf-amdsev lines of packages.lock: git checkout packages.lock && ./doitw packages",
        )
    made = _changed(image, python, str(stock))
    found = hashlib.sha256(made).hexdigest()
    if found != OURS:
        raise UserError(f"{output}: made with SHA-256 {found}, expected {OURS}: the compressor differs", _REMEDY)
    if roads := find_roads(made):
        raise UserError(f"{output}: the change is not complete: {roads[0]}")
    output.write_bytes(made)


def _changed(image: bytes, python: Path, name: str) -> bytes:
    try:
        (section,) = packed_sections(image)
    except (Unreadable, ValueError) as error:
        raise UserError(f"{name}: expected one packed section: {error}") from None
    packed = _pack(change(section.content, name), python)
    return _put_back(image, section, packed, name)


def change(content: bytes, name: str) -> bytes:
    """``content`` with CHANGES. Raises :class:`UserError` unless each old text is at exactly its expected offsets."""
    made = bytearray(content)
    for one in CHANGES:
        places = tuple(_find_all(content, one.old))
        if places != one.places:
            shown = ", ".join(f"{place:#x}" for place in places) or "nowhere"
            expected = ", ".join(f"{place:#x}" for place in one.places)
            raise UserError(f"{name}: {one.old.hex()}: found at {shown}, expected at {expected}")
        for place in places:
            made[place : place + len(one.old)] = one.new
    return bytes(made)


def _find_all(content: bytes, text: bytes) -> list[int]:
    found, place = [], content.find(text)
    while place >= 0:
        found.append(place)
        place = content.find(text, place + 1)
    return found


def _pack(content: bytes, python: Path) -> bytes:
    packed = bytearray(run([python, "-I", "-c", _PACK], stdin=content))
    packed[_SIZE_FIELD] = len(content).to_bytes(8, "little")
    return bytes(packed)


def _put_back(image: bytes, section: Packed, packed: bytes, name: str) -> bytes:
    """The image with ``packed`` in place of the section. The section keeps its size, so nothing after it moves."""
    if len(packed) > section.length:
        raise UserError(f"{name}: packed again: found {len(packed)} bytes, expected at most {section.length}", _REMEDY)
    end = section.data + section.length
    return image[: section.data] + packed.ljust(section.length, b"\0") + image[end:]
