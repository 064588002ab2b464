# SPDX-License-Identifier: Apache-2.0
"""The job `import_image`: finds the root file system on a foreign disk and streams all of it as a tar to another disk.

The disk `image` is read-only. Only this machine's kernel, which ends with the job, ever mounts it. The image's own
fstab names separate file systems to include.
"""

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import linux
from appliance.fstab import Line, read_fstab, real_path
from appliance.mount_units import read_mount_units
from appliance.tree_tar import TreeTar, add_tree
from appliance.volumes import ENCRYPTED, MOUNTABLE, Volume, find, volumes

Say = Callable[..., None]

MODULES = ("appliance",)

_FLAGS = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_SUBVOLUME = 256  # the inode number of every btrfs subvolume's root
_JOURNAL = 4 << 30
_SECTOR = 512


class Refused(Exception):
    """The image is refused: the reason, and what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class Root:
    """A root file system that was found: its volume, its btrfs subvolume, and its mount point."""

    volume: Volume
    subvolume: str
    path: str

    @property
    def name(self) -> str:
        return f"{self.volume.name}:{self.subvolume}" if self.subvolume else self.volume.name

    @property
    def selector(self) -> str:
        """The mount option that selects it."""
        return f"subvol=/{self.subvolume}" if self.subvolume else ""


def run(job: "dict[str, Any]", secret: bytes, say: Say) -> "dict[str, Any]":
    """Write the tar on the disk ``output``; ``job`` has ``root_device``, which is empty if it must be found.

    Returns ``bytes`` and ``entries`` of the tar, ``root``, and ``notes`` for the user; or ``refused`` and ``hint``. The
    last 4 GiB of ``output`` are scratch space.
    """
    image, output = linux.find_disks("image", "output")
    say(step="looking for the root")
    disk = Disk(image, output)
    try:
        root = disk.choose(str(job["root_device"]))
        disk.notes.append(f"root file system: {root.name} ({root.volume.kind})")
        mounts = disk.fold(root)
        size, entries = _write(disk, root, mounts, output, say)
    except Refused as refused:
        return {"refused": str(refused), "hint": refused.hint}
    return {"bytes": size, "entries": entries, "root": root.name, "notes": disk.notes}


def _write(disk: "Disk", root: Root, mounts: "dict[str, str]", output: str, say: Say) -> "tuple[int, int]":
    total = sum(_used(path) for path in {root.path, *mounts.values()})
    descriptor = os.open(output, os.O_WRONLY | os.O_CLOEXEC)
    tar = TreeTar(descriptor, lambda done: say(step="reading", done=min(done, total), total=total))
    add_tree(tar, root.path, mounts, _skipped)
    tar.close()
    os.close(descriptor)
    disk.notes += [f"left out: {what}: {count}" for what, count in sorted(tar.left_out.items())]
    return tar.size, tar.entries


def _used(path: str) -> int:
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def _skipped(name: str, path: str) -> str:
    if name.rpartition("/")[2] == ".snapshots" and os.lstat(path).st_ino == _SUBVOLUME:
        return "btrfs snapshots"
    return ""


class Disk:
    """The foreign disk, its volumes, and their mounts; ``notes`` are messages for the user."""

    def __init__(self, image: str, output: str) -> None:
        self.volumes = volumes(image)
        self.notes: list[str] = []
        self._output = output
        self._mounted: dict[tuple[str, str], str] = {}
        self._replayed: dict[str, str] = {}

    def mount(self, volume: Volume, options: str = "") -> str:
        """Mount a volume read-only and return where; after an unclean shutdown, its journal is replayed first."""
        key = (volume.path, options)
        if key not in self._mounted:
            place = f"/run/image/{len(self._mounted)}"
            try:
                self._try(volume, place, options)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise
                # The journal has the latest writes. Only a kernel that may write can replay it.
                self._replayed[volume.path] = self._writable(volume)
                self._try(volume, place, options)
                self.notes.append(f"{volume.name}: was not shut down cleanly; its journal was replayed, in a copy")
            self._mounted[key] = place
        return self._mounted[key]

    def _try(self, volume: Volume, place: str, options: str) -> None:
        source = self._replayed.get(volume.path, volume.path)
        options = ",".join(filter(None, ("nouuid" if volume.kind == "xfs" else "", options)))
        linux.mount(source, place, volume.kind, _FLAGS, options)

    def _writable(self, volume: Volume) -> str:
        """A writable device with the volume's content: changes go to the end of the output disk."""
        name = f"replayed{len(self._replayed)}"
        journal = _JOURNAL // 4 // _SECTOR
        start = (_size(self._output) - (len(self._replayed) + 1) * _JOURNAL // 4) // _SECTOR
        for what, table in (
            (f"{name}-changes", f"0 {journal} linear {self._output} {start}"),
            (name, f"0 {_size(volume.path) // _SECTOR} snapshot {volume.path} /dev/mapper/{name}-changes N 8"),
        ):
            linux.run("/usr/sbin/dmsetup", "create", what, "--noudevsync", "--noudevrules", "--table", table)
            linux.run("/usr/sbin/dmsetup", "mknodes", what)
        return f"/dev/mapper/{name}"

    def choose(self, asked: str) -> Root:
        """The root file system, or the one that ``asked`` names. Raises Refused unless there is exactly one."""
        if asked:
            return self._asked(asked)
        found = [root for volume in self.volumes if volume.kind in MOUNTABLE for root in self._roots(volume)]
        if len(found) > 1:
            names = ", ".join(root.name for root in found)
            raise Refused(f"several root file systems: {names}", f"choose one: ROOT_DEVICE={found[0].name}")
        if found:
            return found[0]
        held = ", ".join(map(str, self.volumes))
        locked = [volume for volume in self.volumes if volume.kind in ENCRYPTED]
        if locked:
            raise Refused(
                f"encrypted: {', '.join(map(str, locked))}; no root file system beside it in: {held}",
                "decrypt it in its own machine first (cryptsetup reencrypt --decrypt), or copy its files into a tar",
            )
        raise Refused(
            f"no root file system (one with /etc/os-release and an init) in: {held}",
            f"file systems that can be read: {', '.join(MOUNTABLE)}, in partitions or on LVM2",
        )

    def _asked(self, asked: str) -> Root:
        device, _, subvolume = asked.partition(":")
        subvolume = subvolume.strip("/")
        volume = find(device, self.volumes)
        held = ", ".join(map(str, self.volumes))
        if volume is None:
            raise Refused(f"ROOT_DEVICE={asked}: no such partition or volume, found: {held}")
        if volume.kind not in MOUNTABLE or (subvolume and volume.kind != "btrfs"):
            what = f"encrypted ({volume.kind})" if volume.kind in ENCRYPTED else volume.kind or "nothing known"
            raise Refused(f"ROOT_DEVICE={asked}: found {what}, expected a file system: {', '.join(MOUNTABLE)}")
        if subvolume:
            root = Root(volume, subvolume, "")
            root = replace(root, path=self.mount(volume, root.selector))
            found = [root] if self._is_root(root.path) else []
        else:
            found = self._roots(volume)
        if not found:
            raise Refused(f"ROOT_DEVICE={asked}: no root file system: it lacks /etc/os-release or an init")
        if len(found) > 1:
            raise Refused(f"ROOT_DEVICE={asked}: several subvolumes: {', '.join(root.name for root in found)}")
        return found[0]

    def _roots(self, volume: Volume) -> "list[Root]":
        """The root file systems of a volume; on btrfs the default subvolume, else those whose own fstab names them."""
        try:
            path = self.mount(volume)
        except OSError as error:
            self.notes.append(f"{volume}: cannot be mounted: {error.strerror}")
            return []
        default = [Root(volume, "", path)] if self._is_root(path) else []
        if volume.kind != "btrfs":
            return default
        wanted = next((line.subvolume for root in default for line in read_fstab(root.path) if line.place == "/"), "")
        top = self._top(volume)
        others = [Root(volume, name, f"{top}/{name}") for name in _subvolumes(top)]
        others = [root for root in others if self._is_root(root.path)]
        # A snapshot of a root has the root's fstab, too, which names the original.
        own = [
            root
            for root in others
            if any(line.place == "/" and line.subvolume == root.subvolume for line in read_fstab(root.path))
        ]
        found = [root for root in own if root.subvolume == wanted] or default or own or others
        return [replace(root, path=self.mount(volume, root.selector)) for root in found]

    def _top(self, volume: Volume) -> str:
        place = f"/run/image/top{len(self._mounted)}"
        self._try(volume, place, "subvolid=5")
        return place

    def _is_root(self, path: str, usr: str | None = None) -> bool:
        """Whether this is a root file system; ``usr`` is its separate /usr, None while that is unknown."""
        release = any(os.path.lexists(f"{path}/{name}") for name in ("etc/os-release", "usr/lib/os-release"))
        init = any(_has_init(path, name) for name in ("sbin", "usr/sbin", "bin", "usr/bin"))
        if usr is None:  # with a separate /usr the init is not visible yet
            return release and (init or any(line.place == "/usr" for line in read_fstab(path)))
        return release and (init or (bool(usr) and any(_has_init(usr, name) for name in ("sbin", "bin"))))

    def fold(self, root: Root) -> "dict[str, str]":
        """Mount what the image's own fstab and mount units mount below its root.

        Returns the mount points here by relative path.
        """
        mounts: dict[str, str] = {}
        for line in (*read_fstab(root.path), *read_mount_units(root.path)):
            if line.place == "/" or line.kind == "swap":
                continue
            try:
                path, why_not = self._folded(line, root)
            except OSError as error:
                what = f"/etc/fstab of {root.name}: {line.device} on {line.place}"
                raise Refused(f"{what}: cannot be mounted: {error.strerror}") from None
            if path:
                mounts[line.place.strip("/")] = path
                self.notes.append(f"folded in: {line.place} from {line.device}")
            else:
                self.notes.append(f"left out: {line.place} ({why_not})")
        if not self._is_root(root.path, mounts.get("usr", "")):
            raise Refused(f"{root.name}: no init, neither in it nor in its /usr")
        return mounts

    def _folded(self, line: Line, root: Root) -> "tuple[str, str]":
        """Where the file system of an fstab line is mounted here; or an empty string, and why it is left out."""
        if why_not := line.no_disk():
            return "", why_not
        if line.kind in ("vfat", "msdos"):
            return "", "a boot loader's: the guest is not started from it"
        volume = find(line.device, self.volumes)
        if volume is None:
            if line.optional:
                return "", f"{line.device} is not in this image"
            raise Refused(
                f"/etc/fstab of {root.name}: {line.device} on {line.place} is not in this image",
                "put `nofail` among its options in the image if the guest can do without",
            )
        if volume.kind not in MOUNTABLE:
            if line.optional:
                return "", volume.kind or "nothing known"
            raise Refused(f"/etc/fstab of {root.name}: {line.place}: found {volume}, expected {', '.join(MOUNTABLE)}")
        if volume == root.volume and (line.selector in ("", "subvolid=5", "subvolid=0", root.selector)):
            return "", "the root's own file system"
        return self.mount(volume, line.selector if volume.kind == "btrfs" else ""), ""


def _has_init(root: str, directory: str) -> bool:
    """Whether a directory has an init. A link is enough: its target may be on another file system."""
    return os.path.islink(f"{root}/{directory}/init") or bool(real_path(root, f"{directory}/init"))


def _subvolumes(top: str, depth: int = 3) -> "list[str]":
    """The btrfs subvolumes below a directory as relative paths, without snapper's snapshots."""
    found: list[str] = []
    stack = [("", 0)]
    while stack:
        name, level = stack.pop()
        for each in sorted(os.listdir(f"{top}/{name}")):
            below = f"{name}/{each}".strip("/")
            status = os.lstat(f"{top}/{below}")
            if not stat.S_ISDIR(status.st_mode) or each == ".snapshots":
                continue
            if status.st_ino == _SUBVOLUME:
                found.append(below)
            if level + 1 < depth and not _looks_like_a_root(f"{top}/{below}"):
                stack.append((below, level + 1))
    return sorted(found)


def _looks_like_a_root(path: str) -> bool:
    return os.path.isdir(f"{path}/etc") or os.path.isdir(f"{path}/usr")


def _size(device: str) -> int:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)
