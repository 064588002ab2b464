# SPDX-License-Identifier: Apache-2.0
"""Mount the verified root: read-only, every block checked against the measured root hash; writes go to memory."""

import os

import linux
from boot_words import Words, verity_table

# There is only this mapping. Without udev no program makes /dev/mapper/root.
ROOT_DEVICE = "/dev/dm-0"


def prepare(words: Words, newroot: str) -> None:
    """Mount the verified root on ``newroot``, with its writable directories."""
    print("Booting dm-verity filesystem..", flush=True)
    _open(words)
    options = "noload" if words.rootfs == "ext4" else ""
    linux.mount(ROOT_DEVICE, newroot, words.rootfs, linux.MS_RDONLY | linux.MS_NODEV, options)
    _make_writable(words, newroot)


def _open(words: Words) -> None:
    data, tree = linux.find_disks("verity-data", "verity-hash")
    table = verity_table(words.verity, data, tree)
    linux.run("/usr/sbin/dmsetup", "create", "root", "--readonly", "--noudevsync", "--noudevrules", "--table", table)
    # The kernel names devices by number; every other word of the active table must be the requested one.
    active = linux.run("/usr/sbin/dmsetup", "table", "root").split()
    wanted = table.split()
    for index in (4, 5):
        wanted[index] = linux.device_number(wanted[index])
    if active != wanted:
        raise linux.Stop(f"the active verity table is {' '.join(active)}, expected {' '.join(wanted)}")


def _make_writable(words: Words, newroot: str) -> None:
    """Mount /etc, /home and /var over the verified root, and an empty /tmp, all in memory."""
    flags = linux.MS_NOSUID | linux.MS_NODEV
    for name in ("etc", "home", "var"):
        target = f"{newroot}/{name}"
        if not os.path.isdir(target) or os.path.islink(target):
            raise linux.Stop(f"/{name} is not a directory in the root file system")
        memory = f"/writable/{name}"
        linux.mount("tmpfs", memory, "tmpfs", flags, f"size={words.tmpfs[name]},mode=0755")
        if words.writable == "copy":
            linux.run("/usr/bin/busybox", "cp", "-a", f"{target}/.", memory)
            linux.mount(memory, target, flags=linux.MS_MOVE)
        else:
            status = os.stat(target)
            for part in ("upper", "work"):
                os.mkdir(f"{memory}/{part}")
            os.chown(f"{memory}/upper", status.st_uid, status.st_gid)
            os.chmod(f"{memory}/upper", status.st_mode & 0o7777)
            layers = f"lowerdir={target},upperdir={memory}/upper,workdir={memory}/work"
            linux.mount("overlay", target, "overlay", flags, layers)
    linux.mount("tmpfs", f"{newroot}/tmp", "tmpfs", flags, f"size={words.tmpfs['tmp']},mode=1777")


def make_host_key(newroot: str, name: str) -> str:
    """Make a fresh SSH host key in the guest's memory and remove all others; return the public key file's content."""
    directory = os.path.dirname(f"{newroot}/{name}")
    os.makedirs(directory, exist_ok=True)
    for other in os.listdir(directory):
        if other.startswith("ssh_host_"):
            os.unlink(f"{directory}/{other}")
    linux.run("/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", f"{newroot}/{name}")
    return linux.read(f"{newroot}/{name}.pub")
