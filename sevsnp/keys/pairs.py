# SPDX-License-Identifier: Apache-2.0
"""Make the user's SSH key and the owner's key in the user's configuration directory, once; never overwrite them."""

import contextlib
import datetime
import os
import stat
from pathlib import Path
from shlex import quote

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import NameOID

from sevsnp.errors import UserError
from sevsnp.keys.paths import Keys
from sevsnp.system.files import write_durable

# The measured command line contains the whole certificate in base64: 201 bytes, 268 characters, no padding.
CERTIFICATE_BYTES = 201
# Two bytes: with one byte, base64 would end with an equals sign.
SERIAL_NUMBER = 0x534E

FORMATS = {PrivateFormat.OpenSSH: "OpenSSH", PrivateFormat.PKCS8: "PKCS#8 PEM"}


def ensure_keys(config_dir: Path) -> Keys:
    """The keys in ``config_dir``; absent keys are made with fresh randomness. Two processes may do this at once.

    Raises UserError for a symbolic link, for a private key that others may read, and for a public half that does not
    match its private half.
    """
    _private_directory(config_dir)
    keys = Keys.of(config_dir)
    user = _private_key(keys.user_private, PrivateFormat.OpenSSH)
    public = user.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    _derived(keys.user_public, keys.user_private, public + b"\n", significant=public)
    owner = _private_key(keys.owner_private, PrivateFormat.PKCS8)
    certificate = make_certificate(owner)
    _derived(keys.owner_certificate, keys.owner_private, certificate, significant=certificate)
    return keys


def make_certificate(key: Ed25519PrivateKey) -> bytes:
    """The self-signed certificate of ``key`` as PEM, valid 1970–9999; the same for the same key.

    The validity does not depend on a clock: the host controls the guest's clock, so a time limit would limit nothing.
    Serial number and subject are as short as X.509 allows, because the kernel's command line has at most 2,047 bytes.
    """
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "o")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(SERIAL_NUMBER)
        .not_valid_before(datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC))
    )
    return builder.sign(key, None).public_bytes(Encoding.PEM)


def certificate_der(certificate: Path) -> bytes:
    """The owner's certificate as DER. Raises UserError unless the file is one PEM certificate of 201 bytes (DER)."""
    try:
        der = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(Encoding.DER)
    except (OSError, ValueError) as error:
        raise UserError(f"{certificate}: expected a PEM certificate: {error}") from error
    if len(der) != CERTIFICATE_BYTES:
        raise UserError(f"{certificate}: {len(der)} bytes in DER, expected {CERTIFICATE_BYTES}")
    return der


def _private_directory(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        status = path.stat()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be made: {error.strerror}", "set CONFIG_DIR to a directory of yours"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise UserError(f"{path}: expected a directory", "set CONFIG_DIR to a directory of yours")
    _check_owner(path, status)
    if status.st_mode & 0o077:
        raise UserError(
            f"{path}: mode {stat.S_IMODE(status.st_mode):04o}, expected 0700: it holds private keys",
            f"run: chmod 700 {quote(str(path))}",
        )


def _check_owner(path: Path, status: os.stat_result) -> None:
    # Root may use the keys of the user for whom it works, as under sudo.
    if os.geteuid() not in (0, status.st_uid):
        raise UserError(
            f"{path}: belongs to uid {status.st_uid}, expected {os.geteuid()}", "set CONFIG_DIR to a directory of yours"
        )


def _read(path: Path, *, private: bool) -> bytes | None:
    """The file's content, or None without a file. It checks the open file, which cannot be exchanged afterwards."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if path.is_symlink():
            raise UserError(
                f"{path}: a symbolic link, expected a file",
                "put the key itself there, or set CONFIG_DIR to a directory of yours",
            ) from error
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as stream:
        status = os.fstat(stream.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: expected a file")
        _check_owner(path, status)
        if private and status.st_mode & 0o077:
            raise UserError(
                f"{path}: mode {stat.S_IMODE(status.st_mode):04o}, expected 0600: others may have read it",
                f"remove it for a new one, or keep it and run: chmod 600 {quote(str(path))}",
            )
        return stream.read(1 << 16)


def _create(path: Path, data: bytes, mode: int) -> None:
    """Make the file ``path`` with ``data`` and ``mode`` unless it exists. The file appears with all of its content."""
    with contextlib.suppress(FileExistsError):
        write_durable(path, data, mode, new=True)


def _private_key(path: Path, form: PrivateFormat) -> Ed25519PrivateKey:
    data = _read(path, private=True)
    if data is None:
        fresh = Ed25519PrivateKey.generate()
        _create(path, fresh.private_bytes(Encoding.PEM, form, NoEncryption()), 0o600)
        data = _read(path, private=True)
    load = load_ssh_private_key if form is PrivateFormat.OpenSSH else load_pem_private_key
    try:
        key = load(data or b"", None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"a {type(key).__name__}")
    except (ValueError, TypeError) as error:
        # Show only the text of the error: no part of the key may appear in a message.
        raise UserError(
            f"{path}: expected an Ed25519 private key without passphrase, as {FORMATS[form]}: {error}",
            f"move it away, for a new one: mv {quote(str(path))} {quote(f'{path}.old')}",
        ) from None
    return key


def _derived(path: Path, private: Path, data: bytes, *, significant: bytes) -> None:
    """Make the public half ``path`` if it is absent. An existing file must begin with ``significant``."""
    if _read(path, private=False) is None:
        _create(path, data, 0o644)
    found = _read(path, private=False) or b""
    if not found.startswith(significant):
        raise UserError(
            f"{path}: does not belong to {private.name}",
            f"remove it, and it is made again from the private key: rm {quote(str(path))}",
        )


def make_keys(*, config_dir: Path) -> None:
    """The action of the task _keys: check the keys, make absent ones, and print their place."""
    paths = ensure_keys(config_dir)
    print(f"  keys in {config_dir}: log in with {paths.user_private.name}; the owner's is {paths.owner_private.name}")
