# SPDX-License-Identifier: Apache-2.0
"""A guest that waits for its key, in this process: the initramfs's own agent, evidence of the software PSP, no disk."""

import contextlib
import importlib
import queue
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sevsnp.keys.paths import Keys
from tests.support.evidence import MEASUREMENT, ROOT, launch, psp
from tests.support.waiting import NET

# As in the initramfs, the modules stand side by side, under their bare names.
_PLACES = (ROOT / "initramfs", ROOT / "sevsnp" / "attestation")
_MODULES = ("linux", "report_data", "dm_tables", "clients", "key_agent", "luks_root")


def guest_module(name: str) -> ModuleType:
    """A module as the guest has it. It finds its neighbours, and the path is restored afterwards."""
    before = list(sys.path)
    sys.path[:0] = [str(place) for place in _PLACES]
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = before


agent = guest_module("key_agent")


def evidence_for(report_data: bytes) -> dict[str, object]:
    import base64

    report = psp().report(report_data, launch=launch(), measurement=MEASUREMENT)
    table = psp().certificate_table()
    return {"report": base64.b64encode(report).decode(), "certificates": base64.b64encode(table).decode()}


def der(certificate: Path) -> bytes:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)


@dataclass
class KeyGuest:
    """The key that the guest received, and how it ended: None for success, otherwise the exception."""

    port: int
    header: bytes
    received: list[tuple[bytes, int]] = field(default_factory=list)
    ended: "queue.Queue[BaseException | None]" = field(default_factory=queue.Queue)

    def end(self, seconds: float = NET) -> BaseException | None:
        return self.ended.get(timeout=seconds)

    @property
    def waiting(self) -> bool:
        """Whether no owner has connected yet."""
        return self.ended.empty() and not self.received


@contextlib.contextmanager
def key_guest(
    keys: Keys,
    directory: Path,
    header: bytes,
    *,
    report: Callable[[bytes], dict[str, object]] = evidence_for,
    unlock: Callable[[bytes, int], dict[str, Any]] | None = None,
) -> Iterator[KeyGuest]:
    """The agent on a port of 127.0.0.1, until it has served its owner or the context ends."""
    certificate, key = agent.make_certificate(str(directory / "agent"))
    context = agent.server_context(certificate, key, der(keys.owner_certificate))
    listener = socket.create_server(("127.0.0.1", 0), backlog=agent.MAX_CLIENTS)
    guest = KeyGuest(listener.getsockname()[1], header)

    def opened(secret: bytearray, generation: int) -> dict[str, Any]:
        guest.received.append((bytes(secret), generation))
        return unlock(bytes(secret), generation) if unlock else {"generation": generation + 1, "host_keys": [HOST_KEY]}

    def serve() -> None:
        try:
            connection = agent.accept_owner(listener, context, der(keys.owner_certificate))
            agent.serve_owner(connection, agent.key_digest(certificate), header, report, opened)
            guest.ended.put(None)
        except BaseException as error:
            guest.ended.put(error)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield guest
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcH"


def anonymous_context() -> ssl.SSLContext:
    """A client without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def hung_up(connection: socket.socket) -> bool:
    """Whether the other end has closed this connection; it sends nothing on it."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
