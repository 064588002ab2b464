# SPDX-License-Identifier: Apache-2.0
"""A registry that holds one entry and can misbehave in any answer; it records the requests."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import zstandard

from sevsnp.store.entries import Blob
from sevsnp.store.oci_blob import Layer
from sevsnp.store.registry import make_manifest
from tests.support.waiting import NET

KEY = "0123456789abcdef" * 4
CONTENT = b"what was built\n" * 1000
DOCUMENT = b'{"entry":"of the tests"}'
# The limits of an endless answer, in seconds and in bytes, if the client does not end it.
LONG = 60.0
MUCH = 1 << 28


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "HostileServer"
    # http.server's default limit would end a slow upload before the client has to.
    timeout = NET

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self.answer
        raise AttributeError(name)

    def answer(self) -> None:
        owner = self.server.owner
        owner.connections.add(self.client_address)
        owner.seen.append((self.command, self.path, self.headers.get("Authorization", "")))
        kind = next((kind for kind, part in owner.KINDS.items() if part in self.path), "other")
        if kind == "blob" and owner.config in self.path:
            kind = "document"
        if self.command in ("POST", "PUT", "PATCH"):
            kind = {"POST": "start", "PUT": "upload"}.get(self.command, kind)
        elif self.command == "HEAD":
            kind = "head"
        try:
            if kind in owner.misbehave:
                self.close_connection = True
                owner.misbehave[kind](self)
            else:
                self.behave(kind)
        except OSError:
            self.close_connection = True  # the client has closed the connection

    def behave(self, kind: str) -> None:
        owner = self.server.owner
        if kind == "start":
            self.reply(202, headers={"Location": "/v2/cache/blobs/uploads/1?_state=x"})
        elif kind == "upload":
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(201)
        elif kind == "head" or kind not in owner.pages():
            self.reply(404)
        else:
            self.reply(200, owner.pages()[kind])

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


Misbehaviour = Callable[[Handler], None]


class HostileServer(ThreadingHTTPServer):
    daemon_threads = True
    owner: "Hostile"

    def handle_error(self, request: object, client_address: object) -> None:
        pass


@dataclass
class Hostile:
    """The registry. Its manifest names ``layer`` and ``blob``; it stores ``stored``."""

    misbehave: dict[str, Misbehaviour] = field(default_factory=dict)
    content: bytes = CONTENT
    stored: bytes = b""
    layer: Layer | None = None
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    # The paths of endless answers that a client read to their end.
    outlasted: list[str] = field(default_factory=list)
    KINDS: ClassVar = {"manifest": "/manifests/", "token": "/token", "start": "/uploads/", "blob": "/blobs/"}

    def __post_init__(self) -> None:
        self.stored = self.stored or zstandard.ZstdCompressor().compress(self.content)
        self.layer = self.layer or Layer(digest(self.stored), len(self.stored))
        self.blob = Blob(hashlib.sha256(self.content).hexdigest(), len(self.content))
        self.config = digest(DOCUMENT)
        self.server = HostileServer(("127.0.0.1", 0), Handler)
        self.server.owner = self

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server.server_port}"

    @property
    def manifest(self) -> bytes:
        assert self.layer is not None
        return make_manifest(KEY, Layer(self.config, len(DOCUMENT)), {self.blob: self.layer})

    def pages(self) -> dict[str, bytes]:
        return {"manifest": self.manifest, "document": DOCUMENT, "blob": self.stored}

    def __enter__(self) -> "Hostile":
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join(NET)


def says(status: int, body: bytes = b"", /, **headers: str) -> Misbehaviour:
    """One plain answer; in the names of ``headers``, underscores stand for hyphens."""
    return lambda it: it.reply(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def raw(data: bytes) -> Misbehaviour:
    """Send these raw bytes and close the connection."""

    def send(it: Handler) -> None:
        it.wfile.write(data)

    return send


def drips(head: bytes, piece: bytes, pause: float) -> Misbehaviour:
    """``head``, then ``piece`` again and again with pauses of ``pause`` seconds."""

    def drip(it: Handler) -> None:
        it.wfile.write(head)
        end, sent = time.monotonic() + LONG, 0
        while time.monotonic() < end and sent < MUCH:
            it.wfile.write(piece)
            sent += len(piece)
            time.sleep(pause)
        it.server.owner.outlasted.append(it.path)

    return drip


def hesitates(it: Handler) -> None:
    """The right answer, but very slowly."""
    stored = it.server.owner.stored
    it.wfile.write(OK + b"Content-Length: %d\r\n\r\n" % len(stored))
    for byte in stored:
        it.wfile.write(bytes([byte]))
        time.sleep(LONG / len(stored))
    it.server.owner.outlasted.append(it.path)


def stalls(it: Handler) -> None:
    """Send no answer, and read nothing."""
    for _ in range(int(LONG / 0.1)):
        time.sleep(0.1)
        it.connection.getpeername()
        if _is_closed(it.connection):
            return
    it.server.owner.outlasted.append(it.path)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the client has closed the connection: its data stay unread, so only the state tells it (tcp(7))."""
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return state != 1  # TCP_ESTABLISHED


OK = b"HTTP/1.1 200 OK\r\n"
# These send often enough for a socket's own time-out, however busy the machine is.
ENDLESS_HEADER = drips(OK + b"X: ", b"x", 0.05)
ENDLESS_CONTINUE = drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.05)
FAST_BODY = drips(OK + b"Connection: close\r\n\r\n", bytes(1 << 18), 0)
SLOW_BODY = drips(OK + b"Content-Length: 100000000\r\n\r\n", b"x", 0.05)
SLOW_CHUNK = drips(OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x", 0.05)
SLOW_WORDS = drips(b"HTTP/1.1 500 x\r\n\r\n", b"x", 0.05)
# Only a time limit ends these.
SLOW = (ENDLESS_HEADER, ENDLESS_CONTINUE, SLOW_BODY, SLOW_CHUNK, SLOW_WORDS, hesitates, stalls)
