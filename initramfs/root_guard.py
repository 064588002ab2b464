# SPDX-License-Identifier: Apache-2.0
"""Device-mapper tables over the opened root with which a block that cannot be read ends the machine.

dm-crypt answers a block that fails its check with an I/O error, and a file system hands that on to whatever reads the
file: a service takes its configuration for missing and goes on. Here the error never comes that far. From below:

    void    reads as zeros and swallows what is written (dm-zero)
    trap    a verity device over ``void`` with a root hash that nothing has: each read of it panics (dm-verity)
    sink    reads go to ``trap``, writes to ``void`` (dm-delay, with no delay)
    mirror  the root and ``sink``: reads are the root's until one fails, which is then tried at ``sink``; a write that
            the root fails is never answered, and reads elsewhere are ``sink``'s then (dm-mirror, handle_errors)
    guarded the mirror and ``sink`` again: a virtio disk can answer "not supported", the one error that dm-mirror passes
            on; here it is tried again, and then at ``sink`` (dm-raid, raid1). Alone it would not do: it takes a write
            for done that only ``sink`` has

The panic is in the path of the read, so no process has to notice anything, be scheduled, or live on. What is read ahead
may fail unnoticed: it is read again when it is asked for.
"""

import os

import linux

NAME = "root_guarded"
DEVICE = f"/dev/mapper/{NAME}"
_VOID, _TRAP, _SINK, _MIRROR = "root_void", "root_trap", "root_sink", "root_mirror"
# The sectors of a region of the mirror, 1 MiB: a few bits of memory for each. A read from the region of a write that
# the root has failed waits with it, one from any other region ends the machine.
_REGION = 2048
_BLOCK_SECTORS = 8
# More than the largest root and its hash tree, in sectors: it takes no memory.
_VOID_SECTORS = 1 << 50


def tables(root: str, sectors: int) -> "list[tuple[str, str]]":
    """Name and table of each device over the device ``root`` of so many sectors (512 bytes), in the order to make."""
    void, trap, sink, mirror = (f"/dev/mapper/{name}" for name in (_VOID, _TRAP, _SINK, _MIRROR))
    blocks = sectors // _BLOCK_SECTORS
    return [
        (_VOID, f"0 {_VOID_SECTORS} zero"),
        (
            _TRAP,
            f"0 {sectors} verity 1 {void} {void} 4096 4096 {blocks} {blocks} sha256 {'ff' * 32} - "
            "2 panic_on_corruption panic_on_error",
        ),
        (_SINK, f"0 {sectors} delay {trap} 0 0 {void} 0 0"),
        (_MIRROR, f"0 {sectors} mirror core 2 {_REGION} nosync 2 {root} 0 {sink} 0 1 handle_errors"),
        (NAME, f"0 {sectors} raid raid1 4 0 nosync write_mostly 1 2 - {mirror} - {sink}"),
    ]


def guard(root: str) -> str:
    """Make the devices over the open mapping ``root`` (its name); the device to mount. Stop where one is not made."""
    sectors = int(linux.run("/usr/sbin/dmsetup", "table", root).split()[1])
    for name, table in tables(f"/dev/mapper/{root}", sectors):
        options = ["--readonly"] if name == _TRAP else []  # as dm-verity demands
        linux.run("/usr/sbin/dmsetup", "create", name, *options, "--noudevsync", "--noudevrules", "--table", table)
    # Without nodes no program that looks through all disks (blkid, lvm) reads from the trap, or finds the root twice.
    for name in (_VOID, _TRAP, _SINK, _MIRROR):
        number = os.stat(f"/dev/mapper/{name}").st_rdev
        os.unlink(f"/dev/mapper/{name}")
        os.unlink(f"/dev/dm-{os.minor(number)}")
    return DEVICE
