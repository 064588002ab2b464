# SPDX-License-Identifier: Apache-2.0
"""Get evidence from the software secure processor through a virtio-serial port. EMULATED – NOT CONFIDENTIAL.

Only the emulated layer of the initramfs contains this module. ``register()`` makes it one of get_report's providers.
Standard library only.
"""

from __future__ import annotations

import base64
import errno
import importlib
import json
import os
import select
import struct
import time

PORT = "org.openend2e.psp"
PORTS = "/sys/class/virtio-ports"
DEVICES = "/dev"
SECONDS = 30.0
_LIMIT = 1 << 20
_REPORT_SIZE = 1184


class EmulatedProvider:
    """A provider for get_report: ``name``, ``available()`` and ``fetch(report_data)``."""

    name = "emulated"

    @staticmethod
    def says() -> dict[str, bool]:
        """The marks at the top level of each document, so that a saved document is not mistaken for real evidence."""
        return {"emulated": True, "confidential": False}

    def available(self) -> bool:
        return self._device() is not None

    def fetch(self, report_data: bytes) -> tuple[bytes, bytes]:
        """A report (1184 bytes) for REPORT_DATA (64 bytes) and the certificate table. Raises OSError, ValueError."""
        device = self._device()
        if device is None:
            raise OSError("no virtio-serial port " + PORT)
        deadline = time.monotonic() + SECONDS
        port = _open(device, deadline)
        try:
            _write(port, report_data, deadline)
            while True:
                report, certificates = _read_answer(port, deadline)
                # The port may still contain the answer to an earlier, abandoned request.
                if report[0x50:0x90] == report_data:
                    return report, certificates
        finally:
            os.close(port)

    @staticmethod
    def _device() -> str | None:
        try:
            ports = sorted(os.listdir(PORTS))
        except OSError:
            return None
        for port in ports:
            try:
                with open(os.path.join(PORTS, port, "name"), encoding="ascii") as stream:
                    if stream.read().strip() == PORT:
                        return os.path.join(DEVICES, port)
            except (OSError, UnicodeDecodeError):
                continue
        return None


def _open(device: str, deadline: float) -> int:
    while True:
        try:
            return os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:  # only one process can have the port open: the agent, or get_report
                raise
        time.sleep(min(0.05, _left(deadline)))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the software secure processor does not answer")
    return left


def _write(port: int, data: bytes, deadline: float) -> None:
    while data:
        select.select([], [port], [], _left(deadline))
        try:
            data = data[os.write(port, data) :]
        except BlockingIOError:
            time.sleep(min(0.05, _left(deadline)))


def _read(port: int, size: int, deadline: float) -> bytes:
    data = b""
    while len(data) < size:
        select.select([port], [], [], _left(deadline))
        try:
            piece = os.read(port, size - len(data))
        except BlockingIOError:
            piece = b""
        if not piece:  # the host's end is not open yet, or not any more
            time.sleep(min(0.05, _left(deadline)))
        data += piece
    return data


def _read_answer(port: int, deadline: float) -> tuple[bytes, bytes]:
    (size,) = struct.unpack(">I", _read(port, 4, deadline))
    if size > _LIMIT:
        raise ValueError(f"an answer of {size} bytes")
    answer = json.loads(_read(port, size, deadline))
    if not isinstance(answer, dict):
        raise ValueError("an answer that is not a JSON object")
    if "error" in answer:
        raise ValueError(str(answer["error"]))
    report = base64.b64decode(answer["report"], validate=True)
    if len(report) != _REPORT_SIZE:
        raise ValueError(f"a report of {len(report)} bytes")
    return report, base64.b64decode(answer["certificates"], validate=True)


def register() -> None:
    """Append this provider to get_report's providers, once."""
    providers = importlib.import_module("get_report").PROVIDERS
    if not any(provider.name == EmulatedProvider.name for provider in providers):
        providers.append(EmulatedProvider())
