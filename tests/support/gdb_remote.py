# SPDX-License-Identifier: Apache-2.0
"""GDB's remote protocol with QEMU, as far as needed to watch and write memory (GDB manual, appendix E)."""

import socket
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.waiting import wait_until

_RIP = slice(16 * 8, 17 * 8)  # after the sixteen general registers


class Gdb:
    """A session with the machine's first vCPU, which is stopped during each request."""

    def __init__(self, path: Path, timeout: float = 120.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._buffer = b""
        wait_until(lambda: self._socket.connect_ex(str(path)) == 0, lambda: f"QEMU at {path}", timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect; QEMU lets the machine continue."""
        self._socket.close()

    def _send(self, packet: str) -> None:
        self._socket.sendall(f"${packet}#{sum(packet.encode()) & 255:02x}".encode())

    def _ask(self, packet: str) -> str:
        self._send(packet)
        while (end := self._buffer.find(b"#")) < 0 or len(self._buffer) < end + 3:
            if not (more := self._socket.recv(65536)):
                raise ConnectionError("QEMU ended while it was being debugged")
            self._buffer += more
        start = self._buffer.index(b"$") + 1
        answer, self._buffer = self._buffer[start:end].decode(), self._buffer[end + 3 :]
        self._socket.sendall(b"+")
        return answer

    def _done(self, packet: str) -> None:
        answer = self._ask(packet)
        assert answer == "OK", f"{packet}: {answer}"

    def run_until_access(self, address: int, low: int, high: int) -> None:
        """Let the machine run until an instruction between ``low`` and ``high`` has used the byte at ``address``."""
        self._done(f"Z4,{address:x},1")
        while True:
            assert self._ask("c").startswith("T05")
            (instruction,) = struct.unpack("<Q", bytes.fromhex(self._ask("g"))[_RIP])
            if low <= instruction < high:
                break
        self._done(f"z4,{address:x},1")

    def write(self, address: int, data: bytes) -> None:
        self._done(f"M{address:x},{len(data):x}:{data.hex()}")

    def go_on(self) -> None:
        self._send("c")
