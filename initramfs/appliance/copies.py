# SPDX-License-Identifier: Apache-2.0
"""Writable copies of read-only devices: changes go to a place at the end of the output disk, and end with the job."""

import os

import linux

SECTOR = 512
# Bytes at the end of the output disk for all copies, and for each.
ROOM, _EACH = 64 << 30, 1 << 30
_DMSETUP = "/usr/sbin/dmsetup"


def size_of(device: str) -> int:
    """The size of a block device in bytes."""
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def mapped(name: str, table: str, *options: str) -> str:
    """Make a device-mapper device; returns its path."""
    linux.run(_DMSETUP, "create", name, "--noudevsync", "--noudevrules", *options, "--table", table)
    linux.run(_DMSETUP, "mknodes", name)
    return f"/dev/mapper/{name}"


class Copies:
    """Makes the copies; ``output`` is the disk that has the room."""

    _made = 0

    def __init__(self, output: str) -> None:
        self._output = output

    def writable(self, device: str) -> str:
        """A writable device with the content of ``device``. Raises Stop if there is no more room."""
        number = Copies._made
        if (number + 1) * _EACH > ROOM:
            raise linux.Stop(f"no more room for a copy of {device}")
        Copies._made += 1
        start = (size_of(self._output) - (number + 1) * _EACH) // SECTOR
        changes = mapped(f"changes{number}", f"0 {_EACH // SECTOR} linear {self._output} {start}")
        return mapped(f"copy{number}", f"0 {size_of(device) // SECTOR} snapshot {device} {changes} N 8")
