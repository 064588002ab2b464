# SPDX-License-Identifier: Apache-2.0
"""Reads a foreign image's own mount units (systemd.mount(5)), as lines of its fstab."""

import os
import re

from appliance.fstab import Line, real_path

_FOLDERS = tuple(f"{folder}/systemd/system" for folder in ("etc", "usr/local/lib", "usr/lib", "lib"))
_LONGEST = 1 << 20
_SETTING = re.compile(r"^\s*(What|Where|Type|Options)\s*=[ \t]*(.*?)\s*$", re.MULTILINE)


def read_mount_units(root: str) -> "list[Line]":
    """The mount units of a disk's file systems that a target wants or an automount unit uses.

    A unit that is masked or a template gives none. systemd goes on without a file system that is not there, so each
    line is optional.
    """
    found = {}
    for name in _wanted(root):
        path = next((path for folder in _FOLDERS if os.path.lexists(path := f"{root}/{folder}/{name}")), "")
        path = real_path(root, path[len(root) + 1 :]) if path else ""
        if path:
            with open(path, encoding="utf-8", errors="surrogateescape") as stream:
                if line := parse_mount_unit(stream.read(_LONGEST)):
                    found[line.place] = line
    return list(found.values())


def parse_mount_unit(text: str) -> "Line | None":
    """The unit as a line of fstab; None if it mounts no device by a fixed name."""
    values = dict(_SETTING.findall(text))
    device, place = values.get("What", "").strip('"'), values.get("Where", "").strip('"')
    if not place.startswith("/") or "%" in device + place:
        return None
    if not device.startswith("/dev/") and not re.match(r"(PART)?(UUID|LABEL)=", device):
        return None
    options = tuple(filter(None, values.get("Options", "").split(",")))
    return Line(device, os.path.normpath(place), values.get("Type") or "auto", (*options, "nofail"))


def _wanted(root: str) -> "list[str]":
    names = set()
    for folder in _FOLDERS:
        for each in _listed(f"{root}/{folder}"):
            if each.endswith((".wants", ".requires")):
                names |= set(_listed(f"{root}/{folder}/{each}"))
    units = {re.sub(r"\.automount$", ".mount", name) for name in names}
    return sorted(name for name in units if name.endswith(".mount") and "@" not in name)


def _listed(path: str) -> "list[str]":
    return os.listdir(path) if os.path.isdir(path) and not os.path.islink(path) else []
