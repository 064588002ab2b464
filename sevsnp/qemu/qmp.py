# SPDX-License-Identifier: Apache-2.0
"""The QEMU Machine Protocol over a unix socket: one command, one answer (qemu/docs/interop/qmp-spec.rst)."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sevsnp.errors import UserError


class Qmp:
    """A connected QMP session. Every wait is limited to ``timeout`` seconds, and ends when QEMU is not ``alive``."""

    def __init__(self, path: Path, timeout: float = 30.0, alive: Callable[[], bool] = lambda: True) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        deadline = time.monotonic() + timeout
        while True:
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if not alive():
                    raise UserError("QEMU ended before it started the guest") from None
                if time.monotonic() > deadline:
                    raise UserError(f"{path}: QEMU did not open its control socket in {timeout:.0f} s") from None
                time.sleep(0.02)
        self._socket.settimeout(timeout)
        self._stream = self._socket.makefile("rb")
        self._read()
        self.command("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        try:
            line = self._stream.readline()
        except ConnectionError:  # QEMU has not read all data that was sent
            line = b""
        if not line:
            raise UserError("QEMU ended while it was being asked", "look at its messages above")
        document: dict[str, Any] = json.loads(line)
        return document

    def command(self, name: str, **arguments: Any) -> Any:
        """Execute a command and return its answer; events before the answer are skipped."""
        with contextlib.suppress(ConnectionError):  # the answer will be missing
            self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise UserError(f"QEMU refused {name}: {answer['error'].get('desc')}")
