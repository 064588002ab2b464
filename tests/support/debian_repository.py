# SPDX-License-Identifier: Apache-2.0
"""A tiny Debian archive, signed with a key of its own, for the tests: packages, indices, and a server that can lie."""

import base64
import contextlib
import functools
import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import threading
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from sevsnp.packages.lock import Package

# A fixed environment: the umask, locale and time zone of the test run do not influence the packages.
ENVIRONMENT = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": "1700000000", "LC_ALL": "C"}


class OpenPgpKey:
    """An RSA key with just enough OpenPGP (RFC 9580, version 4 packets) for apt, so that gpg is not needed."""

    def __init__(self) -> None:
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        numbers = self._key.public_key().public_numbers()
        self._born = int(time.time()) - 3600
        self._body = b"\x04" + self._born.to_bytes(4, "big") + b"\x01" + _mpi(numbers.n) + _mpi(numbers.e)
        self._framed = b"\x99" + len(self._body).to_bytes(2, "big") + self._body
        self._fingerprint = hashlib.sha1(self._framed).digest()

    def keyring(self) -> bytes:
        """The public key with a self-signed name."""
        name = b"Test Archive"
        signed = self._framed + b"\xb4" + len(name).to_bytes(4, "big") + name
        return _packet(6, self._body) + _packet(13, name) + self._signature(0x13, signed)

    def sign(self, document: bytes) -> str:
        """A detached signature in ASCII armour, because apt refuses binary ones."""
        text = base64.encodebytes(self._signature(0x00, document)).decode()
        return f"-----BEGIN PGP SIGNATURE-----\n\n{text}-----END PGP SIGNATURE-----\n"

    def _signature(self, kind: int, signed: bytes) -> bytes:
        hashed = b"\x05\x02" + int(time.time()).to_bytes(4, "big") + b"\x16\x21\x04" + self._fingerprint
        if kind == 0x13:
            hashed += b"\x02\x1b\x03"  # may certify and sign
        head = bytes([4, kind, 1, 8]) + len(hashed).to_bytes(2, "big") + hashed
        message = signed + head + b"\x04\xff" + len(head).to_bytes(4, "big")
        value = int.from_bytes(self._key.sign(message, padding.PKCS1v15(), hashes.SHA256()), "big")
        issuer = b"\x09\x10" + self._fingerprint[-8:]
        left = hashlib.sha256(message).digest()[:2]
        return _packet(2, head + len(issuer).to_bytes(2, "big") + issuer + left + _mpi(value))


def _mpi(value: int) -> bytes:
    return value.bit_length().to_bytes(2, "big") + value.to_bytes((value.bit_length() + 7) // 8, "big")


def _packet(tag: int, body: bytes) -> bytes:
    return bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4, "big") + body


def build_deb(
    folder: Path, name: str, version: str = "1.0", *, arch: str = "amd64", fields: str = "", **files: Any
) -> Path:
    """A .deb in ``folder``; ``files`` maps paths (``a__b`` for a/b) or the key ``content`` to a dict of paths."""
    tree = folder / f".{name}"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: Tests <tests@invalid>\n"
        f"Description: a test\n{fields}"
    )
    for path, content in files.get("content", {}).items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            target.symlink_to(content)
        else:
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
            target.chmod(0o755 if "/bin/" in path else 0o644)
    for directory in (tree, *(path for path in tree.rglob("*") if path.is_dir() and not path.is_symlink())):
        directory.chmod(0o755)  # dpkg-deb requires this mode, whatever the umask
    deb = folder / f"{name}_{version.split(':')[-1]}_{arch}.deb"
    subprocess.run(
        ["dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "--build", tree, deb],
        check=True,
        capture_output=True,
        env=ENVIRONMENT,
    )
    subprocess.run(["rm", "-r", tree], check=True)
    return deb


def deb_of(path: Path, data: bytes, name: str = "linux-image-6.1.0-test") -> Path:
    """A .deb at ``path`` whose files are the tar ``data``, which may be of any form: nothing here reads it."""
    control = io.BytesIO()
    with tarfile.open(fileobj=control, mode="w:gz") as archive:
        text = f"Package: {name}\nVersion: 1.0\nArchitecture: amd64\n".encode()
        info = tarfile.TarInfo("./control")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text))
    with path.open("wb") as stream:
        stream.write(b"!<arch>\n")
        for member, content in (
            (b"debian-binary", b"2.0\n"),
            (b"control.tar.gz", control.getvalue()),
            (b"data.tar", data),
        ):
            stream.write(b"%-16s%-12d%-6d%-6d%-8o%-10d`\n" % (member, 0, 0, 0, 0o100644, len(content)))
            stream.write(content + b"\n" * (len(content) % 2))
    return path


@dataclass
class Repository:
    """An archive under ``root``: :meth:`add` adds packages, :meth:`publish` writes the signed indices."""

    root: Path
    key: OpenPgpKey = field(default_factory=OpenPgpKey)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True)
        self.keyring = self.root / "keyring.gpg"
        self.keyring.write_bytes(self.key.keyring())

    @property
    def uri(self) -> str:
        return f"file:{self.root}"

    def add(self, name: str, version: str = "1.0", **how: Any) -> Path:
        folder = self.root / "pool/main" / name[0] / name
        folder.mkdir(parents=True, exist_ok=True)
        return build_deb(folder, name, version, **how)

    def publish(self, suite: str = "trixie", when: float | None = None) -> None:
        """Write the indices with the date ``when`` (seconds since 1970; default: now)."""
        stanzas = []
        for deb in sorted(self.root.glob("pool/**/*.deb")):
            control = subprocess.run(["dpkg-deb", "-f", deb], check=True, capture_output=True, text=True).stdout
            digest = hashlib.sha256(deb.read_bytes()).hexdigest()
            stanzas.append(
                f"{control}Filename: {deb.relative_to(self.root)}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
            )
        folder = self.root / "dists" / suite
        index = folder / "main/binary-amd64/Packages.gz"
        index.parent.mkdir(parents=True, exist_ok=True)
        index.write_bytes(gzip.compress("\n".join(stanzas).encode(), mtime=0))
        plain = "\n".join(stanzas).encode()
        lines = [
            f" {hashlib.sha256(data).hexdigest()} {len(data)} main/binary-amd64/{name}"
            for data, name in ((plain, "Packages"), (index.read_bytes(), "Packages.gz"))
        ]
        release = (
            f"Origin: Tests\nLabel: Tests\nSuite: {suite}\nCodename: {suite}\nDate: {formatdate(when, usegmt=True)}\n"
            f"Architectures: amd64\nComponents: main\nSHA256:\n" + "\n".join(lines) + "\n"
        ).replace("GMT", "UTC")
        (folder / "Release").write_text(release)
        (folder / "Release.gpg").write_text(self.key.sign(release.encode()))


class Server:
    """An HTTP server for a directory, on a free loopback port; ``answers`` overrides the answer for a path."""

    def __init__(self, root: Path) -> None:
        self.requests: list[str] = []
        self.answers: dict[str, bytes | int] = {}
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                answer = outer.answers.get(self.path.rpartition("/")[2])
                if isinstance(answer, int):
                    self.send_error(answer)
                elif answer is not None:
                    self.send_response(200)
                    self.end_headers()
                    with contextlib.suppress(ConnectionError):  # a client hangs up when it has read enough
                        self.wfile.write(answer)
                else:
                    super().do_GET()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root)))
        self.uri = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def as_package(deb: Path) -> Package:
    name, version, _ = deb.name.split("_")
    digest = hashlib.sha256(deb.read_bytes()).hexdigest()
    return Package(name, version, "amd64", "debian", deb.name, deb.stat().st_size, digest)


def listing(tree: Path) -> list[tuple[str, int, str]]:
    found = []
    for path in sorted(tree.rglob("*")):
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes().hex() if path.is_file() else ""
        found.append((str(path.relative_to(tree)), path.lstat().st_mode, content))
    return found
