# SPDX-License-Identifier: Apache-2.0
"""The ID block: the owner signs it, so that the secure processor starts only this guest and names it in its reports.

Sources: AMD 56860, SNP_LAUNCH_FINISH (ID block, ID authentication information structure) and its formats of ECDSA P-384
keys and signatures. Integers are little-endian. r, s and the coordinates of a key are too; each has 72 bytes.
"""

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sevsnp.errors import UserError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

BLOCK_SIZE, AUTH_SIZE = 96, 4096
KEY_SIZE, SIGNATURE_SIZE, DIGEST_SIZE = 0x404, 0x200, 48
_NUMBER = 72
_VERSION = 1
_ECDSA_P384_SHA384, _CURVE_P384 = 1, 2
_BLOCK = struct.Struct("<48s16s16sIIQ")
_AUTH = struct.Struct(f"<II56x{SIGNATURE_SIZE}s{KEY_SIZE}s60x{SIGNATURE_SIZE}s{KEY_SIZE}s892x")
_NO_KEY, _NO_SIGNATURE = bytes(KEY_SIZE), bytes(SIGNATURE_SIZE)
CURVE = "secp384r1"
_PUBLIC = "make it from a P-384 private key: openssl pkey -in PRIVATE_KEY -pubout -out PUBLIC_KEY"
_MAX_KEY = 1 << 16


@dataclass(frozen=True)
class IdBlock:
    """The signed values: launch digest (48 bytes), family and image (16 each), SVN (32 bits), guest policy (64)."""

    launch_digest: bytes
    family_id: bytes
    image_id: bytes
    guest_svn: int
    policy: int

    def __post_init__(self) -> None:
        for name, size in (("launch_digest", DIGEST_SIZE), ("family_id", 16), ("image_id", 16)):
            if len(getattr(self, name)) != size:
                raise ValueError(f"ID block: {name}: {len(getattr(self, name))} bytes, expected {size}")

    def encode(self) -> bytes:
        """The ID block in the secure processor's format, 96 bytes."""
        return _BLOCK.pack(self.launch_digest, self.family_id, self.image_id, _VERSION, self.guest_svn, self.policy)

    @classmethod
    def decode(cls, data: bytes) -> "IdBlock":
        """Read an ID block. Raises :class:`UserError` unless it has 96 bytes and the known version."""
        if len(data) != BLOCK_SIZE:
            raise UserError(f"ID block: found {len(data)} bytes, expected {BLOCK_SIZE}")
        digest, family, image, version, svn, policy = _BLOCK.unpack(data)
        if version != _VERSION:
            raise UserError(f"ID block: found version {version}, expected {_VERSION}")
        return cls(digest, family, image, svn, policy)


@dataclass(frozen=True)
class IdAuth:
    """The ID authentication: signatures (512 bytes) and public keys (1028 bytes) in the secure processor's format.

    ``id_key`` signed the block and ``author_key`` signed ``id_key``. Without an author, both author fields are zero.
    """

    block_signature: bytes
    id_key: bytes
    id_key_signature: bytes = _NO_SIGNATURE
    author_key: bytes = _NO_KEY

    @property
    def has_author(self) -> bool:
        """Whether the launch must set AUTHOR_KEY_EN."""
        return any(self.author_key)

    def encode(self) -> bytes:
        """The ID authentication in the secure processor's format, 4096 bytes."""
        author = _ECDSA_P384_SHA384 if self.has_author else 0
        return _AUTH.pack(
            _ECDSA_P384_SHA384, author, self.block_signature, self.id_key, self.id_key_signature, self.author_key
        )

    @classmethod
    def decode(cls, data: bytes) -> "IdAuth":
        """Read an ID authentication.

        Raises :class:`UserError` for another length or algorithm, or for reserved bytes that are not zero.
        """
        if len(data) != AUTH_SIZE:
            raise UserError(f"ID authentication block: found {len(data)} bytes, expected {AUTH_SIZE}")
        algorithm, author_algorithm, *fields = _AUTH.unpack(data)
        found = cls(*fields)
        if found.encode() != data:
            raise UserError(
                f"ID authentication block: algorithms {algorithm} and {author_algorithm}, or bytes between its fields: "
                "expected ECDSA P-384 with SHA-384 (1), an author's only with an author key, and zeros"
            )
        return found


@dataclass(frozen=True)
class Identity:
    """An ID block with its authentication, for a launch."""

    block: IdBlock
    auth: IdAuth

    @property
    def id_key_digest(self) -> bytes:
        """ID_KEY_DIGEST in the guest's reports: SHA-384 (48 bytes) of the key in the secure processor's format."""
        return hashlib.sha384(self.auth.id_key).digest()

    @property
    def author_key_digest(self) -> bytes:
        """AUTHOR_KEY_DIGEST in the guest's reports, 48 bytes; zero without an author."""
        return hashlib.sha384(self.auth.author_key).digest() if self.auth.has_author else bytes(DIGEST_SIZE)


def make_identity(
    block: IdBlock, id_key: "ec.EllipticCurvePrivateKey", author_key: "ec.EllipticCurvePrivateKey | None"
) -> Identity:
    """Sign ``block``. Some firmware of the secure processor refuses a block without an author key (INVALID_PARAM).

    The same input gives the same bytes, because the nonces are those of RFC 6979.
    """
    public = encode_public_key(id_key.public_key())
    auth = IdAuth(_sign(id_key, block.encode()), public)
    if author_key:
        author = encode_public_key(author_key.public_key())
        auth = IdAuth(auth.block_signature, public, _sign(author_key, public), author)
    return Identity(block, auth)


def check_identity(identity: Identity, launch_digest: bytes, policy: int) -> None:
    """Check what SNP_LAUNCH_FINISH checks. Raises :class:`UserError` with the status the secure processor would return.

    ``launch_digest`` (48 bytes) and ``policy`` are those of the launched guest.
    """
    block, auth = identity.block, identity.auth
    if not _is_signed(auth.id_key, auth.block_signature, block.encode()):
        raise _refusal("BAD_SIGNATURE", 0xA, "the ID block is not signed by the ID key beside it")
    if auth.has_author and not _is_signed(auth.author_key, auth.id_key_signature, auth.id_key):
        raise _refusal("BAD_SIGNATURE", 0xA, "the ID key is not signed by the author key beside it")
    if block.launch_digest != launch_digest:
        found = f"the guest measures as {launch_digest.hex()}, its ID block is for {block.launch_digest.hex()}"
        raise _refusal("BAD_MEASUREMENT", 0xB, found)
    check_policy(identity, policy)


def check_policy(identity: Identity, policy: int) -> None:
    """Compare a guest policy with that of the ID block, as SNP_LAUNCH_FINISH does. Raises :class:`UserError`."""
    found = identity.block.policy
    if found != policy:
        raise _refusal("POLICY_FAILURE", 0x7, f"the guest policy is {policy:#x}, its ID block is for {found:#x}")


def _refusal(status: str, number: int, why: str) -> UserError:
    return UserError(
        f"ID block: SNP_LAUNCH_FINISH: {status} ({number:#x}): {why}",
        "make a new one for this VM config: ./doitw idblock ID_KEY=FILE AUTHOR_KEY=FILE",
    )


def read_identity(block: Path, auth: Path) -> Identity:
    """Read an ID block and its authentication from two files in base64; only their form is checked."""
    return Identity(IdBlock.decode(_read(block, BLOCK_SIZE)), IdAuth.decode(_read(auth, AUTH_SIZE)))


def _read(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as stream:
            text = stream.read(2 * size)
        data = base64.b64decode(text.strip(), validate=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror}", "make it with: ./doitw idblock ID_KEY=FILE AUTHOR_KEY=FILE"
        ) from error
    except binascii.Error:
        data = b""
    if len(data) != size:
        raise UserError(
            f"{path}: found other than {size} bytes in base64",
            "make it with: ./doitw idblock ID_KEY=FILE AUTHOR_KEY=FILE",
        )
    return data


def write_identity(identity: Identity, block: Path, auth: Path) -> None:
    """Write both in base64, one line each, as :func:`read_identity` and QEMU read them."""
    for path, data in ((block, identity.block.encode()), (auth, identity.auth.encode())):
        path.write_bytes(base64.b64encode(data) + b"\n")


def key_digest_of(path: Path) -> bytes:
    """:func:`key_digest` of a public key file in PEM (SubjectPublicKeyInfo), the form in which policies name keys."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        with path.open("rb") as stream:
            key = load_pem_public_key(stream.read(_MAX_KEY))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", _PUBLIC) from error
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path}: not a public key", _PUBLIC) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != CURVE:
        raise UserError(f"{path}: found {kind_of(key)}", _PUBLIC)
    return key_digest(key)


def kind_of(key: object) -> str:
    """The kind of a key object of the library, for an error message."""
    return str(getattr(getattr(key, "curve", None), "name", "")) or "a key of another kind"


def encode_public_key(key: "ec.EllipticCurvePublicKey") -> bytes:
    """A P-384 public key in the secure processor's format, 1028 bytes."""
    numbers = key.public_numbers()
    coordinates = b"".join(number.to_bytes(_NUMBER, "little") for number in (numbers.x, numbers.y))
    return (_CURVE_P384.to_bytes(4, "little") + coordinates).ljust(KEY_SIZE, b"\0")


def key_digest(key: "ec.EllipticCurvePublicKey") -> bytes:
    """The digest (48 bytes) by which a report names an ID key or an author key."""
    return hashlib.sha384(encode_public_key(key)).digest()


def _sign(key: "ec.EllipticCurvePrivateKey", data: bytes) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    signature = key.sign(data, ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
    numbers = (number.to_bytes(_NUMBER, "little") for number in decode_dss_signature(signature))
    return b"".join(numbers).ljust(SIGNATURE_SIZE, b"\0")


def _is_signed(public: bytes, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    r, s = (int.from_bytes(signature[at : at + _NUMBER], "little") for at in (0, _NUMBER))
    x, y = (int.from_bytes(public[4 + at : 4 + at + _NUMBER], "little") for at in (0, _NUMBER))
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
        if encode_public_key(key) != public or any(signature[2 * _NUMBER :]):
            return False
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False  # ValueError: the coordinates are not a point on the curve
    return True
