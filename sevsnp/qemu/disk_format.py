# SPDX-License-Identifier: Apache-2.0
"""Finds the format of a disk image by its content, and checks that the image needs no other file.

QEMU is given the format and never detects it. Otherwise a raw disk whose guest has written a qcow2 header into its
first sector would be opened as qcow2, and such a header can name other files of this machine to be read. QEMU 10 cannot
be told to ignore all such names (data-file accepts no null). An image with such a name is therefore refused, wherever
QEMU would look for it.
"""

import os
import re
import stat
import struct
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from sevsnp.errors import AGAIN, UserError
from sevsnp.qemu import vhdx

_START = 0x11000
# No command: a converter follows the names in the image, which are what the image is refused for.
CONVERT = "ask the author of the image for a qcow2 image"
_FLATTEN = "ask the author of the image for one that contains all of its data"
# qcow2's incompatible feature bits (QEMU docs/interop/qcow2): the guest's data are in another file; all known ones.
_QCOW2_DATA_FILE, _QCOW2_KNOWN = 1 << 2, (1 << 5) - 1
# The header extension with that file's name, and the maximum size of header and extensions: one cluster.
_QCOW2_NAME, _QCOW2_LARGEST = 0x44415441, 2 << 20
# The place in which QEMU looks for a VMDK's embedded descriptor, whatever its header says (block/vmdk.c).
_VMDK_DESCRIPTOR, _VMDK_SIZE = 512, 20 * 512


class DiskFormat(Enum):
    """A supported format; the value is QEMU's name for it."""

    RAW = "raw"
    QCOW2 = "qcow2"
    VMDK = "vmdk"
    VHDX = "vhdx"
    VHD = "vpc"


_CUT_VHD = "a VHD that was cut short"
_OTHERS = (
    (0, b"COWD", "an old VMDK (COWD)"),
    (0, b"# Disk DescriptorFile", "a VMDK descriptor, whose data are in other files"),
    (0x40, b"\x7f\x10\xda\xbe", "a VirtualBox disk (VDI)"),
    (0, b"Withou", "a Parallels disk"),
    (0, b"QED\0", "a QED disk"),
    (0, b"conectix", _CUT_VHD),
    (0x8001, b"CD001", "a CD image (ISO 9660)"),
)
# A raw disk, with a partition table or a file system from its first sector on.
_RAW = (
    (512, b"EFI PART"),
    (4096, b"EFI PART"),
    (0, b"XFSB"),
    (0, b"hsqs"),
    (0x400, b"\xe2\xe1\xf5\xe0"),  # erofs
    (0x10040, b"_BHRfS_M"),
    (0, b"LUKS\xba\xbe"),
    (3, b"-FVE-FS-"),
    (510, b"\x55\xaa"),
    *((sector * 512 + 24, b"LVM2 001") for sector in range(4)),
)


def is_disk_image(path: Path) -> bool:
    """Whether a file is a disk image of any format, not an archive. False for an unreadable file and a directory.

    Raises UserError for what is no file, at once: a FIFO would be waited for.
    """
    _refuse_special(path)
    try:
        start, end = _ends(path)
    except OSError:
        return False
    return _seen(start, end) is not None


def starts_like_a_disk(start: bytes) -> bool:
    """Whether the first bytes of a file (at least 69,632 where it has them) are those of a disk image."""
    return _seen(start[:_START], b"") is not None


def disk_format(path: Path) -> DiskFormat:
    """The format of a disk image. Raises UserError if it is not supported, or if the image names another file."""
    found = seen_format(path)
    if isinstance(found, DiskFormat):
        check_whole(path, found)
        return found
    expected = "expected qcow2, raw, VMDK, VHDX or VHD"
    hint = AGAIN if found == _CUT_VHD else CONVERT if found else ""
    raise UserError(f"IMAGE={path}: found {found or 'no disk image'}, {expected}", hint)


def seen_format(path: Path) -> DiskFormat | str | None:
    """The format by content alone; the name of an unsupported one; None for no disk image. The image is not checked."""
    _refuse_special(path)
    try:
        return _seen(*_ends(path))
    except OSError as error:
        raise UserError(f"IMAGE={path}: cannot be read: {error.strerror or error}") from error


def check_whole(path: Path, form: DiskFormat) -> None:
    """Raises UserError if QEMU, told that ``path`` is a ``form``, would open another file too, or could not open it.

    A raw disk names no other file, whatever its content is.
    """
    if form is DiskFormat.RAW:
        return
    try:
        with path.open("rb") as stream:
            _CHECKS[form](path, stream)
    except OSError as error:
        raise UserError(f"IMAGE={path}: cannot be read: {error.strerror or error}") from error
    except (struct.error, ValueError, OverflowError):  # truncated, or an impossible offset
        raise UserError(f"IMAGE={path}: ends within its own header") from None


_SPECIAL = {stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a character device", stat.S_IFBLK: "a block device",
            stat.S_IFSOCK: "a socket"}  # fmt: skip


def _refuse_special(path: Path) -> None:
    try:
        found = _SPECIAL.get(stat.S_IFMT(path.stat().st_mode))
    except OSError:
        return  # whoever opens it says so
    if found:
        raise UserError(f"IMAGE={path}: found {found}, expected a file", "copy what is in it to a file, and give that")


def _ends(path: Path) -> tuple[bytes, bytes]:
    with path.open("rb") as stream:
        start = stream.read(_START)
        stream.seek(max(0, os.fstat(stream.fileno()).st_size - 4096))
        return start, stream.read(4096)


def _seen(start: bytes, end: bytes) -> DiskFormat | str | None:
    """The format, the name of an unsupported one, or None for no disk image."""
    if start[:4] == b"QFI\xfb":
        return DiskFormat.QCOW2
    if start[:4] == b"KDMV":
        return DiskFormat.VMDK
    if start[:8] == b"vhdxfile":
        return DiskFormat.VHDX
    if end[-512:-504] == b"conectix":
        return DiskFormat.VHD
    for place, magic, name in _OTHERS:
        if start[place : place + len(magic)] == magic:
            return name
    if start[257:262] == b"ustar":
        return None
    second = b"EFI PART" in (end[:8], end[-512:-504])  # the first partition table may be lost
    if second or any(start[place : place + len(magic)] == magic for place, magic in _RAW) or _is_ext(start):
        return DiskFormat.RAW
    return None


def _is_ext(start: bytes) -> bool:
    """An ext superblock: its magic has only two bytes, so its block size (1 KiB << at most 6) must be valid too."""
    return start[0x438:0x43A] == b"\x53\xef" and int.from_bytes(start[0x418:0x41C], "little") <= 6


def _refuse_magic(path: Path, form: DiskFormat) -> UserError:
    return UserError(f"IMAGE={path}: its format has changed, expected {form.name}")


def _check_qcow2(path: Path, stream: BinaryIO) -> None:
    start = stream.read(_QCOW2_LARGEST)
    if start[:4] != b"QFI\xfb":
        raise _refuse_magic(path, DiskFormat.QCOW2)
    version, backing, size, bits, _, encrypted = struct.unpack_from(">IQIIQI", start, 4)
    if version not in (2, 3):
        raise UserError(f"IMAGE={path}: qcow2: found version {version}, expected 2 or 3", CONVERT)
    if backing or size:
        raise UserError(f"IMAGE={path}: qcow2 with a backing file: only half of the disk is in it", _FLATTEN)
    if encrypted:
        raise UserError(f"IMAGE={path}: qcow2: encrypted", _FLATTEN)
    (features,) = struct.unpack_from(">Q", start, 72) if version == 3 else (0,)
    if features & _QCOW2_DATA_FILE:
        raise UserError(f"IMAGE={path}: qcow2 whose data are in another file", _FLATTEN)
    if features & ~_QCOW2_KNOWN:
        raise UserError(f"IMAGE={path}: qcow2 with unknown features: {features & ~_QCOW2_KNOWN:#x}", CONVERT)
    # The first cluster contains all extensions; QEMU looks no further.
    place, end = struct.unpack_from(">I", start, 100)[0] if version == 3 else 72, 1 << min(bits, 21)
    while place < end:
        kind, length = struct.unpack_from(">II", start, place)
        if not kind:
            return
        if kind == _QCOW2_NAME:
            raise UserError(f"IMAGE={path}: qcow2 that names a file for its data", _FLATTEN)
        place += 8 + (length + 7) // 8 * 8


def _check_vmdk(path: Path, stream: BinaryIO) -> None:
    start = stream.read(_START)
    if start[:4] != b"KDMV":
        raise _refuse_magic(path, DiskFormat.VMDK)
    capacity, _, at, sectors = struct.unpack_from("<QQQQ", start, 12)
    if not capacity:
        raise UserError(f"IMAGE={path}: VMDK: a descriptor, whose data are in other files", _FLATTEN)
    if not at:
        raise UserError(f"IMAGE={path}: VMDK without a descriptor: one of the files of a larger disk", _FLATTEN)
    if at * 512 != _VMDK_DESCRIPTOR:
        raise UserError(f"IMAGE={path}: VMDK with its descriptor at sector {at}, expected 1", CONVERT)
    # QEMU searches for words in these bytes, not for lines; other programs read what follows a NUL.
    text = start[_VMDK_DESCRIPTOR : _VMDK_DESCRIPTOR + max(_VMDK_SIZE, sectors * 512)].lower()
    parents = set(re.findall(rb"parentcid\s*=\s*([^\s\0]*)", text))
    if b"parentfilenamehint" in text or not parents <= {b"ffffffff"}:
        raise UserError(f"IMAGE={path}: VMDK with a parent: only half of the disk is in it", _FLATTEN)
    # The blanks before the word do not include line ends, or a descriptor of line ends would be read again and again.
    extents = re.findall(rb"^[^\S\n]*(?:rw|rdonly|noaccess)\s+\d+\s+(\w+)[^\n\0]*", text, re.MULTILINE)
    if extents != [b"sparse"]:
        raise UserError(f"IMAGE={path}: VMDK whose data are in other files", _FLATTEN)


def _check_vhdx(path: Path, stream: BinaryIO) -> None:
    if stream.read(8) != b"vhdxfile":
        raise _refuse_magic(path, DiskFormat.VHDX)

    found = False
    for region, metadata, _ in vhdx.regions(stream):
        if region != vhdx.METADATA:
            continue
        for item, place in vhdx.items(stream, metadata):
            parent = item == vhdx.PARENT
            if item == vhdx.PARAMETERS:
                found = True
                parent = bool(vhdx.number(stream, place + 4, "<I") & 2)
            if parent:
                raise UserError(f"IMAGE={path}: VHDX with a parent: only half of the disk is in it", _FLATTEN)
    if not found:
        raise UserError(f"IMAGE={path}: VHDX without metadata: damaged")


def _check_vhd(path: Path, stream: BinaryIO) -> None:
    """Check the footer at the end. All but fixed disks have a copy of it at the start, which QEMU reads."""
    copy = stream.read(512)
    stream.seek(max(0, os.fstat(stream.fileno()).st_size - 512))
    footers = [footer for footer in (copy, stream.read(512)) if footer[:8] == b"conectix"]
    if not footers:
        raise _refuse_magic(path, DiskFormat.VHD)
    for footer in footers:
        (kind,) = struct.unpack_from(">I", footer, 60)
        if kind not in (2, 3):  # fixed, dynamic; 4 is differencing
            raise UserError(f"IMAGE={path}: VHD with a parent: only half of the disk is in it", _FLATTEN)


_CHECKS: dict[DiskFormat, Callable[[Path, BinaryIO], None]] = {
    DiskFormat.QCOW2: _check_qcow2,
    DiskFormat.VMDK: _check_vmdk,
    DiskFormat.VHDX: _check_vhdx,
    DiskFormat.VHD: _check_vhd,
}
