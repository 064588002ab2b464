# SPDX-License-Identifier: Apache-2.0
"""Starts the MD arrays whose members are on a foreign disk, read-only and on copies, through sysfs as mdadm would.

Source of the superblocks: linux/raid/md_p.h; of the files: Documentation/admin-guide/md.rst.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.copies import Copies
from appliance.gpt import plain_uuid
from appliance.kernel_log import KernelLog

_MAGIC = b"\xfc\x4e\x2b\xa9"
_OLD = 64 << 10  # the alignment of a superblock of version 0.90 at the end of its device
_NEW = 4096
_LEVELS = {0xFFFFFFFF: "linear", 0: "raid0", 1: "raid1", 4: "raid4", 5: "raid5", 6: "raid6", 10: "raid10"}


@dataclass(frozen=True)
class Member:
    """A member of an array: its device, the version of its superblock, and the array's UUID, name, level and size."""

    device: str
    version: str
    array: str
    name: str
    level: str
    disks: int


@dataclass(frozen=True)
class Array:
    """A started array: its ``device`` here, its ``name`` (/dev/md/NAME), and its further names."""

    device: str
    name: str
    names: "tuple[str, ...]"
    identities: "tuple[str, ...]"
    note: str


def read_member(device: str) -> "Member | None":
    """The superblock of a member; None for any other device."""
    with open(device, "rb", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        last = (size // 512 - 16) // 8 * 8 * 512
        for version, place in (("1.2", _NEW), ("1.1", 0), ("1.0", last), ("0.90", size // _OLD * _OLD - _OLD)):
            if place < 0:
                continue
            stream.seek(place)
            data = stream.read(_NEW)
            if data[:4] == _MAGIC and data[4] == (version[0] == "1"):
                return (_old if version == "0.90" else _new)(device, version, data)
    return None


def _new(device: str, version: str, data: bytes) -> Member:
    name = data[32:64].partition(b"\0")[0].decode("utf-8", "replace")
    return Member(device, version, plain_uuid(data[16:32]), name, _level(data, 72), _number(data, 92))


def _old(device: str, version: str, data: bytes) -> Member:
    array = plain_uuid(data[20:24] + data[52:64])
    return Member(device, version, array, str(_number(data, 44)), _level(data, 28), _number(data, 40))


def _number(data: bytes, place: int) -> int:
    return int.from_bytes(data[place : place + 4], "little")


def _level(data: bytes, place: int) -> str:
    number = _number(data, place)
    return _LEVELS.get(number, f"level {number}")


def start_arrays(members: "Iterable[Member]", copies: Copies) -> "tuple[list[Array], list[str]]":
    """Start each array of the members; returns the started arrays, and the kernel's reasons for the others."""
    arrays: dict[str, list[Member]] = {}
    for member in members:
        arrays.setdefault(member.array, []).append(member)
    started, reasons = [], []
    for uuid, found in arrays.items():
        first = found[0]
        log = KernelLog()
        try:
            device = _start(found, copies)
            short = first.name.rpartition(":")[2] or uuid
            note = f"MD array {short}: {first.level} with {len(found)} of {first.disks} members"
            names = (f"/dev/md{short}",) if short.isdigit() else ()
            identities = (f"md-uuid-{_as_mdadm(uuid)}", *([f"md-name-{first.name}"] if first.name else []))
            started.append(Array(device, f"/dev/md/{short}", names, identities, note))
        except OSError as error:
            said = log.said() or error.strerror
            reasons.append(f"MD array ({first.level}, {len(found)} of {first.disks} members): {said}")
        finally:
            log.close()
    return started, reasons


def _start(members: "list[Member]", copies: Copies) -> str:
    number = next(number for number in range(127, 0, -1) if not os.path.exists(f"/sys/block/md{number}"))
    _write("/sys/module/md_mod/parameters/start_dirty_degraded", "1")
    _write("/sys/module/md_mod/parameters/new_array", f"md{number}")
    place = f"/sys/block/md{number}/md"
    try:
        _write(f"{place}/metadata_version", members[0].version)
        for member in members:
            status = os.stat(copies.writable(member.device))
            _write(f"{place}/new_dev", f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
        _write(f"{place}/array_state", "readonly")
    except OSError:
        _write(f"{place}/array_state", "clear")
        raise
    return f"/dev/md{number}"


def _as_mdadm(uuid: str) -> str:
    return ":".join(re.findall("........", uuid.replace("-", "")))


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as stream:
        stream.write(text)
