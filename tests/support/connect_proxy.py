# SPDX-License-Identifier: Apache-2.0
"""A company's network on loopback: a proxy that takes CONNECT, and servers with certificates of a private authority."""

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.support.waiting import NET

HOST = "kds.example.invalid"


class Authority:
    """A private authority: ``file`` is its certificate, ``server`` a TLS context for HOST and 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        certificate = self._certify("a company", own, own, authority=True)
        self.file = folder / "authority.pem"
        self.file.write_bytes(certificate.public_bytes(Encoding.PEM))
        chain = folder / "server.pem"
        key = leaf.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain.write_bytes(self._certify("server", leaf, own, authority=False).public_bytes(Encoding.PEM) + key)
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.load_cert_chain(chain)

    @staticmethod
    def _certify(
        name: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey, *, authority: bool
    ) -> x509.Certificate:
        called = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, "a company")]
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = x509.CertificateBuilder(called[1], called[0], key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return made.sign(signer, hashes.SHA256())


@dataclass
class Proxy:
    """``target`` is the port on loopback to which every tunnel leads; ``seen`` the first line of each request."""

    target: int
    seen: list[str] = field(default_factory=list)
    url: str = ""
    # In place of an honest proxy's work.
    misbehave: Callable[[socket.socket], None] | None = None


@contextlib.contextmanager
def proxying(proxy: Proxy) -> Iterator[Proxy]:
    ended = threading.Event()

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        client.settimeout(NET)
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head and (data := client.recv(4096)):
                head += data
            proxy.seen.append(head.split(b"\r\n")[0].decode("latin-1"))
            if proxy.misbehave:
                proxy.misbehave(client)
                return
            with socket.create_connection(("127.0.0.1", proxy.target), timeout=NET) as server:
                client.sendall(b"HTTP/1.1 200 tunnel\r\n\r\n")
                other = threading.Thread(target=pump, args=(server, client), daemon=True)
                other.start()
                pump(client, server)
                other.join(NET)

    def accept() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        proxy.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            ended.set()
            thread.join(NET)
