# SPDX-License-Identifier: Apache-2.0
"""The owner's end of a key release: verify the evidence, then send the disk's key only to the guest it vouches for.

The guest's end and the messages are in initramfs/key_agent.py. The functions of the protocol take an open connection,
so that a test can put an attacker at its other end.
"""

import hashlib
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sevsnp.attestation.extensions import PARSER_ERRORS
from sevsnp.attestation.report_data import NONCE_SIZE, luks_report_data
from sevsnp.errors import UserError
from sevsnp.keys import taken_key
from sevsnp.owner.client import MAX_ANSWER, parse_object, printable, read_base64, read_host_keys
from sevsnp.owner.kept import Conversation
from sevsnp.owner.login import Verdict

REQUEST = b"openend2e-sevsnp/1 luks\n"
MAX_KEY = taken_key.MAX_KEY
MAX_GENERATION = (1 << 63) - 1
# Time limits in seconds: for connection and handshake, for the evidence, and for opening the disk. The last is long
# because an emulated processor may have to derive the disk's key from a passphrase.
CONNECT_SECONDS = 20.0
EVIDENCE_SECONDS = 90.0
OPEN_SECONDS = 300.0
_LENGTH = struct.Struct(">I")
_HEAD = struct.Struct(">32sQ")


@dataclass(frozen=True)
class Secret:
    """The secret that is released: a volume's key for a header with this SHA-256 (32 bytes), and a minimum generation.

    The guest must refuse a disk that has seen fewer than ``generation`` boots.
    """

    header: bytes
    generation: int
    key: bytes = field(repr=False)

    def message(self) -> bytes:
        """The message to the guest: digest, generation (u64 big-endian) and key."""
        if not 0 < len(self.key) <= MAX_KEY:
            raise UserError(f"the disk key: found {len(self.key)} bytes, expected 1 to {MAX_KEY}")
        return _HEAD.pack(self.header, self.generation) + self.key


@dataclass(frozen=True)
class Opened:
    """The guest's answer after it opened its root: its generation, and its SSH host keys (``type base64``)."""

    generation: int
    host_keys: tuple[str, ...]


def owner_context(certificate: Path, private: Path) -> ssl.SSLContext:
    """A TLS 1.3 context with the owner's certificate; it accepts any server, because the evidence decides."""
    context = _any_server()
    try:
        context.load_cert_chain(certificate, private)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"{certificate}: not a certificate with its key in {private}: {error}") from error
    return context


def _any_server() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def is_waiting(host: str, port: int, seconds: float = 3.0) -> bool:
    """Whether a guest that waits for its key answers there. The check requests nothing and changes nothing in it.

    A connection alone proves nothing: QEMU's user network accepts it before the guest does.
    """
    try:
        connect(host, port, _any_server(), seconds).close()
    except UserError:
        return False
    return True


def connect(host: str, port: int, context: ssl.SSLContext, seconds: float = CONNECT_SECONDS) -> ssl.SSLSocket:
    """A TLS connection to the guest. Raises :class:`UserError` if no server answers with TLS 1.3."""
    try:
        plain = socket.create_connection((host, port), timeout=seconds)
        try:
            return context.wrap_socket(plain)
        finally:
            plain.close()  # the TLS socket owns the connection now
    except OSError as error:
        raise UserError(
            f"{host}:{port}: no answer: {error.strerror or error}",
            "check that the guest waits for its key, and that its ATTEST_PORT is forwarded",
        ) from error


def request_evidence(connection: ssl.SSLSocket, header: bytes, where: str) -> Conversation:
    """Ask for evidence for a fresh nonce; return the evidence with the REPORT_DATA that it must contain.

    This REPORT_DATA binds the nonce, the key of this connection's certificate (``tls_key``) and ``header``
    (``luks_header``); key and header are SHA-256 digests of 32 bytes.
    """
    certificate = connection.getpeercert(binary_form=True)
    if connection.version() != "TLSv1.3" or not certificate:
        raise UserError(f"{where}: found {connection.version()}, expected TLSv1.3 and a certificate")
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except PARSER_ERRORS as error:
        raise UserError(f"{where}: the guest's certificate cannot be read: {error}") from error
    nonce = os.urandom(NONCE_SIZE)
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    _send(connection, REQUEST + nonce, where)
    document = _answer(connection, EVIDENCE_SECONDS, where)
    return Conversation(
        workflow="luks",
        report=read_base64(document, "report", where),
        certificates=read_base64(document, "certificates", where, optional=True),
        nonce=nonce,
        report_data=luks_report_data(nonce, digest, header),
        at=datetime.now(UTC),
        bound={"tls_key": digest.hex(), "luks_header": header.hex()},
    )


def send_key(connection: ssl.SSLSocket, secret: Secret, where: str) -> Opened:
    """Send the key, and wait until the guest has opened its root with it."""
    message = secret.message()
    _send(connection, _LENGTH.pack(len(message)) + message, where)
    document = _answer(connection, OPEN_SECONDS, where)
    generation = document.get("generation")
    if type(generation) is not int or not secret.generation < generation <= MAX_GENERATION:
        raise UserError(
            f"{where}: generation: found {printable(generation)}, expected a number above {secret.generation}"
        )
    return Opened(generation, read_host_keys(document, where))


def release(
    connection: ssl.SSLSocket,
    header: bytes,
    where: str,
    *,
    appraise: Callable[[Conversation], Verdict],
    decide: Callable[[Verdict], Secret],
) -> tuple[Verdict, Conversation, Opened]:
    """Run the whole key release: ``appraise`` verifies the evidence, ``decide`` returns the secret for the verdict.

    If either raises, no secret is sent. Returns the verdict, the conversation with the guest's host keys, and the
    guest's answer.
    """
    talk = request_evidence(connection, header, where)
    verdict = appraise(talk)
    opened = send_key(connection, decide(verdict), where)
    return verdict, replace(talk, host_keys=opened.host_keys), opened


def _send(connection: ssl.SSLSocket, data: bytes, where: str) -> None:
    try:
        connection.settimeout(CONNECT_SECONDS)
        connection.sendall(data)
    except OSError as error:
        raise _gone(where, error) from error


def _answer(connection: ssl.SSLSocket, seconds: float, where: str) -> dict[str, object]:
    """Read the next frame's JSON object within ``seconds``. Raises :class:`UserError` if it has an ``error``."""
    deadline = time.monotonic() + seconds
    (size,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, deadline, where))
    if size > MAX_ANSWER:
        raise UserError(f"{where}: found an answer of {size} bytes, expected at most {MAX_ANSWER}")
    document = parse_object(_receive(connection, size, deadline, where), where)
    if "error" in document:
        raise UserError(
            f"{where}: the guest refused the key release, and powers off: {printable(document['error'])}",
            "read its console on the machine that runs it: ./doitw logs",
        )
    return document


def _receive(connection: ssl.SSLSocket, size: int, deadline: float, where: str) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            connection.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = connection.recv(size - len(data))
        except OSError as error:
            raise _gone(where, error) from error
        if not piece:
            raise _gone(where, None)
        data += piece
    return bytes(data)


def _gone(where: str, error: OSError | None) -> UserError:
    if isinstance(error, TimeoutError):
        return UserError(f"{where}: no whole answer in time", "read the guest's console")
    why = "it closed the connection" if error is None else (error.strerror or str(error))
    return UserError(
        f"{where}: the guest closed the connection: {why}",
        "check that the guest was made with this CONFIG_DIR's owner certificate, and that no other owner attests it",
    )
