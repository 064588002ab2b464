# SPDX-License-Identifier: Apache-2.0
"""Disks that a host attaches so that the guest may take them for its own: a seed, a swap area, a twin, a volume.

Every disk is made from bytes or with mke2fs and mtools, without root.
"""

import struct
import zlib
from pathlib import Path

from sevsnp.archives.rootfs import Layer, make_rootfs, text_entry
from sevsnp.images.filesystem import make_ext4
from sevsnp.system.command import run

MIB = 1 << 20
SECTOR = 512
SWAP_UUID = "5eed0000-0000-4000-8000-0000000005a4"
TWIN_FILE = "hostile-twin"
VOLUME = "hostile-mark"

_PAGE = 4096
_USED = 1  # PV_EXT_USED: the physical volume is part of a group


def _blank(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        stream.truncate(size)


def _put(path: Path, *pieces: tuple[int, bytes]) -> None:
    with path.open("r+b") as stream:
        for offset, data in pieces:
            stream.seek(offset)
            stream.write(data)


def make_swap(path: Path) -> None:
    """A swap area of 32 MiB as mkswap would write it (union swap_header of the kernel's include/linux/swap.h)."""
    size = 32 * MIB
    _blank(path, size)
    uuid = bytes.fromhex(SWAP_UUID.replace("-", ""))
    header = struct.pack("<III16s16s", 1, size // _PAGE - 1, 0, uuid, b"hostile")
    _put(path, (1024, header), (_PAGE - 10, b"SWAPSPACE2"))


def make_twin(path: Path, *, label: str, mark: str, tools: Path) -> None:
    """An ext4 file system with the UUID and label of the guest's root, and a file with ``mark`` in it."""
    tar = path.with_suffix(".tar")
    make_rootfs([Layer("twin", [text_entry(TWIN_FILE, f"{mark}\n")])], tar)
    # The same function makes UUID and label of the genuine image.
    make_ext4(tar, path, tools=tools, label=label)
    tar.unlink()


def make_seed(path: Path, *, mark: str, tools: Path) -> None:
    """A NoCloud disk: vfat with the label CIDATA, whose user data runs a command as root."""
    script = f"echo {mark} uid=$(id -u) >/dev/ttyS0; echo {mark} >/etc/hostile-cloud-init"
    user_data = "\n".join(
        (
            "#cloud-config",
            # Only the module that runs the command: the others only take time.
            "cloud_init_modules: []",
            "cloud_config_modules: [runcmd]",
            "cloud_final_modules: [scripts_user]",
            "runcmd:",
            f"  - [sh, -c, '{script}']",
            "",
        )
    )
    _blank(path, 4 * MIB)
    run([tools / "mformat", "-i", path, "-v", "CIDATA", "-N", "5eed0001", "::"])
    for name, text in (("user-data", user_data), ("meta-data", "instance-id: hostile\n")):
        source = path.with_name(name)
        source.write_text(text)
        run([tools / "mcopy", "-i", path, source, f"::{name}"])
        source.unlink()


def _crc(data: bytes) -> int:
    """LVM's checksum: CRC-32 with its own start value and without the final complement."""
    return zlib.crc32(data, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def _identifier(seed: str) -> str:
    return seed.ljust(32, "0")


def _dashed(identifier: str) -> str:
    pieces, position = [], 0
    for length in (6, 4, 4, 4, 4, 4, 6):
        pieces.append(identifier[position : position + length])
        position += length
    return "-".join(pieces)


def make_volume_group(path: Path) -> None:
    """An LVM2 physical volume whose group ``hostile`` has a linear volume ``mark`` that activates automatically.

    Label, physical volume header and metadata area as in LVM2's lib/format_text/layout.h, without a second copy.
    """
    size, area_start, area_size, data_start = 32 * MIB, _PAGE, MIB - _PAGE, MIB
    volume, group, logical = _identifier("hostilepv"), _identifier("hostilevg"), _identifier("hostilelv")
    text = f"""hostile {{
id = "{_dashed(group)}"
seqno = 2
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = 8192
max_lv = 0
max_pv = 0
metadata_copies = 0

physical_volumes {{
pv0 {{
id = "{_dashed(volume)}"
device = "/dev/vdz"
status = ["ALLOCATABLE"]
flags = []
dev_size = {size // SECTOR}
pe_start = {data_start // SECTOR}
pe_count = 7
}}
}}

logical_volumes {{
mark {{
id = "{_dashed(logical)}"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
segment_count = 1
segment1 {{
start_extent = 0
extent_count = 1
type = "striped"
stripe_count = 1
stripes = [
"pv0", 0
]
}}
}}
}}
}}
contents = "Text Format Volume Group"
version = 1
description = ""
creation_host = "host"
creation_time = 1735689600
"""
    metadata = text.encode() + b"\0"
    locations = struct.pack("<QQII", SECTOR, len(metadata), _crc(metadata), 0) + bytes(24)
    header = struct.pack("<16sIQQ", b" LVM2 x[5A%r0N*>", 1, area_start, area_size) + locations
    header = header.ljust(SECTOR - 4, b"\0")
    area = struct.pack("<I", _crc(header)) + header

    areas = struct.pack("<QQQQ", data_start, 0, 0, 0) + struct.pack("<QQQQ", area_start, area_size, 0, 0)
    physical = volume.encode() + struct.pack("<Q", size) + areas + struct.pack("<II", 2, _USED) + bytes(16)
    rest = (struct.pack("<I8s", 32, b"LVM2 001") + physical).ljust(SECTOR - 20, b"\0")
    label = struct.pack("<8sQI", b"LABELONE", 1, _crc(rest)) + rest
    _blank(path, size)
    _put(path, (SECTOR, label), (area_start, area), (area_start + SECTOR, metadata))
