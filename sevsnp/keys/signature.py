# SPDX-License-Identifier: Apache-2.0
"""Detached signatures of release files, in forms that stock tools can verify.

An Ed25519 key signs the file itself (RFC 8032), 64 bytes:

    openssl pkeyutl -verify -pubin -inkey key.pub.pem -rawin -in manifest.json -sigfile manifest.json.sig

An ECDSA key signs its SHA-256 (P-256) or SHA-384 (P-384), as DER, with the nonce of RFC 6979:

    openssl dgst -sha256 -verify key.pub.pem -signature manifest.json.sig manifest.json

`openssl pkey -in key.pem -pubout` gives the public key. The signed bytes begin with their type. So a signature that was
made for another purpose is not valid here, and a signature from here is not valid elsewhere.
"""

import getpass
import hashlib
import os
import stat
from pathlib import Path
from shlex import quote

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from sevsnp.errors import UserError
from sevsnp.system import progress

MAX_KEY = 1 << 16
EXPECTED = "Ed25519, or ECDSA on P-256 or P-384, in PEM"
_HASHES: dict[str, hashes.HashAlgorithm] = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384()}

SigningKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey
VerifyingKey = Ed25519PublicKey | ec.EllipticCurvePublicKey


def load_signing_key(path: Path) -> SigningKey:
    """The private key in ``path``; for an encrypted key, the user types the password on the terminal.

    Raises UserError for a key that others may read, for a key of another kind, and for an encrypted key without a
    terminal. No message contains a part of the key.
    """
    data = _read_private(path)
    try:
        try:
            key = load_pem_private_key(data, None)
        except TypeError:  # the key is encrypted, and no password was given
            key = load_pem_private_key(data, _ask(path))
    except (ValueError, UnsupportedAlgorithm):
        # The library's text is not shown: it is about PEM in general, and the file is a secret.
        raise UserError(f"{path}: not a private key, or the password does not fit: expected {EXPECTED}") from None
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _HASHES:
        return key
    raise _wrong_kind(path, key)


def load_public_key(path: Path) -> VerifyingKey:
    """The public key in ``path`` (SubjectPublicKeyInfo in PEM). Raises UserError for another kind."""
    try:
        with path.open("rb") as stream:
            key = load_pem_public_key(stream.read(MAX_KEY))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(
            f"{path}: not a public key",
            f"make it from the private key: openssl pkey -in PRIVATE_KEY -pubout -out {quote(str(path))}",
        ) from None
    if isinstance(key, Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _HASHES:
        return key
    raise _wrong_kind(path, key)


def sign(key: SigningKey, data: bytes) -> bytes:
    """The signature of ``data``: 64 bytes by an Ed25519 key, DER by an ECDSA one. The same for the same input."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(data)
    return key.sign(data, ec.ECDSA(_HASHES[key.curve.name], deterministic_signing=True))


def is_signed(key: VerifyingKey, signature: bytes, data: bytes) -> bool:
    """Whether ``signature`` is a signature of ``data`` by ``key``."""
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        else:
            key.verify(signature, data, ec.ECDSA(_HASHES[key.curve.name]))
    except InvalidSignature:
        return False
    return True


def fingerprint(key: VerifyingKey) -> str:
    """SHA-256 of the public key's DER (SubjectPublicKeyInfo), 64 hex digits."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _read_private(path: Path) -> bytes:
    # Check the open file, so that it cannot be exchanged after the check. A link is allowed: secret stores use links.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}, expected a private key in PEM") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise UserError(f"{path}: expected a file with a private key in PEM")
    with os.fdopen(descriptor, "rb") as stream:
        if os.geteuid() not in (0, status.st_uid):
            raise UserError(f"{path}: belongs to uid {status.st_uid}, expected {os.geteuid()}")
        if status.st_mode & 0o077:
            raise UserError(
                f"{path}: mode {stat.S_IMODE(status.st_mode):04o}, expected 0600: others may have read it",
                f"sign with a new one, or keep it and run: chmod 600 {quote(str(path))}",
            )
        return stream.read(MAX_KEY)


def _ask(path: Path) -> bytes:
    try:
        # Without a terminal, getpass would read from standard input and echo the password.
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        raise UserError(
            f"{path}: is encrypted, and there is no terminal to ask for its password",
            "run it in a terminal, or give a key without a password: "
            f"openssl pkey -in {quote(str(path))} -out {quote(str(path.with_suffix('.plain.pem')))}",
        ) from None
    with progress.paused():
        return getpass.getpass(f"Password of {path}: ").encode()


def _wrong_kind(path: Path, key: object) -> UserError:
    curve = getattr(getattr(key, "curve", None), "name", "")
    kind = type(key).__name__.removeprefix("_").removesuffix("PrivateKey").removesuffix("PublicKey")
    return UserError(f"{path}: found {curve or kind}, expected {EXPECTED}")
