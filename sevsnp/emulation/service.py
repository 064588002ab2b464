# SPDX-License-Identifier: Apache-2.0
"""The host's end of the guest's virtio-serial port: 64 bytes of REPORT_DATA in, a report and its certificates out.

A request is 64 raw bytes. An answer is its length (u32 big-endian) and a JSON object: ``report`` and ``certificates``
(the extended report's certificate table) in base64, or ``error``. The guest is not trusted to follow this protocol.
"""

import base64
import contextlib
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from sevsnp.emulation.psp import EmulatedPsp
from sevsnp.measurement.id_block import Identity
from sevsnp.vm_config.config import Launch

REQUEST_SIZE = 64
# Time limit in seconds for the rest of a request that a guest has begun, and for the guest to read an answer.
STALL = 5.0

Answer = Callable[[bytes], tuple[bytes, bytes]]


def serve(connection: socket.socket, answer: Answer, stall: float = STALL) -> None:
    """Answer requests on a connected stream socket, one after the other, until the peer or this side closes it.

    ``answer`` makes a report and a certificate table for REPORT_DATA (64 bytes). The peer cannot make this raise.
    """
    try:
        while (request := _receive(connection, stall)) is not None:
            connection.settimeout(stall)
            connection.sendall(_frame(request, answer))
    except OSError:
        return  # the peer is gone or does not read; a partly sent frame cannot be completed


def _receive(connection: socket.socket, stall: float) -> bytes | None:
    """The next whole request, or None when the peer is gone.

    An incomplete request is dropped after ``stall`` seconds, so that a stray byte does not shift all later requests.
    """
    while True:
        connection.settimeout(None)
        data = connection.recv(REQUEST_SIZE)
        deadline = time.monotonic() + stall
        while data and len(data) < REQUEST_SIZE:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                piece = connection.recv(REQUEST_SIZE - len(data))
            except TimeoutError:
                break
            if not piece:
                return None
            data += piece
        if not data:
            return None
        if len(data) == REQUEST_SIZE:
            return data


def _frame(request: bytes, answer: Answer) -> bytes:
    try:
        report, certificates = answer(request)
        document = {
            "report": base64.b64encode(report).decode(),
            "certificates": base64.b64encode(certificates).decode(),
        }
    except Exception as error:  # one failed answer must not end the service
        print(f"software secure processor: {error}", file=sys.stderr)
        document = {"error": "the software secure processor has no report"}
    body = json.dumps(document).encode()
    return struct.pack(">I", len(body)) + body


class PspService:
    """Serves one running guest on the UNIX socket of its QEMU chardev, in one thread, while the context lasts."""

    def __init__(
        self, psp: EmulatedPsp, launch: Launch, measurement: bytes, path: Path, identity: Identity | None = None
    ) -> None:
        self._psp, self._launch, self._measurement, self._path = psp, launch, measurement, path
        self._identity = identity
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._thread = threading.Thread(target=serve, args=(self._connection, self._answer), daemon=True)

    def _answer(self, report_data: bytes) -> tuple[bytes, bytes]:
        report = self._psp.report(
            report_data, launch=self._launch, measurement=self._measurement, identity=self._identity
        )
        return report, self._psp.certificate_table()

    def __enter__(self) -> "PspService":
        try:
            self._connection.settimeout(STALL)
            self._connection.connect(str(self._path))
        except OSError:
            self._connection.close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):  # already closed
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes the thread; close() alone does not
        self._thread.join(2 * STALL)
        self._connection.close()
