"""The ID block: which digest, ids, SVN and policy a guest's owner has signed, which the secure processor compares.

Source: AMD 56860 (SNP_LAUNCH_FINISH: ID_BLOCK and ID_AUTH; the formats of public keys and signatures). Integers are
little-endian. The ID key signs the block and the author key signs the ID key; older firmware refuses a block without an
author key with INVALID_PARAM, so both are always made.
"""

import base64
import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from sevsnp.errors import UserError

BLOCK_SIZE, AUTH_SIZE, KEY_SIZE, SIGNATURE_SIZE = 96, 4096, 0x404, 0x200
_BLOCK = struct.Struct("<48s16s16sIIQ")  # launch digest, family, image, version, guest SVN, policy
_AUTH = struct.Struct(f"<II56x{SIGNATURE_SIZE}s{KEY_SIZE}s60x{SIGNATURE_SIZE}s{KEY_SIZE}s892x")
_VERSION, _ECDSA_P384_SHA384, _CURVE_P384, _NUMBER = 1, 1, 2, 72
_MAX_KEY_FILE = 1 << 16

Ask = Callable[[str], str]
PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


@dataclass(frozen=True)
class IdBlock:
    """What is signed: the launch digest (48 bytes), ids (16 bytes each), guest SVN (u32) and guest policy (u64)."""

    launch_digest: bytes
    family_id: bytes
    image_id: bytes
    guest_svn: int
    policy: int

    def encode(self) -> bytes:
        """The 96 bytes of ID_BLOCK."""
        for name, value, length in (
            ("launch_digest", self.launch_digest, 48),
            ("family_id", self.family_id, 16),
            ("image_id", self.image_id, 16),
        ):
            if len(value) != length:
                raise ValueError(f"{name}: {len(value)} bytes, expected {length}")
        return _BLOCK.pack(
            self.launch_digest, self.family_id, self.image_id, _VERSION, self.guest_svn, self.policy
        )


@dataclass(frozen=True)
class IdAuth:
    """Who signed: digests (48 bytes) of the two public keys, as reports carry them."""

    id_key_digest: bytes
    author_key_digest: bytes


def decode_block(data: bytes) -> IdBlock:
    """An ID_BLOCK of 96 bytes. Raises :class:`UserError`."""
    if len(data) != BLOCK_SIZE:
        raise UserError(f"ID block: found {len(data)} bytes, expected {BLOCK_SIZE}")
    digest, family, image, version, svn, policy = _BLOCK.unpack(data)
    if version != _VERSION:
        raise UserError(f"ID block: found version {version}, expected {_VERSION}")
    return IdBlock(digest, family, image, svn, policy)


def make_auth(block: bytes, id_key: PrivateKey, author_key: PrivateKey) -> bytes:
    """The 4096 bytes of ID_AUTH for an ID_BLOCK (96 bytes)."""
    return assemble_auth(
        _sign(id_key, block), id_key.public_key(), _sign(author_key, encode_key(id_key.public_key())),
        author_key.public_key(),
    )  # fmt: skip


def assemble_auth(block_signature: bytes, id_key: PublicKey, key_signature: bytes, author_key: PublicKey) -> bytes:
    """ID_AUTH from signatures (512 bytes each, as the secure processor has them) that were made elsewhere."""
    algorithm = _ECDSA_P384_SHA384
    return _AUTH.pack(
        algorithm, algorithm, block_signature, encode_key(id_key), key_signature, encode_key(author_key)
    )


def verify_auth(block: bytes, auth: bytes) -> IdAuth:
    """Check both signatures as the secure processor does. Raises :class:`UserError`."""
    if len(auth) != AUTH_SIZE:
        raise UserError(f"ID authentication block: found {len(auth)} bytes, expected {AUTH_SIZE}")
    id_algorithm, author_algorithm, block_signature, id_key, key_signature, author_key = _AUTH.unpack(auth)
    known = _AUTH.pack(id_algorithm, author_algorithm, block_signature, id_key, key_signature, author_key)
    if known != auth or (id_algorithm, author_algorithm) != (_ECDSA_P384_SHA384, _ECDSA_P384_SHA384):
        raise UserError("ID authentication block: an unknown algorithm, or reserved bytes that are not zero")
    if not _signed(id_key, block_signature, block):
        raise UserError("ID authentication block: the block is not signed by the ID key (BAD_SIGNATURE)")
    if not _signed(author_key, key_signature, id_key):
        raise UserError("ID authentication block: the ID key is not signed by the author key (BAD_SIGNATURE)")
    return IdAuth(hashlib.sha384(id_key).digest(), hashlib.sha384(author_key).digest())


def check_launch(block: bytes, auth: bytes, launch_digest: bytes, policy: int) -> IdAuth:
    """What SNP_LAUNCH_FINISH checks; raises :class:`UserError` with the firmware's word for what is wrong."""
    said = decode_block(block)
    digests = verify_auth(block, auth)
    hint = "make the ID block anew: doit idblock"
    if said.launch_digest != launch_digest:
        raise UserError(
            f"ID block: for launch digest {said.launch_digest.hex()}, and this guest's is {launch_digest.hex()} "
            "(BAD_MEASUREMENT)", hint,
        )  # fmt: skip
    if said.policy != policy:
        raise UserError(f"ID block: for guest policy {said.policy:#x}, found {policy:#x} (POLICY_FAILURE)", hint)
    return digests


def encode_key(key: PublicKey) -> bytes:
    """A P-384 public key in the secure processor's form: curve, x and y little-endian, 0x404 bytes."""
    numbers = key.public_numbers()
    x, y = (number.to_bytes(_NUMBER, "little") for number in (numbers.x, numbers.y))
    return (struct.pack("<I", _CURVE_P384) + x + y).ljust(KEY_SIZE, b"\0")


def key_digest(key: PublicKey) -> bytes:
    """SHA-384 of :func:`encode_key`: ID_KEY_DIGEST and AUTHOR_KEY_DIGEST in reports, 48 bytes."""
    return hashlib.sha384(encode_key(key)).digest()


def key_digest_of(path: Path) -> bytes:
    """The digest of the public key in a PEM file, or of a private key's. Raises :class:`UserError`."""
    data = _read(path)
    if b"PRIVATE KEY" in data:
        return key_digest(load_private_key(path).public_key())
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{path}: not a public key in PEM") from error
    return key_digest(_p384(path, key))


def load_private_key(path: Path, ask: Ask | None = None) -> PrivateKey:
    """A P-384 key in PKCS#8 or SEC1 PEM; ``ask`` is called with a prompt for the passphrase of an encrypted one.

    Raises :class:`UserError` for another key, another curve, a wrong passphrase.
    """
    data = _read(path)
    encrypted = b"ENCRYPTED" in data
    if encrypted and ask is None:
        raise UserError(f"{path}: the key is encrypted, and there is nobody to ask for its passphrase")
    password = ask(f"passphrase of {path}: ").encode() if encrypted and ask else None
    try:
        key = serialization.load_pem_private_key(data, password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        what = "wrong passphrase, or not a private key in PEM" if encrypted else "not a private key in PEM"
        hint = "make one: openssl ecparam -genkey -name secp384r1 -noout -out KEY"
        raise UserError(f"{path}: {what}", hint) from error
    if not isinstance(key, PrivateKey):
        raise UserError(f"{path}: not an elliptic-curve key, expected P-384")
    _p384(path, key.public_key())
    return key


def to_base64(data: bytes) -> str:
    """As QEMU's id-block and id-auth take it, on one line."""
    return base64.b64encode(data).decode()


def _p384(path: Path, key: object) -> PublicKey:
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise UserError(f"{path}: expected a key on P-384, the only curve that the secure processor takes")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_MAX_KEY_FILE)
    except OSError as error:
        raise UserError(f"{path}: cannot read the key: {error.strerror}") from error


def _sign(key: PrivateKey, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA384())))
    return (r.to_bytes(_NUMBER, "little") + s.to_bytes(_NUMBER, "little")).ljust(SIGNATURE_SIZE, b"\0")


def _signed(encoded: bytes, signature: bytes, data: bytes) -> bool:
    curve, x, y = struct.unpack_from(f"<I{_NUMBER}s{_NUMBER}s", encoded)
    numbers = [int.from_bytes(part, "little") for part in (x, y, signature[:_NUMBER], signature[_NUMBER : 2 * _NUMBER])]
    if curve != _CURVE_P384 or any(encoded[4 + 2 * _NUMBER :]) or any(signature[2 * _NUMBER :]):
        return False
    try:
        key = ec.EllipticCurvePublicNumbers(numbers[0], numbers[1], ec.SECP384R1()).public_key()
        key.verify(encode_dss_signature(numbers[2], numbers[3]), data, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True
