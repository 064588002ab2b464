# SPDX-License-Identifier: Apache-2.0
"""Ask a guest for evidence: send a fresh nonce, receive a bounded JSON document. This module trusts none of it."""

import base64
import binascii
import json
import re
import socket
import time
from dataclasses import dataclass

from sevsnp.errors import UserError
from sevsnp.system.files import each_key_once

REQUEST = b"openend2e-sevsnp/1 ssh\n"
NONCE_SIZE = 32
MAX_ANSWER = 256 * 1024
_HOST_KEY = re.compile(r"ssh-ed25519 [A-Za-z0-9+/]{68}")
_MAX_HOST_KEYS = 8
NOBODY = "check that the guest runs, and that its ATTEST_PORT is forwarded"


class NoAnswer(UserError):
    """The guest does not answer, or not yet."""


@dataclass(frozen=True)
class GuestAnswer:
    """A guest's answer: the raw report, the certificate table, and the SSH host keys it claims (``type base64``)."""

    report: bytes
    certificates: bytes
    host_keys: tuple[str, ...]

    def host_key_blobs(self) -> list[bytes]:
        """The host keys in SSH wire format, which REPORT_DATA binds."""
        return [base64.b64decode(key.split()[1]) for key in self.host_keys]


def ask(host: str, port: int, nonce: bytes, timeout: float = 30.0) -> GuestAnswer:
    """Send ``nonce`` (32 bytes) to the guest's agent and read its answer, all within ``timeout`` seconds.

    Raises :class:`NoAnswer` if the guest does not answer, and :class:`UserError` if the answer is malformed or the
    guest says that it has no evidence.
    """
    assert len(nonce) == NONCE_SIZE
    where = f"{host}:{port}"
    deadline = time.monotonic() + timeout
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            connection.sendall(REQUEST + nonce)
            data = _receive(connection, deadline)
    except OSError as error:
        raise NoAnswer(f"{where}: no answer: {error.strerror or error}", NOBODY) from error
    if not data:
        raise NoAnswer(f"{where}: no answer: the connection was closed", NOBODY)
    return parse_answer(data, where)


def _receive(connection: socket.socket, deadline: float) -> bytes:
    data = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no whole answer in time")
        connection.settimeout(left)
        piece = connection.recv(65536)
        if not piece:
            return bytes(data)
        data += piece
        if len(data) > MAX_ANSWER:
            raise OSError(f"found more than {MAX_ANSWER} bytes")


def parse_answer(data: bytes, where: str) -> GuestAnswer:
    """Check the form of an answer; an error names the key that is missing, not text or not base64."""
    document = parse_object(data, where)
    if "error" in document:
        raise UserError(f"{where}: the guest gave no evidence: {printable(document['error'])}")
    keys = read_host_keys(document, where)
    return GuestAnswer(
        read_base64(document, "report", where), read_base64(document, "certificates", where, optional=True), keys
    )


def parse_object(data: bytes, where: str) -> dict[str, object]:
    """Parse the JSON object that a guest sent."""
    try:
        document = json.loads(data, object_pairs_hook=each_key_once)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: found {len(data)} bytes that are not JSON, expected a guest's answer") from None
    if not isinstance(document, dict):
        raise UserError(f"{where}: found {type(document).__name__}, expected a JSON object")
    return document


def printable(value: object) -> str:
    """A guest's text for the terminal: only printable ASCII, and limited in length."""
    return re.sub(r"[^ -~]", "?", str(value))[:300]


def read_host_keys(document: dict[str, object], where: str) -> tuple[str, ...]:
    """``host_keys`` of an answer: 1 to 8 different ssh-ed25519 public keys."""
    keys = document.get("host_keys")
    if not isinstance(keys, list) or not 0 < len(keys) <= _MAX_HOST_KEYS:
        raise UserError(f"{where}: host_keys: found {str(keys)[:80]!r}, expected 1 to {_MAX_HOST_KEYS} keys")
    for key in keys:
        if not isinstance(key, str) or not _HOST_KEY.fullmatch(key):
            raise UserError(f"{where}: host_keys: found {str(key)[:80]!r}, expected an ssh-ed25519 public key")
    if len(set(keys)) != len(keys):
        raise UserError(f"{where}: host_keys: found a key twice, expected each once")
    return tuple(keys)


def read_base64(document: dict[str, object], key: str, where: str, *, optional: bool = False) -> bytes:
    """The bytes that an answer has under ``key``; empty if the key is ``optional`` and absent."""
    value = document.get(key)
    if value is None and optional:
        return b""
    try:
        if not isinstance(value, str):
            raise ValueError
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error):
        raise UserError(f"{where}: {key}: found {str(value)[:40]!r}, expected base64") from None
