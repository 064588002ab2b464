# SPDX-License-Identifier: Apache-2.0
"""Finds the partitions and logical volumes of a foreign disk: their content, by its first bytes, and their names."""

import os
import re
from dataclasses import dataclass

import linux

MOUNTABLE = ("ext4", "xfs", "btrfs", "erofs", "squashfs")
ENCRYPTED = ("LUKS", "BitLocker")
_LVM = "/usr/sbin/lvm"
_LOOKED_AT = 0x10000 + 4096

# The offset of each signature, in bytes. Signatures that could be left over from an earlier use come last.
_SIGNATURES = (
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("BitLocker", 3, b"-FVE-FS-"),
    ("LVM2", 512 + 24, b"LVM2 001"),
    ("LVM2", 24, b"LVM2 001"),
    ("LVM2", 1024 + 24, b"LVM2 001"),
    ("LVM2", 1536 + 24, b"LVM2 001"),
    ("RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("RAID", 0, b"\xfc\x4e\x2b\xa9"),
    ("btrfs", 0x10040, b"_BHRfS_M"),
    ("xfs", 0, b"XFSB"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("swap", 4086, b"SWAP-SPACE"),
    ("ext4", 0x438, b"\x53\xef"),
    ("f2fs", 0x400, b"\x10\x20\xf5\xf2"),
    ("erofs", 0x400, b"\xe2\xe1\xf5\xe0"),
    ("squashfs", 0, b"hsqs"),
    ("iso9660", 0x8001, b"CD001"),
    ("NTFS", 3, b"NTFS    "),
    ("FAT", 0x52, b"FAT32   "),
    ("FAT", 0x36, b"FAT1"),
)


@dataclass(frozen=True)
class Volume:
    """A partition, a logical volume, or a whole disk without a partition table.

    ``name`` is the user's name for it (/dev/vda2, /dev/GROUP/VOLUME), ``path`` its path here, ``kind`` the type of its
    content, empty if unknown. Identities that it does not have are empty.
    """

    name: str
    path: str
    kind: str
    uuid: str = ""
    label: str = ""
    number: int = 0
    partuuid: str = ""
    partlabel: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.kind or 'nothing known'})"


def _uuid(data: bytes) -> str:
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _label(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "replace").rstrip()


def probe(path: str) -> "tuple[str, str, str]":
    """The type of a block device's content, with its UUID and label."""
    with open(path, "rb", buffering=0) as stream:
        data = stream.read(_LOOKED_AT)
    kind = next((kind for kind, place, magic in _SIGNATURES if data[place : place + len(magic)] == magic), "")
    if kind == "ext4":
        return kind, _uuid(data[0x468:0x478]), _label(data[0x478:0x488])
    if kind == "xfs":
        return kind, _uuid(data[32:48]), _label(data[108:120])
    if kind == "btrfs":
        return kind, _uuid(data[0x10020:0x10030]), _label(data[0x1012B:0x1022B])
    if kind == "erofs":
        return kind, _uuid(data[0x430:0x440]), _label(data[0x440:0x450])
    if kind == "swap":
        return kind, _uuid(data[0x40C:0x41C]), _label(data[0x41C:0x42C])
    if kind == "FAT":
        serial = data[0x43:0x47] if data[0x52:0x57] == b"FAT32" else data[0x27:0x2B]
        return kind, f"{serial[3]:02X}{serial[2]:02X}-{serial[1]:02X}{serial[0]:02X}", ""
    return kind, "", ""


def volumes(disk: str) -> "list[Volume]":
    """The partitions of a disk, or the disk itself if it has none, and then the volumes of its volume groups."""
    found = []
    device = os.path.basename(disk)
    identities = partition_uuids(disk)
    for name in sorted(os.listdir(f"/sys/block/{device}")):
        if os.path.exists(f"/sys/block/{device}/{name}/partition"):
            event = _event(f"/sys/block/{device}/{name}/uevent")
            number = int(event["PARTN"])
            found.append(
                Volume(
                    f"/dev/vda{number}",
                    f"/dev/{name}",
                    *probe(f"/dev/{name}"),
                    number=number,
                    partuuid=identities.get(number, ""),
                    partlabel=event.get("PARTNAME", ""),
                )
            )
    if not found:
        found = [Volume("/dev/vda", disk, *probe(disk))]
    found.sort(key=lambda volume: volume.number)
    if any(volume.kind == "LVM2" for volume in found):
        found += _logical_volumes(disk)
    return found


def partition_uuids(disk: str) -> "dict[int, str]":
    """The PARTUUID of each partition by number: stored in a GPT; signature and number for a DOS table."""
    with open(disk, "rb") as stream:
        start = stream.read(1024)
        if start[512:520] == b"EFI PART":
            table, count, size = (int.from_bytes(start[a:b], "little") for a, b in ((584, 592), (592, 596), (596, 600)))
            stream.seek(table * 512)
            entries = [stream.read(min(size, 4096)) for _ in range(min(count, 1024))]
            return {number: _mixed_uuid(entry[16:32]) for number, entry in enumerate(entries, 1) if any(entry[:16])}
    signature = int.from_bytes(start[440:444], "little")
    return {number: f"{signature:08x}-{number:02x}" for number in range(1, 64)}


def _mixed_uuid(data: bytes) -> str:
    """A UUID in a GPT's form: its first three fields are little-endian."""
    return _uuid(data[3::-1] + data[5:3:-1] + data[7:5:-1] + data[8:])


def _event(path: str) -> "dict[str, str]":
    with open(path, encoding="utf-8", errors="replace") as stream:
        return dict(line.split("=", 1) for line in stream.read().splitlines() if "=" in line)


def _logical_volumes(disk: str) -> "list[Volume]":
    """Activate every volume group of the disk, read-only, and no volume group of another disk."""

    def lvm(command: str, *words: str, groups: "tuple[str, ...]" = ()) -> str:
        read_only = ",".join(f'"{group}"' for group in groups)
        settings = (
            f'devices {{ use_devicesfile=0 hints="none" global_filter=["a|^{disk}[0-9]*$|","r|.*|"]'
            ' obtain_device_list_from_udev=0 external_device_info_source="none" }'
            " activation { udev_sync=0 udev_rules=0 monitoring=0"
            + (f" read_only_volume_list=[{read_only}] " if groups else " ")
            + "} backup { backup=0 archive=0 } global { use_lvmpolld=0 notify_dbus=0 }"
        )
        return linux.run(_LVM, command, "--quiet", "--config", settings, *words)

    groups = tuple(lvm("vgs", "--noheadings", "-o", "vg_name").split())
    if not groups:
        return []
    lvm("vgchange", "--activate", "y", "--activationmode", "complete", *groups, groups=groups)
    found = []
    for line in lvm("lvs", "--noheadings", "--separator", "/", "-o", "vg_name,lv_name", *groups).split():
        path = f"/dev/{line}"
        if os.path.exists(path):  # a pool, for example, has none
            found.append(Volume(path, path, *probe(path)))
    return found


_PARTITION = re.compile(r"/dev/(?:(?:[svh]|xv)d[a-z]|nvme\d+n\d+p|mmcblk\d+p)(\d+)")


def find(spec: str, among: "list[Volume]") -> "Volume | None":
    """The volume that an fstab or a user calls ``spec``; the disk's own letter or number does not matter."""
    key, equals, value = spec.partition("=")
    value = value.strip("\"'")
    if spec.startswith("/dev/disk/by-"):
        key, _, value = spec[len("/dev/disk/by-") :].partition("/")
        key, equals, value = key.upper(), "=", re.sub(r"\\x([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), value)
    if equals:
        field = key.lower()
        if field not in ("uuid", "label", "partuuid", "partlabel"):
            return None
        wanted = value.lower() if field.endswith("uuid") else value
        for volume in among:
            own = getattr(volume, field)
            if own and wanted == (own.lower() if field.endswith("uuid") else own):
                return volume
        return None
    if match := _PARTITION.fullmatch(spec):
        return next((volume for volume in among if volume.number == int(match[1])), None)
    if spec.startswith("/dev/mapper/"):
        # The kernel's name of a logical volume: dashes in its parts are doubled.
        return next((v for v in among if f"/dev/mapper/{_mapped(v.name)}" == spec), None)
    return next((volume for volume in among if volume.name == spec), None)


def _mapped(name: str) -> str:
    return "-".join(part.replace("-", "--") for part in name[len("/dev/") :].split("/"))
