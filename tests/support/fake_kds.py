# SPDX-License-Identifier: Apache-2.0
"""A key distribution service on loopback, honest or hostile as the test needs it."""

import contextlib
import http.server
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sevsnp.attestation.certificates import der
from sevsnp.attestation.chain import pem
from tests.support.hierarchy import Hierarchy

Handler = Callable[[http.server.BaseHTTPRequestHandler], None]


@dataclass
class FakeKds:
    """``answers`` by the beginning of the path: bytes for 200, a number for that status, or a function."""

    answers: dict[str, bytes | int | Handler]
    asked: list[str] = field(default_factory=list)
    # The endless answers that a client has read to their end.
    finished: list[str] = field(default_factory=list)
    url: str = ""

    @classmethod
    def of(cls, one: Hierarchy) -> "FakeKds":
        """The answers of AMD's service for a hierarchy."""
        return cls({
            f"/vcek/v1/{one.product}/cert_chain": pem([one.ask, one.ark]),
            f"/vcek/v1/{one.product}/crl": one.crl(),
            f"/vcek/v1/{one.product}/": der(one.certificate),
        })  # fmt: skip


@contextlib.contextmanager
def serving(kds: FakeKds, tls: ssl.SSLContext | None = None) -> Iterator[FakeKds]:
    """Serve on a free port of loopback, with ``tls`` by HTTPS."""
    ended = threading.Event()

    class Answering(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kds.asked.append(self.path)
            answer = next((value for path, value in kds.answers.items() if self.path.startswith(path)), 404)
            with contextlib.suppress(OSError):
                if callable(answer):
                    answer(self)
                    kds.finished += [self.path] if answer in (trickle, trickle_headers, pour) else []
                elif isinstance(answer, int):
                    self.send_response(answer)
                    self.send_header("Retry-After", "3")
                    self.end_headers()
                else:
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    kds.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    try:
        yield kds
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Send a byte every 0.1 s, for a minute."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(600):
        handler.wfile.write(b"0")
        handler.wfile.flush()
        time.sleep(0.1)


def trickle_headers(handler: http.server.BaseHTTPRequestHandler) -> None:
    for _ in range(600):
        handler.wfile.write(b"H")
        handler.wfile.flush()
        time.sleep(0.1)


def pour(handler: http.server.BaseHTTPRequestHandler) -> None:
    """Send 256 MiB, as fast as the client reads."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(4096):
        handler.wfile.write(b"\x30" * 65536)


def hang_up(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.connection.close()


def redirect(handler: http.server.BaseHTTPRequestHandler) -> None:
    """To the same path below /elsewhere/ in place of /vcek/. A test gives an answer there."""
    handler.send_response(302)
    handler.send_header("Location", handler.path.replace("/vcek/", "/elsewhere/"))
    handler.end_headers()
