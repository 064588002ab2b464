# SPDX-License-Identifier: Apache-2.0
"""REPORT_DATA: what the guest binds to its evidence, domain-separated and length-framed.

REPORT_DATA = SHA-512(label, NUL, framed(x) for each x), framed(x) = length of x as 8 bytes big-endian, then x.
The module needs only the standard library, because the guest's agent uses this very file.
"""

import hashlib
import struct
from typing import Sequence  # noqa: UP035 - the guest's Python may be 3.8, where only this one can be subscripted

SIZE = 64
NONCE_SIZE = 32
SSH_LABEL = "openend2e-sevsnp ssh host keys v1"
LUKS_LABEL = "openend2e-sevsnp luks key v1"
DIGEST_SIZE = 32


def report_data(label: str, parts: Sequence[bytes]) -> bytes:
    """REPORT_DATA (64 bytes) for ``parts`` in the given order, in the domain of ``label`` (printable ASCII)."""
    if not label or not all(" " <= character <= "~" for character in label):
        raise ValueError("label: expected printable ASCII")
    digest = hashlib.sha512(label.encode("ascii") + b"\0")
    for part in parts:
        digest.update(struct.pack(">Q", len(part)) + part)
    return digest.digest()


def ssh_report_data(nonce: bytes, host_keys: Sequence[bytes]) -> bytes:
    """REPORT_DATA (64 bytes) for the verifier's nonce (32 bytes) and all of the guest's SSH host public keys.

    ``host_keys`` are OpenSSH public key blobs (RFC 4253 §6.6; a ``.pub`` file has the blob in base64), in any order.
    Raises ValueError for another nonce length, no keys, an empty key or a key given twice.
    """
    if len(nonce) != NONCE_SIZE:
        raise ValueError(f"nonce: found {len(nonce)} bytes, expected {NONCE_SIZE}")
    if not host_keys or not all(host_keys) or len(set(host_keys)) != len(host_keys):
        raise ValueError("host keys: expected at least one key, no empty key, and no key twice")
    return report_data(SSH_LABEL, [nonce, *sorted(host_keys)])


def luks_report_data(nonce: bytes, tls_key: bytes, header: bytes) -> bytes:
    """REPORT_DATA (64 bytes) for the owner's nonce, the guest's TLS key and the header of its volume.

    ``tls_key`` is the SHA-256 of the DER SubjectPublicKeyInfo (RFC 5280 §4.1) of the guest's certificate, ``header``
    is the SHA-256 of the LUKS header. Both and the nonce have 32 bytes. Raises ValueError for other lengths.
    """
    for name, part, size in (
        ("nonce", nonce, NONCE_SIZE),
        ("key", tls_key, DIGEST_SIZE),
        ("header", header, DIGEST_SIZE),
    ):
        if len(part) != size:
            raise ValueError(f"{name}: found {len(part)} bytes, expected {size}")
    return report_data(LUKS_LABEL, [nonce, tls_key, header])


def read_public_key(line: str) -> bytes:
    """The key blob of one line of an OpenSSH public key file (``type base64 comment``). Raises ValueError."""
    import base64
    import binascii

    words = line.split()
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (IndexError, binascii.Error):
        raise ValueError("not an OpenSSH public key: expected `type base64 comment`") from None
    name = words[0].encode()
    # A public key blob begins with its own type; this check refuses private keys and other files.
    if blob[: 4 + len(name)] != struct.pack(">I", len(name)) + name:
        raise ValueError("not an OpenSSH public key: the type does not match the key")
    return blob
