# SPDX-License-Identifier: Apache-2.0
"""Logins for the registry tests: the configuration of `docker login`, a credential helper, and a token server."""

import base64
import datetime
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from tests.support.waiting import NET

SERVICE, ISSUER = "registry of the tests", "tests"


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def write_login(folder: Path, host: str, user: str, password: str) -> None:
    """Write the configuration that `docker login` leaves in ``folder`` if there is no credential helper."""
    write_config(folder, {"auths": {host: {"auth": basic(user, password)}}})


def write_config(folder: Path, document: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document))


def write_helper(folder: Path, name: str, body: str) -> None:
    """A credential helper: a shell script that gets the host on its standard input."""
    folder.mkdir(parents=True, exist_ok=True)
    helper = folder / f"docker-credential-{name}"
    helper.write_text(f"#!/bin/sh\nread host\n{body}\n")
    helper.chmod(0o755)


class Certificate:
    """A self-signed certificate for 127.0.0.1 with its key, as PEM files in ``folder``."""

    def __init__(self, folder: Path) -> None:
        import ipaddress

        folder.mkdir(parents=True, exist_ok=True)
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
        now = datetime.datetime.now(datetime.UTC)
        self.certificate = (
            x509.CertificateBuilder(name, name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        self.certificate_file, self.key_file = folder / "certificate.pem", folder / "key.pem"
        self.certificate_file.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        self.key_file.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )


class TokenServer:
    """Exchanges a password for tokens; each is valid only for the requested scope."""

    def __init__(self, certificate: Certificate, user: str, password: str) -> None:
        self.certificate = certificate
        self.scopes: list[str] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = parse_qs(urlsplit(self.path).query)
                scope = asked.get("scope", [""])[0]
                known = self.headers.get("Authorization") == f"Basic {basic(user, password)}"
                body = json.dumps({"token": owner.token(scope)} if known else {"details": "who are you"}).encode()
                owner.scopes.append(scope)
                self.send_response(200 if known else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def realm(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/token"

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":")
        der = self.certificate.certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        now = int(time.time())
        claims = {
            "iss": ISSUER, "sub": "builder", "aud": SERVICE, "exp": now + 300, "nbf": now - 60, "iat": now, "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }  # fmt: skip
        signed = b".".join(_url64(json.dumps(part).encode()) for part in (header, claims))
        signature = self.certificate.key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return (signed + b"." + _url64(signature)).decode()


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(NET)


def _url64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
