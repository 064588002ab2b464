# SPDX-License-Identifier: Apache-2.0
"""Reads a foreign image's own fstab, and resolves paths inside a root that is mounted elsewhere."""

import errno
import os
import re
import stat
from dataclasses import dataclass

from links import follow

_LONGEST = 1 << 20
_KERNEL = ("/dev", "/proc", "/sys", "/run", "/tmp")
_NO_DISK = re.compile(
    r"(tmpfs|proc|sysfs|devpts|devtmpfs|nfs4?|cifs|smb3|9p|virtiofs|fuse\..*|overlay|none|debugfs|tracefs|cgroup2?"
    r"|configfs|hugetlbfs|mqueue|efivarfs|bpf|securityfs|autofs|ceph|sshfs|iso9660|udf)"
)


@dataclass(frozen=True)
class Line:
    """One line of fstab: device, mount point, type and options."""

    device: str
    place: str
    kind: str
    options: tuple[str, ...]

    @property
    def subvolume(self) -> str:
        """The btrfs subvolume in the options, without the leading slash; empty for the default one."""
        return next((o.partition("=")[2].strip("/") for o in self.options if o.startswith("subvol=")), "")

    @property
    def selector(self) -> str:
        """The mount option that selects the btrfs subvolume, or an empty string."""
        if self.subvolume:
            return f"subvol=/{self.subvolume}"
        return next((option for option in self.options if option.startswith("subvolid=")), "")

    @property
    def optional(self) -> bool:
        return "nofail" in self.options

    def no_disk(self) -> str:
        """Why the line is not a disk's file system to take over; empty if it is one."""
        if _NO_DISK.fullmatch(self.kind):
            return self.kind
        if "bind" in self.options or "rbind" in self.options:
            return f"a bind mount of {self.device}"
        if "noauto" in self.options and "x-systemd.automount" not in self.options:
            return "noauto"
        if any(self.place == name or self.place.startswith(f"{name}/") for name in _KERNEL):
            return "made anew at each boot"
        if self.place == "/.snapshots" or self.place.startswith("/.snapshots/"):
            return "snapshots"
        return ""


def read_fstab(root: str) -> "list[Line]":
    """The lines of /etc/fstab below ``root`` for places inside it; none if there is no such file."""
    path = real_path(root, "etc/fstab")
    if not path:
        return []
    with open(path, encoding="utf-8", errors="surrogateescape") as stream:
        text = stream.read(_LONGEST)
    return parse_fstab(text)


def parse_fstab(text: str) -> "list[Line]":
    """Parse fstab(5). Of several lines for a place the last wins, as it does when all are mounted."""
    found: dict[str, Line] = {}
    for each in text.splitlines():
        fields = [_unescaped(field) for field in each.split()]
        if len(fields) < 3 or fields[0].startswith("#"):
            continue
        options = tuple(fields[3].split(",")) if len(fields) > 3 else ()
        place = os.path.normpath(fields[1]) if fields[1].startswith("/") else fields[1]
        place = "/" if place == "//" else place
        if fields[2] == "swap" or place.startswith("/"):
            found.pop(place, None)
            found[place if place.startswith("/") else fields[0]] = Line(fields[0], place, fields[2], options)
    return list(found.values())


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def real_place(root: str, mounts: "dict[str, str]", name: str) -> str:
    """The place of the directory ``name`` in a root, relative and without links; it may not exist yet.

    ``mounts`` are the file systems already mounted in the root, elsewhere. Raises OSError for a circle of links, and if
    the place or a directory above it is something else.
    """

    def here(place: str) -> str:
        above = max((each for each in mounts if place == each or place.startswith(f"{each}/")), key=len, default="")
        return f"{mounts[above]}{place[len(above) :]}" if above else f"{root}/{place}"

    def target(place: str) -> "str | None":
        return os.readlink(here(place)) if os.path.islink(here(place)) else None

    found = str(follow(name, target))
    parts = found.split("/")
    for number in range(1, len(parts) + 1):
        path = here("/".join(parts[:number]))
        if os.path.lexists(path) and not os.path.isdir(path):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
    return found


def real_path(root: str, name: str) -> str:
    """The regular file ``name`` inside ``root``, with symbolic links followed there; empty for anything else."""

    def target(place: str) -> "str | None":
        here = f"{root}/{place}"
        return os.readlink(here) if stat.S_ISLNK(os.lstat(here).st_mode) else None

    try:
        found = f"{root}/{follow(name, target)}"
        return found if stat.S_ISREG(os.lstat(found).st_mode) else ""
    except OSError:
        return ""
