# SPDX-License-Identifier: Apache-2.0
"""The encrypted data disk beside a verified root: opened as an encrypted root is, and mounted inside the verified one.

Its file system has two things: a directory ``data``, which the guest sees at the measured path, and the boot count,
which the guest does not see there.
"""

import os

import linux
import luks_root
import root_guard

ROLE = NAME = "data"
# Where the whole file system is mounted for a moment. Only the mount of ``data`` inside the root stays.
PLACE = "/run/data-disk"


def mount(newroot: str, path: str, least: int) -> int:
    """Mount the opened disk at ``path`` below ``newroot``; an unreadable block ends the machine. Return the generation.

    Raises Stop for a disk that has seen fewer boots than ``least``, and for a ``path`` that is no directory.
    """
    linux.mount(root_guard.guard(NAME), PLACE, "ext4", linux.MS_NODEV, "errors=panic")
    generation = luks_root.count_boot(PLACE, least, ())
    target = luks_root.enter(newroot, *path.strip("/").split("/"), make=True)
    try:
        place_data(PLACE, target)
        # Through the open directory: no link can lead elsewhere.
        linux.mount(f"{PLACE}/data", f"/proc/self/fd/{target}", flags=linux.MS_BIND)
    finally:
        os.close(target)
    linux.unmount(PLACE)
    return generation


def place_data(place: str, target: int) -> None:
    """Make ``data`` in the file system at ``place``, if it is new, with owner and mode of the open directory."""
    status = os.fstat(target)
    directory = luks_root.enter(place)
    try:
        names = os.listdir(directory)
        if "data" not in names:
            if "data.new" not in names:  # it is there if an earlier boot ended between these lines
                os.mkdir("data.new", 0o700, dir_fd=directory)
            os.chown("data.new", status.st_uid, status.st_gid, dir_fd=directory)
            os.chmod("data.new", status.st_mode & 0o7777, dir_fd=directory)
            os.rename("data.new", "data", src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
    finally:
        os.close(directory)
    os.close(luks_root.enter(place, "data"))
