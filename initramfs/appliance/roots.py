# SPDX-License-Identifier: Apache-2.0
"""Finds the root file systems of a foreign disk: on its volumes, in btrfs subvolumes, in deployments of ostree."""

import errno
import os
import stat
from dataclasses import dataclass, replace

import linux
from appliance.copies import Copies
from appliance.describe import describe, snapshot
from appliance.fstab import read_fstab, real_path
from appliance.gpt import USR
from appliance.kernel_log import KernelLog
from appliance.volumes import ENCRYPTED, MOUNTABLE, Volume, find, volumes

_FLAGS = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
SUBVOLUME = 256  # the inode number of every btrfs subvolume's root
_OSTREE = "ostree/deploy"


class Refused(Exception):
    """The image is refused: the reason, and what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class NotMounted(Exception):
    """A volume that the kernel does not mount; the message has its reason."""


@dataclass(frozen=True)
class Root:
    """A root file system that was found: its volume, its btrfs subvolume, and its mount point.

    ``deployment`` is the directory of an ostree deployment below the subvolume, or empty.
    """

    volume: Volume
    subvolume: str
    path: str
    deployment: str = ""

    @property
    def name(self) -> str:
        below = "/".join(filter(None, (self.subvolume, self.deployment)))
        return f"{self.volume.name}:{below}" if below else self.volume.name

    @property
    def selector(self) -> str:
        """The mount option that selects it."""
        return f"subvol=/{self.subvolume}" if self.subvolume else ""

    @property
    def described(self) -> str:
        """Its name, and what tells it apart from others."""
        label = self.volume.label or self.volume.partlabel
        made = snapshot(self.path) if self.subvolume else ""
        parts = (f"label {label}" if label else "", describe(self.path), made)
        return f"{self.name} ({', '.join(filter(None, parts)) or self.volume.kind})"


class Disk:
    """The foreign disk, its volumes, and their mounts; ``notes`` are messages for the user."""

    def __init__(self, image: str, output: str) -> None:
        self._copies = Copies(output)
        found = volumes(image, self._copies)
        self.volumes, self.notes, self.reasons = found.volumes, found.notes, found.reasons
        self._mounted: dict[tuple[str, str], str] = {}
        self._replayed: dict[str, str] = {}
        self._place = f"/run/image/{os.path.basename(image)}"

    def mount(self, volume: Volume, options: str = "") -> str:
        """Mount a volume read-only and return where; after an unclean shutdown, its journal is replayed first.

        Raises NotMounted with the kernel's reason.
        """
        if volume.why:
            raise NotMounted(volume.why)
        key = (volume.path, options)
        if key not in self._mounted:
            place = f"{self._place}/{len(self._mounted)}"
            log = KernelLog()
            try:
                self._try(volume, place, options)
            except OSError as error:
                if error.errno != errno.EROFS:
                    raise NotMounted(f"{os.strerror(error.errno or 0)}: {log.said() or 'no reason given'}") from None
                # The journal has the latest writes. Only a kernel that may write can replay it.
                self._replay(volume, place, options, log)
            finally:
                log.close()
            self._mounted[key] = place
        return self._mounted[key]

    def _try(self, volume: Volume, place: str, options: str) -> None:
        source = self._replayed.get(volume.path, volume.path)
        options = ",".join(filter(None, ("nouuid" if volume.kind == "xfs" else "", options)))
        linux.mount(source, place, volume.kind, _FLAGS, options)

    def _replay(self, volume: Volume, place: str, options: str, log: KernelLog) -> None:
        self._replayed[volume.path] = self._copies.writable(volume.path)
        try:
            self._try(volume, place, options)
        except OSError as error:
            raise NotMounted(f"{os.strerror(error.errno or 0)}: {log.said() or 'no reason given'}") from None
        self.notes.append(f"{volume.name}: was not shut down cleanly; its journal was replayed, in a copy")

    def choose(self, asked: str) -> Root:
        """The root file system, or the one that ``asked`` names. Raises Refused unless there is exactly one."""
        if asked:
            return self._asked(asked)
        failed: dict[str, str] = {}
        found = [root for volume in self.volumes if volume.kind in MOUNTABLE for root in self._found(volume, failed)]
        # What an origin and its snapshot both have, the origin is meant for.
        names = {root.volume.name for root in found}
        left = [root for root in found if root.volume.origin in names]
        self.notes += [f"left out: {root.described}: a snapshot of {root.volume.origin}" for root in left]
        found = [root for root in found if root not in left]
        if len(found) > 1:
            listed = "; ".join(root.described for root in found)
            raise Refused(f"several root file systems: {listed}", f"choose one: ROOT_DEVICE={found[0].name}")
        self.notes += [f"{name}: cannot be mounted: {why}" for name, why in failed.items()]
        self.notes += self.reasons
        if found:
            return found[0]
        raise self._none(failed)

    def _found(self, volume: Volume, failed: "dict[str, str]") -> "list[Root]":
        try:
            return self._roots(volume)
        except NotMounted as error:
            failed[str(volume)] = str(error)
            return []

    def _none(self, failed: "dict[str, str]") -> Refused:
        """Why there is no root: what could not be read comes before what was looked through."""
        held = ", ".join(map(str, self.volumes))
        unread = [f"{name} cannot be mounted: {why}" for name, why in failed.items()]
        unread += [f"{volume.name} cannot be read: {volume.why}" for volume in self.volumes if volume.why]
        if unread or self.reasons:
            what = "; ".join(dict.fromkeys(unread or self.reasons))
            return Refused(what, "repair or complete it in its own machine first, or copy its files into a tar")
        locked = [volume for volume in self.volumes if volume.kind in ENCRYPTED]
        if locked:
            return Refused(
                f"encrypted: {', '.join(map(str, locked))}; no root file system beside it in: {held}",
                "decrypt it in its own machine first (cryptsetup reencrypt --decrypt), or copy its files into a tar",
            )
        return Refused(
            f"no root file system (one with /etc/os-release and an init) in: {held}",
            f"file systems that can be read: {', '.join(MOUNTABLE)}, in partitions, on LVM2 or MD arrays",
        )

    def _asked(self, asked: str) -> Root:
        device, _, below = asked.partition(":")
        below = below.strip("/")
        volume = find(device, self.volumes)
        held = ", ".join(map(str, self.volumes))
        if volume is None:
            raise Refused(f"ROOT_DEVICE={asked}: no such partition or volume, found: {held}")
        if volume.why:
            raise Refused(f"ROOT_DEVICE={asked}: cannot be read: {volume.why}")
        if volume.kind not in MOUNTABLE:
            what = f"encrypted ({volume.kind})" if volume.kind in ENCRYPTED else volume.kind or "nothing known"
            raise Refused(f"ROOT_DEVICE={asked}: found {what}, expected a file system: {', '.join(MOUNTABLE)}")
        try:
            found = self._below(volume, below) if below else self._roots(volume)
        except NotMounted as error:
            raise Refused(f"ROOT_DEVICE={asked}: cannot be mounted: {error}") from None
        if not found:
            raise Refused(f"ROOT_DEVICE={asked}: no root file system: it lacks /etc/os-release or an init")
        if len(found) > 1:
            raise Refused(f"ROOT_DEVICE={asked}: several roots: {'; '.join(root.described for root in found)}")
        return found[0]

    def _below(self, volume: Volume, below: str) -> "list[Root]":
        """The root that is a subvolume or an ostree deployment of a volume."""
        subvolume, _, deployment = below.partition(f"{_OSTREE}/")
        subvolume = subvolume.strip("/")
        if subvolume and volume.kind != "btrfs":
            raise Refused(f"ROOT_DEVICE={volume.name}:{below}: found {volume.kind}, expected btrfs for a subvolume")
        root = Root(volume, subvolume, "", f"{_OSTREE}/{deployment}" if deployment else "")
        path = self.mount(volume, root.selector)
        path = f"{path}/{root.deployment}" if deployment else path
        return [replace(root, path=path)] if self.is_root(path) else []

    def _roots(self, volume: Volume) -> "list[Root]":
        """The root file systems of a volume; on btrfs the default subvolume, else those whose own fstab names them."""
        path = self.mount(volume)
        default = [Root(volume, "", path)] if self.is_root(path) else self._deployments(Root(volume, "", path))
        if volume.kind != "btrfs":
            return default
        wanted = next((line.subvolume for root in default for line in read_fstab(root.path) if line.place == "/"), "")
        top = self.mount(volume, "subvolid=5")
        others = [Root(volume, name, f"{top}/{name}") for name in _subvolumes(top)]
        deployed = [each for root in others for each in self._deployments(root)]
        others = [root for root in others if self.is_root(root.path)]
        # A snapshot of a root has the root's fstab, too, which names the original.
        own = [
            root
            for root in others
            if any(line.place == "/" and line.subvolume == root.subvolume for line in read_fstab(root.path))
        ]
        found = [root for root in own if root.subvolume == wanted] or default or own or others
        found = [replace(root, path=self.mount(volume, root.selector)) for root in found if not root.deployment]
        return found or default or deployed

    def _deployments(self, root: Root) -> "list[Root]":
        """The deployments of ostree below the top of a file system."""
        found = []
        for system in _directories(f"{root.path}/{_OSTREE}"):
            for each in _directories(f"{root.path}/{_OSTREE}/{system}/deploy"):
                below = f"{_OSTREE}/{system}/deploy/{each}"
                if self.is_root(f"{root.path}/{below}"):
                    found.append(replace(root, path=f"{root.path}/{below}", deployment=below))
        return found

    def is_root(self, path: str, usr: "str | None" = None) -> bool:
        """Whether this is a root file system; ``usr`` is its separate /usr, None while that is unknown."""
        release = any(os.path.lexists(f"{path}/{name}") for name in ("etc/os-release", "usr/lib/os-release"))
        init = any(_has_init(path, name) for name in ("sbin", "usr/sbin", "bin", "usr/bin"))
        if usr is None:  # with a separate /usr the init is not visible yet
            elsewhere = any(line.place == "/usr" for line in read_fstab(path)) or (
                any(volume.type == USR for volume in self.volumes) and not _directories(f"{path}/usr")
            )
            return release and (init or elsewhere)
        return release and (init or (bool(usr) and any(_has_init(usr, name) for name in ("sbin", "bin"))))


def _directories(path: str) -> "list[str]":
    """The names of the directories in a directory that may be missing; links are not followed."""
    if not os.path.isdir(path) or os.path.islink(path):
        return []
    return sorted(name for name in os.listdir(path) if stat.S_ISDIR(os.lstat(f"{path}/{name}").st_mode))


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
            if status.st_ino == SUBVOLUME:
                found.append(below)
            if level + 1 < depth and not _looks_like_a_root(f"{top}/{below}"):
                stack.append((below, level + 1))
    return sorted(found)


def _looks_like_a_root(path: str) -> bool:
    return os.path.isdir(f"{path}/etc") or os.path.isdir(f"{path}/usr")
