# SPDX-License-Identifier: Apache-2.0
"""A hostile QEMU's fw_cfg: changes entries in the memory of a QEMU that is stopped before its first instruction.

An entry (hw/nvram/fw_cfg.c) has 40 bytes: its length, 32 bits; a flag; a pointer to its bytes; its callbacks.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

_ENTRY = 40
ID, SETUP_SIZE, SETUP_DATA, KERNEL_SIZE, INITRD_DATA, DIRECTORY = 0x01, 0x17, 0x18, 0x08, 0x12, 0x19
# The first four entries: "QEMU", the features, the machine's UUID, the size of its memory.
_FIRST = re.compile(rb"\x04\0\0\0.{36}\x04\0\0\0.{36}\x10\0\0\0.{36}\x08\0\0\0", re.DOTALL)
_GUEST_MEMORY = 300 << 20  # a larger region is not QEMU's own


class FwCfg:
    """The entries of the QEMU with this process id, by their key."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._memory = Path(f"/proc/{pid}/mem").open("r+b", buffering=0)  # noqa: SIM115 (close)
        (self._entries,) = self._find()

    def close(self) -> None:
        self._memory.close()

    def _find(self) -> Iterator[int]:
        for line in Path(f"/proc/{self._pid}/maps").read_text().splitlines():
            bounds, rights = line.split()[:2]
            first, behind = (int(word, 16) for word in bounds.split("-"))
            if rights.startswith("rw") and behind - first < _GUEST_MEMORY:
                try:
                    data = self._read(first, behind - first)
                except OSError:  # some regions are not readable
                    continue
                for match in _FIRST.finditer(data):
                    if self._read(self._pointer(first + match.start()), 4) == b"QEMU":
                        yield first + match.start()

    def _read(self, place: int, size: int) -> bytes:
        self._memory.seek(place)
        return self._memory.read(size) or b""

    def _write(self, place: int, data: bytes) -> None:
        self._memory.seek(place)
        assert self._memory.write(data) == len(data)

    def _pointer(self, entry: int) -> int:
        (place,) = struct.unpack("<Q", self._read(entry + 8, 8))
        return int(place)

    def data(self, key: int) -> int:
        """The address of an entry's bytes."""
        return self._pointer(self._entries + key * _ENTRY)

    def put(self, key: int, data: bytes) -> None:
        """Replace the bytes of an entry by others, at most as many."""
        self._write(self.data(key), data)

    def point(self, key: int, place: int, length: int) -> None:
        """Let an entry point to bytes somewhere else in QEMU's memory."""
        self._write(self._entries + key * _ENTRY, struct.pack("<I", length))
        self._write(self._entries + key * _ENTRY + 8, struct.pack("<Q", place))

    def file(self, name: str) -> tuple[int, int]:
        """A file by its name: the address of its entry in the directory (size, key, reserved, name), and its key."""
        directory = self._read(self.data(DIRECTORY), 4 + 64 * 128)
        place = directory.index(name.encode() + b"\0") - 8
        (key,) = struct.unpack_from(">H", directory, place + 4)
        return self.data(DIRECTORY) + place, int(key)

    def resize(self, name: str, size: int) -> None:
        """Change the size in the directory."""
        self._write(self.file(name)[0], struct.pack(">I", size))

    def rename(self, name: str, other: str) -> None:
        assert len(other) == len(name)
        self._write(self.file(name)[0] + 8, other.encode())
