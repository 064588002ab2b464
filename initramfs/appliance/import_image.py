# SPDX-License-Identifier: Apache-2.0
"""The job `import_image`: finds the root file system on a foreign disk and streams all of it as a tar to another disk.

The disk `image` is read-only. Only this machine's kernel, which ends with the job, ever mounts it. The image's own
fstab names separate file systems to include.
"""

import hashlib
import hmac
import os
from collections.abc import Callable
from typing import Any

import linux
from appliance.fstab import Line, read_fstab, real_path, real_place
from appliance.gpt import NO_AUTO, PLACES, VAR
from appliance.mount_units import read_mount_units
from appliance.roots import SUBVOLUME, Disk, NotMounted, Refused, Root
from appliance.tree_tar import TreeTar, add_tree
from appliance.volumes import ENCRYPTED, MOUNTABLE, Volume, find

Say = Callable[..., None]

MODULES = ("appliance",)

_AUTO = "systemd-gpt-auto-generator"
_GENERATORS = ("usr/lib/systemd/system-generators", "lib/systemd/system-generators")
_LOADER = "a boot loader's: the guest is not started from it"


def run(job: "dict[str, Any]", secret: bytes, say: Say) -> "dict[str, Any]":
    """Write the tar on the disk ``output``; ``job`` has ``root_device``, which is empty if it must be found.

    Returns ``bytes`` and ``entries`` of the tar, ``root``, and ``notes`` for the user; or ``refused`` and ``hint``. The
    last 64 GiB of ``output`` are scratch space.
    """
    image, output = linux.find_disks("image", "output")
    say(step="looking for the root")
    return convert(image, output, str(job["root_device"]), say)


def convert(image: str, output: str, root_device: str, say: Say) -> "dict[str, Any]":
    """Write the tar of the disk ``image`` to the start of the disk ``output``; the result of :func:`run`."""
    disk = Disk(image, output)
    try:
        root = disk.choose(root_device)
        disk.notes.append(f"root file system: {root.name} ({root.volume.kind})")
        mounts = fold(disk, root)
        size, entries = _write(disk, root, mounts, output, say)
    except Refused as refused:
        return {"refused": str(refused), "hint": refused.hint}
    return {"bytes": size, "entries": entries, "root": root.name, "notes": disk.notes}


def _write(disk: Disk, root: Root, mounts: "dict[str, str]", output: str, say: Say) -> "tuple[int, int]":
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
    if name.rpartition("/")[2] == ".snapshots" and os.lstat(path).st_ino == SUBVOLUME:
        return "btrfs snapshots"
    return ""


def fold(disk: Disk, root: Root) -> "dict[str, str]":
    """Mount what the image itself mounts below its root. Returns the mount points here by relative path."""
    mounts: dict[str, str] = {}
    lines = [*read_fstab(root.path), *read_mount_units(root.path)]
    places = {line.place for line in lines}
    # A directory before what is mounted in it.
    for line in sorted(lines, key=lambda line: line.place.count("/")):
        if line.place == "/" or line.kind == "swap":
            continue
        try:
            path, why_not = _folded(disk, line, root)
        except NotMounted as error:
            what = f"/etc/fstab of {root.name}: {line.device} on {line.place}"
            raise Refused(f"{what}: cannot be mounted: {error}") from None
        if path:
            _put(mounts, root, line.place, path)
            disk.notes.append(f"folded in: {line.place} from {line.device}")
        else:
            disk.notes.append(f"left out: {line.place} ({why_not})")
    try:
        _discovered(disk, root, places, mounts)
    except NotMounted as error:
        raise Refused(f"a partition that systemd mounts by its type cannot be mounted: {error}") from None
    if root.deployment:
        _deployed(disk, root, mounts)
    if not disk.is_root(root.path, mounts.get("usr", "")):
        raise Refused(f"{root.name}: no init, neither in it nor in its /usr")
    return mounts


def _put(mounts: "dict[str, str]", root: Root, place: str, path: str) -> None:
    """Note a mount under its real place; a directory that the root lacks is made when the tar is written."""
    try:
        mounts[real_place(root.path, mounts, place)] = path
    except OSError as error:
        raise Refused(f"{root.name}: {place}: no directory can be there: {error.strerror}") from None


def _folded(disk: Disk, line: Line, root: Root) -> "tuple[str, str]":
    """Where the file system of an fstab line is mounted here; or an empty string, and why it is left out."""
    if why_not := line.no_disk():
        return "", why_not
    if line.kind in ("vfat", "msdos"):
        return "", _LOADER
    volume = find(line.device, disk.volumes)
    where = f"/etc/fstab of {root.name}: {line.device} on {line.place}"
    if volume is None:
        if line.optional:
            return "", f"{line.device} is not in this image"
        raise Refused(
            f"{where} is not in this image" + "".join(f"; {reason}" for reason in disk.reasons),
            "put `nofail` among its options in the image if the guest can do without",
        )
    if volume.kind == "FAT" and line.place.startswith(("/boot", "/efi")):
        return "", _LOADER
    if volume.kind not in MOUNTABLE:
        if line.optional:
            return "", volume.why or volume.kind or "nothing known"
        raise Refused(f"{where}: found {volume}, expected {', '.join(MOUNTABLE)}")
    if volume == root.volume and (line.selector in ("", "subvolid=5", "subvolid=0", root.selector)):
        return "", "the root's own file system"
    return disk.mount(volume, line.selector if volume.kind == "btrfs" else ""), ""


def _discovered(disk: Disk, root: Root, places: "set[str]", mounts: "dict[str, str]") -> None:
    """Mount what systemd mounts by the type of a partition (Discoverable Partitions Specification)."""
    for volume in disk.volumes:
        place = PLACES.get(volume.type, "")
        if not place or place in places or volume == root.volume:
            continue
        places.add(place)  # of several for a place, the first
        path, why_not = _mounted_by_type(disk, volume, place, root)
        if path:
            _put(mounts, root, place, path)
            disk.notes.append(f"folded in: {place} from {volume.name}, by the type of its partition")
        else:
            disk.notes.append(f"left out: {volume.name}, a partition for {place} ({why_not})")


def _mounted_by_type(disk: Disk, volume: Volume, place: str, root: Root) -> "tuple[str, str]":
    """Where a partition is mounted here; or an empty string, and why systemd would not mount it."""
    here = f"{root.path}{place}"
    if place != "/usr":  # /usr is for the initrd to mount, and has the generator
        if not any(os.path.lexists(f"{_usr(disk, root, folder)}/{_AUTO}") for folder in _GENERATORS):
            return "", f"the image has no {_AUTO}"
        if os.path.islink(f"{root.path}/etc/systemd/system-generators/{_AUTO}"):
            return "", f"{_AUTO} is switched off"
    if volume.flags & NO_AUTO:
        return "", "it has the flag no-auto"
    if os.path.isdir(here) and os.listdir(here):
        return "", "the directory of the root is not empty"
    if volume.type == VAR and volume.partuuid != _var_uuid(root.path):
        return "", "its UUID is not that of this machine-id"
    if volume.kind in ENCRYPTED:
        raise Refused(f"{volume}: encrypted, a partition for {place}", "decrypt it in its own machine first")
    if volume.kind not in MOUNTABLE:
        return "", _LOADER if volume.kind == "FAT" else volume.kind or "nothing known"
    return disk.mount(volume), ""


def _usr(disk: Disk, root: Root, folder: str) -> str:
    """A directory of /usr, which may be a partition of its own."""
    usr = next((volume for volume in disk.volumes if PLACES.get(volume.type) == "/usr"), None)
    if usr is not None and usr.kind in MOUNTABLE and not os.path.isdir(f"{root.path}/{folder}"):
        return f"{disk.mount(usr)}/{folder.removeprefix('usr/')}"
    return f"{root.path}/{folder}"


def _var_uuid(root: str) -> str:
    """The UUID of the partition for /var: of the machine-id and the partition's type (sd_id128_get_app_specific(3))."""
    path = real_path(root, "etc/machine-id")
    if not path:
        return ""
    with open(path, encoding="ascii", errors="replace") as stream:
        text = stream.read(33).strip()
    try:
        machine = bytes.fromhex(text)
    except ValueError:
        return ""
    data = bytearray(hmac.new(machine, bytes.fromhex(VAR.replace("-", "")), hashlib.sha256).digest()[:16])
    data[6] = (data[6] & 0x0F) | 0x40
    data[8] = (data[8] & 0x3F) | 0x80
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _deployed(disk: Disk, root: Root, mounts: "dict[str, str]") -> None:
    """/var of an ostree deployment is beside it, and its /home is a link into /var; a verified root needs both."""
    var = f"{root.path}/../../var"
    if "var" not in mounts and os.path.isdir(var):
        mounts["var"] = os.path.realpath(var)
        disk.notes.append(f"folded in: /var of the deployment {root.deployment}")
    home = f"{mounts.get('var', var)}/home"
    if os.path.islink(f"{root.path}/home") and os.path.isdir(home) and "home" not in mounts:
        mounts["home"] = os.path.realpath(home)
        disk.notes.append("folded in: /home from /var/home, which stays as a copy")
