# SPDX-License-Identifier: Apache-2.0
"""What tells several root file systems apart: the system's name, the host's name, the age, what is a snapshot."""

import fcntl
import os
import re
import time

from appliance.fstab import real_path

_GET_SUBVOL_INFO = 0x81F8943C  # linux/btrfs.h: BTRFS_IOC_GET_SUBVOL_INFO, 504 bytes
_INFO, _PARENT, _MADE = 504, slice(312, 328), slice(392, 400)
_LONGEST = 1 << 16
_LETTERS = 60


def describe(path: str) -> str:
    """A line about the root at ``path``: its os-release's name, its host name, and when it was last changed."""
    release = _text(path, "etc/os-release") or _text(path, "usr/lib/os-release")
    name = re.search(r'^PRETTY_NAME=["\']?([^"\'\n]*)', release, re.MULTILINE)
    name = name or re.search(r'^ID=["\']?([^"\'\n]*)', release, re.MULTILINE)
    host = _text(path, "etc/hostname").strip()
    changed = max((_changed(f"{path}/{each}") for each in ("etc", "usr", "var/log", "var/lib")), default=0.0)
    parts = [
        name[1][:_LETTERS] if name else "",
        f"host {host[:_LETTERS]}" if host else "",
        f"changed {_day(changed)}" if changed else "",
    ]
    return ", ".join(filter(None, parts))


def snapshot(path: str) -> str:
    """When the btrfs subvolume at ``path`` was made as a snapshot; empty if it is none."""
    info = bytearray(_INFO)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _GET_SUBVOL_INFO, info)
        finally:
            os.close(descriptor)
    except OSError:
        return ""
    return f"a snapshot of {_day(int.from_bytes(info[_MADE], 'little'))}" if any(info[_PARENT]) else ""


def _text(root: str, name: str) -> str:
    path = real_path(root, name)
    if not path:
        return ""
    with open(path, encoding="utf-8", errors="replace") as stream:
        return stream.read(_LONGEST)


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
