# SPDX-License-Identifier: Apache-2.0
"""Make device-mapper devices over an opened disk, so that an unreadable block ends the machine.

dm-crypt answers a block that fails its check with an I/O error, and the file system passes the error to the program
that reads the file. A service may then treat its configuration as missing and continue. With these devices the error
never reaches the file system. From below:

    void    reads give zeros, writes are discarded (dm-zero)
    trap    a verity device over ``void`` with a root hash that no data has: each read causes a panic (dm-verity)
    sink    reads go to ``trap``, writes to ``void`` (dm-delay, without delay)
    mirror  the root and ``sink``: reads go to the root, and a failed read is tried again at ``sink``. A write that
            fails at the root is never answered; after it, reads in other places go to ``sink`` (dm-mirror,
            handle_errors)
    guarded the mirror and ``sink`` again: a virtio disk can answer "not supported", the only error that dm-mirror
            passes on. This device tries again, and then at ``sink`` (dm-raid, raid1). dm-raid alone is not enough: it
            treats a write that only ``sink`` has as done

The panic happens during the read itself, so no process needs to notice the error, to be scheduled, or to survive. A
failed read-ahead may stay unnoticed, but the block is read again when a program asks for it.

The names of the devices begin with the name of the opened mapping: root here, or data.
"""

import os

import linux

# The sectors in a region of the mirror: 1 MiB, which costs a few bits of memory for each region. After a write fails at
# the root, a read in the same region waits with the write, and a read in any other region ends the machine.
_REGION = 2048
_BLOCK_SECTORS = 8
# In sectors, more than the largest root and its hash tree; the size costs no memory.
_VOID_SECTORS = 1 << 50


def tables(mapping: str, sectors: int) -> "list[tuple[str, str]]":
    """Name and table of each device over ``mapping``, a name, of ``sectors`` (512 bytes), in the order of creation."""
    device = f"/dev/mapper/{mapping}"
    void, trap, sink, mirror = (f"{device}_{name}" for name in ("void", "trap", "sink", "mirror"))
    blocks = sectors // _BLOCK_SECTORS
    return [
        (f"{mapping}_void", f"0 {_VOID_SECTORS} zero"),
        (
            f"{mapping}_trap",
            f"0 {sectors} verity 1 {void} {void} 4096 4096 {blocks} {blocks} sha256 {'ff' * 32} - "
            "2 panic_on_corruption panic_on_error",
        ),
        (f"{mapping}_sink", f"0 {sectors} delay {trap} 0 0 {void} 0 0"),
        (f"{mapping}_mirror", f"0 {sectors} mirror core 2 {_REGION} nosync 2 {device} 0 {sink} 0 1 handle_errors"),
        (f"{mapping}_guarded", f"0 {sectors} raid raid1 4 0 nosync write_mostly 1 2 - {mirror} - {sink}"),
    ]


def guard(mapping: str) -> str:
    """Make the devices over the open ``mapping``, a name; return the device to mount. Raises Stop if one fails."""
    sectors = int(linux.run("/usr/sbin/dmsetup", "table", mapping).split()[1])
    made = tables(mapping, sectors)
    for name, table in made:
        options = ["--readonly"] if name.endswith("_trap") else []  # dm-verity requires it
        linux.run("/usr/sbin/dmsetup", "create", name, *options, "--noudevsync", "--noudevrules", "--table", table)
    # Remove the nodes: a program that scans all disks (blkid, lvm) must not read from the trap or find the root twice.
    *inner, (top, _) = made
    for name, _ in inner:
        number = os.stat(f"/dev/mapper/{name}").st_rdev
        os.unlink(f"/dev/mapper/{name}")
        os.unlink(f"/dev/dm-{os.minor(number)}")
    return f"/dev/mapper/{top}"
