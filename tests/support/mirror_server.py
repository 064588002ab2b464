# SPDX-License-Identifier: Apache-2.0
"""A mirror on loopback that keeps connections open, sends ranges, and can break off, lie and lose files."""

import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Mirror:
    """Serves ``files`` by path. The switches select its faults; ``requests`` records the requests in order."""

    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    tags: bool = True
    # The numbers of bytes after which the next answers break off.
    breaks: list[int] = field(default_factory=list)
    # Redirected paths.
    moved: dict[str, str] = field(default_factory=dict)
    # The server sets ``paused`` when it has sent the beginning of an answer; it continues when ``go_on`` is set.
    pauses_at: int = 0
    paused: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str]] = field(default_factory=list)
    connections: int = 0
    # The received Proxy-Authorization headers.
    logins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # As web servers do: otherwise each small answer waits for the client's acknowledgement.
            disable_nagle_algorithm = True

            def setup(self) -> None:
                mirror.connections += 1
                super().setup()

            def do_GET(self) -> None:
                mirror.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def encrypt(self, certificate: Path, key: Path) -> str:
        """Switch to TLS; return the new address."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        return self.uri.replace("http:", "https:")

    @property
    def ranged(self) -> list[str]:
        """The requested ranges; empty for a whole file."""
        return [asked for _, asked in self.requests]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, asked = unquote(handler.path), handler.headers.get("Range", "")
        self.requests.append((path, asked))
        self.logins += handler.headers.get_all("Proxy-Authorization", [])
        if path in self.moved:
            handler.send_response(302)
            handler.send_header("Location", self.moved[path])
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if path not in self.files:
            page = b"not here"
            handler.send_response(404)
            handler.send_header("Content-Length", str(len(page)))
            handler.end_headers()
            handler.wfile.write(page)
            return
        data, tag = self.files[path], f'"{hash(self.files[path])}"'
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if handler.headers.get("If-Range", tag) != tag:
            start = 0
        if start >= len(data):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(data)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.tags:
            handler.send_header("ETag", tag)
        body = data[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        self._send(handler, body)

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if self.pauses_at:
            handler.wfile.write(body[: self.pauses_at])
            handler.wfile.flush()
            body = body[self.pauses_at :]
            self.paused.set()
            self.go_on.wait(60)
        if self.breaks:
            handler.wfile.write(body[: self.breaks.pop(0)])
            handler.close_connection = True
        else:
            handler.wfile.write(body)
