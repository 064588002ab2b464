# SPDX-License-Identifier: Apache-2.0
"""Activates the LVM volume groups of a foreign disk on copies of its physical volumes; errors are LVM's own words.

Thin pools, RAID and exported groups cannot be activated without writing. What is written ends with the job.
"""

import fcntl
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_LVM = "/usr/sbin/lvm"
_READ_ONLY = 0x125D  # linux/fs.h: BLKROSET
# The first letter of lv_attr (lvs(8)) of what has no content of its own: pools, and parts of other volumes.
_PARTS = "tTdDeiIlpv"
_LETTERS = 400
_NOISE = re.compile(r"^\s*(WARNING: |/dev/\S+: )?")


@dataclass(frozen=True)
class LogicalVolume:
    """A logical volume: ``path`` is /dev/GROUP/VOLUME, ``identities`` its names below /dev/disk/by-id.

    ``origin`` is what it is a snapshot of, or empty. ``why`` says why it is not active; then ``path`` does not exist.
    """

    path: str
    identities: "tuple[str, ...]"
    origin: str
    why: str


def activate(devices: "Sequence[str]", exists: "Callable[[str], bool]") -> "tuple[list[LogicalVolume], list[str]]":
    """The volumes of all groups on ``devices``, which LVM may write to, and what LVM said against a group."""
    accepted = ",".join(f'"a|^{device}$|"' for device in devices)
    settings = (
        f'devices {{ use_devicesfile=0 hints="none" global_filter=[{accepted},"r|.*|"]'
        ' obtain_device_list_from_udev=0 external_device_info_source="none" md_component_detection=0 }'
        " activation { udev_sync=0 udev_rules=0 monitoring=0 } backup { backup=0 archive=0 }"
        ' global { use_lvmpolld=0 notify_dbus=0 thin_check_executable="" cache_check_executable="" }'
    )

    def lvm(command: str, *words: str) -> "tuple[str, str]":
        """What a command printed, and what it said against it if it failed."""
        done = subprocess.run(
            [_LVM, command, "--quiet", "--config", settings, *words],
            env={"PATH": "/usr/sbin:/usr/bin", "DM_DISABLE_UDEV": "1", "LVM_SUPPRESS_FD_WARNINGS": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        said = done.stderr.decode(errors="replace")
        return done.stdout.decode(errors="replace"), reason(said) if done.returncode else ""

    said: list[str] = []
    rows, failed = lvm("vgs", "--noheadings", "--separator", "|", "-o", "vg_name,vg_attr")
    groups = [row.strip().split("|") for row in rows.splitlines() if "|" in row]
    if failed and not groups:
        said.append(failed)
    reasons: dict[str, str] = {}
    for group, attributes in groups:
        if attributes[2:3] == "x":
            _, failed = lvm("vgimport", group)
        _, failed = lvm("vgchange", "--activate", "y", "--ignoreactivationskip", "--activationmode", "complete", group)
        if failed:
            reasons[group] = failed
            said.append(f"volume group {group}: {failed}")
    if not groups:
        return [], said or ["LVM finds no volume group on its physical volumes"]
    columns = "vg_name,lv_name,vg_uuid,lv_uuid,origin,lv_attr"
    rows, failed = lvm("lvs", "--noheadings", "--separator", "|", "-o", columns, *(group for group, _ in groups))
    found = []
    for row in rows.splitlines():
        group, name, group_uuid, uuid, origin, attributes = (*row.strip().split("|"), *[""] * 6)[:6]
        path = f"/dev/{group}/{name}"
        if not name or attributes[:1] in _PARTS:
            continue
        active = exists(path)
        if active:
            _set_read_only(path)
        identities = (
            f"dm-uuid-LVM-{group_uuid.replace('-', '')}{uuid.replace('-', '')}",
            f"dm-name-{group.replace('-', '--')}-{name.replace('-', '--')}",
        )
        why = "" if active else reasons.get(group, "LVM did not activate it")
        found.append(LogicalVolume(path, identities, f"/dev/{group}/{origin}" if origin else "", why))
    # A snapshot has the identities of its origin, which is what a name means.
    return sorted(found, key=lambda volume: bool(volume.origin)), said


def reason(said: str) -> str:
    """LVM's messages in one line."""
    lines = dict.fromkeys(_NOISE.sub("", line).strip() for line in said.splitlines())
    return "; ".join(filter(None, lines))[:_LETTERS] or "it failed and gave no reason"


def _set_read_only(path: str) -> None:
    # As on the disk itself: a file system with a journal to replay says so, and gets a copy.
    with open(path, "rb") as stream:
        fcntl.ioctl(stream, _READ_ONLY, (1).to_bytes(4, "little"))
