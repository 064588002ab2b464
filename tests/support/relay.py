# SPDX-License-Identifier: Apache-2.0
"""A machine in the middle: listens where the owner expects the guest, and can change everything."""

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.waiting import NET

SECONDS = 300.0
Handler = Callable[[socket.socket], None]


@contextlib.contextmanager
def listening(handler: Handler) -> Iterator[int]:
    """A TCP port of 127.0.0.1 on which ``handler`` serves each connection; closed when the context ends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def one(client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            client.settimeout(SECONDS)
            handler(client)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=one, args=(client,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(NET)


def forward(port: int, record: bytearray | None = None) -> Handler:
    """Pass everything on to ``port`` and back; ``record`` gets what the client sends."""

    def handler(client: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as server:

            def back() -> None:
                with contextlib.suppress(OSError):
                    while piece := server.recv(65536):
                        client.sendall(piece)
                    client.shutdown(socket.SHUT_WR)

            thread = threading.Thread(target=back, daemon=True)
            thread.start()
            with contextlib.suppress(OSError):
                while piece := client.recv(65536):
                    if record is not None:
                        record.extend(piece)
                    server.sendall(piece)
                server.shutdown(socket.SHUT_WR)
            thread.join(SECONDS)

    return handler


def rewrite(port: int, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Handler:
    """Ask the genuine agent at ``port`` with the client's own nonce, and send its answer back, changed."""

    def handler(client: socket.socket) -> None:
        request = client.recv(4096)
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as server:
            server.settimeout(SECONDS)
            server.sendall(request)
            answer = b"".join(iter(lambda: server.recv(65536), b""))
        client.sendall(json.dumps(change(json.loads(answer))).encode())

    return handler


def replay(answer: bytes) -> Handler:
    """The same answer to every question."""

    def handler(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(answer)

    return handler
