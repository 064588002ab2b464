# SPDX-License-Identifier: Apache-2.0
"""Finds the partitions, arrays and logical volumes of a foreign disk: their content, by its first bytes, and names."""

import os
import re
from dataclasses import dataclass, replace

from appliance.copies import SECTOR, Copies, mapped, size_of
from appliance.gpt import Table, plain_uuid, read_gpt
from appliance.lvm import activate
from appliance.md import read_member, start_arrays

MOUNTABLE = ("ext4", "xfs", "btrfs", "erofs", "squashfs")
ENCRYPTED = ("LUKS", "BitLocker")
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
    content, empty if unknown. Identities that it does not have are empty. ``type`` is the type of its partition in a
    GPT and ``flags`` its flags; ``names`` are further names in /dev, ``identities`` those below /dev/disk/by-id.
    ``origin`` is the name of what it is a snapshot of. ``why`` says why it cannot be used; then it has no ``path``.
    """

    name: str
    path: str
    kind: str
    uuid: str = ""
    label: str = ""
    number: int = 0
    partuuid: str = ""
    partlabel: str = ""
    type: str = ""
    flags: int = 0
    names: "tuple[str, ...]" = ()
    identities: "tuple[str, ...]" = ()
    origin: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.why or self.kind or 'nothing known'})"


def _label(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "replace").rstrip()


def probe(path: str) -> "tuple[str, str, str]":
    """The type of a block device's content, with its UUID and label."""
    with open(path, "rb", buffering=0) as stream:
        data = stream.read(_LOOKED_AT)
    kind = next((kind for kind, place, magic in _SIGNATURES if data[place : place + len(magic)] == magic), "")
    if kind == "ext4":
        return kind, plain_uuid(data[0x468:0x478]), _label(data[0x478:0x488])
    if kind == "xfs":
        return kind, plain_uuid(data[32:48]), _label(data[108:120])
    if kind == "btrfs":
        return kind, plain_uuid(data[0x10020:0x10030]), _label(data[0x1012B:0x1022B])
    if kind == "erofs":
        return kind, plain_uuid(data[0x430:0x440]), _label(data[0x440:0x450])
    if kind == "swap":
        return kind, plain_uuid(data[0x40C:0x41C]), _label(data[0x41C:0x42C])
    if kind == "FAT":
        serial = data[0x43:0x47] if data[0x52:0x57] == b"FAT32" else data[0x27:0x2B]
        return kind, f"{serial[3]:02X}{serial[2]:02X}-{serial[1]:02X}{serial[0]:02X}", ""
    return kind, "", ""


@dataclass(frozen=True)
class Found:
    """What is on a disk: its volumes, ``notes`` for the user, and ``reasons`` why something of it cannot be used."""

    volumes: "list[Volume]"
    notes: "list[str]"
    reasons: "list[str]"


def volumes(disk: str, copies: Copies) -> Found:
    """The partitions of a disk, or the disk itself if it has none; then its arrays; then the logical volumes."""
    with open(disk, "rb") as stream:
        table = read_gpt(stream, size_of(disk))
    found, notes = _partitions(disk, table)
    reasons: list[str] = []
    members = [member for volume in found if (member := read_member(volume.path))]
    if members:
        arrays, reasons = start_arrays(members, copies)
        of_arrays = [
            volume
            for array in arrays
            for volume in _whole_or_parts(array.device, array.name, array.names, array.identities)
        ]
        notes += [array.note for array in arrays]
        if arrays:
            # A member with its superblock at the end looks like what is in the array.
            in_arrays = {member.device for member in members}
            found = [replace(v, kind="RAID", uuid="", label="") if v.path in in_arrays else v for v in found]
        found += of_arrays
    groups = [copies.writable(volume.path) for volume in found if volume.kind == "LVM2"]
    if groups:
        logical, said = activate(groups, os.path.exists)
        reasons += said
        for each in logical:
            content = ("", "", "") if each.why else probe(each.path)
            path = "" if each.why else each.path
            found.append(
                Volume(each.path, path, *content, identities=each.identities, origin=each.origin, why=each.why)
            )
    return Found(found, notes, reasons)


def _partitions(disk: str, table: "Table | None") -> "tuple[list[Volume], list[str]]":
    """The partitions that the kernel found, else those of the table that it did not read, else the disk itself."""
    found, notes = [], []
    device = os.path.basename(disk)
    entries = {entry.number: entry for entry in table.partitions} if table else {}
    places = {int(event["PARTN"]): f"/dev/{name}" for name, event in _kernel_partitions(device).items()}
    if not places and table:
        what = "the second partition table, since the first is damaged" if table.backup else "the partition table"
        notes.append(f"read: {what}, in sectors of {table.sector} bytes")
        end = size_of(disk)
        for entry in entries.values():
            if entry.size > 0 and entry.start + entry.size <= end:
                extent = f"0 {entry.size // SECTOR} linear {disk} {entry.start // SECTOR}"
                places[entry.number] = mapped(f"{device}-part{entry.number}", extent, "--readonly")
            else:
                notes.append(f"partition {entry.number} ends after the end of the disk")
    signature = "" if table else _signature(disk)
    for number, path in sorted(places.items()):
        volume = Volume(f"/dev/vda{number}", path, *probe(path), number=number)
        if number in entries:
            entry = entries[number]
            volume = replace(volume, partuuid=entry.uuid, partlabel=entry.name, type=entry.type, flags=entry.flags)
        elif signature:
            volume = replace(volume, partuuid=f"{signature}-{number:02x}")
        found.append(volume)
    return found or [Volume("/dev/vda", disk, *probe(disk))], notes


def _kernel_partitions(device: str) -> "dict[str, dict[str, str]]":
    return {
        name: _event(f"/sys/block/{device}/{name}/uevent")
        for name in sorted(os.listdir(f"/sys/block/{device}"))
        if os.path.exists(f"/sys/block/{device}/{name}/partition")
    }


def _whole_or_parts(device: str, name: str, names: "tuple[str, ...]", identities: "tuple[str, ...]") -> "list[Volume]":
    """An array, or its partitions."""
    with open(device, "rb"):
        pass  # the kernel reads the table of an array when it is first opened
    parts = _kernel_partitions(os.path.basename(device))
    if not parts:
        return [Volume(name, device, *probe(device), names=names, identities=identities)]
    return [
        Volume(
            f"{name}p{event['PARTN']}",
            f"/dev/{part}",
            *probe(f"/dev/{part}"),
            names=tuple(f"{each}p{event['PARTN']}" for each in names),
            identities=tuple(f"{each}-part{event['PARTN']}" for each in identities),
        )
        for part, event in parts.items()
    ]


def _signature(disk: str) -> str:
    """The signature of a DOS partition table, which begins the PARTUUID of its partitions."""
    with open(disk, "rb") as stream:
        return f"{int.from_bytes(stream.read(444)[440:444], 'little'):08x}"


def _event(path: str) -> "dict[str, str]":
    with open(path, encoding="utf-8", errors="replace") as stream:
        return dict(line.split("=", 1) for line in stream.read().splitlines() if "=" in line)


_PARTITION = re.compile(r"/dev/(?:(?:[svh]|xv)d[a-z]|nvme\d+n\d+p|mmcblk\d+p)(\d+)")
# The names below by-id and by-path are of the disk that the image once was; the number of the partition is not.
_NUMBERED = re.compile(r"(?:by-id|by-path)/(?!dm-|md-).*-part(\d+)")


def find(spec: str, among: "list[Volume]") -> "Volume | None":
    """The volume that an fstab or a user calls ``spec``; the disk's own letter or number does not matter."""
    key, equals, value = spec.partition("=")
    value = value.strip("\"'")
    if match := _NUMBERED.fullmatch(spec.removeprefix("/dev/disk/")):
        return next((volume for volume in among if volume.number == int(match[1])), None)
    if spec.startswith("/dev/disk/by-id/"):
        return next((volume for volume in among if spec.rpartition("/")[2] in volume.identities), None)
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
    return next((volume for volume in among if spec in (volume.name, *volume.names)), None)


def _mapped(name: str) -> str:
    return "-".join(part.replace("-", "--") for part in name[len("/dev/") :].split("/"))
