# SPDX-License-Identifier: Apache-2.0
"""The ID block: its bytes, its keys, and the blocks that the secure processor refuses."""

import base64
import dataclasses
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sevsnp.errors import UserError
from sevsnp.measurement.id_block import (
    IdAuth,
    IdBlock,
    Identity,
    check_identity,
    encode_public_key,
    key_digest,
    key_digest_of,
    make_identity,
    read_identity,
    write_identity,
)
from sevsnp.measurement.signed_config import load_key
from tests.support.evidence import MEASUREMENT, VECTORS, needs_vectors

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command here")

ID_KEY, AUTHOR_KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
POLICY = 0x30000
BLOCK = IdBlock(MEASUREMENT, b"f" * 16, b"i" * 16, 7, POLICY)
SIGNED = make_identity(BLOCK, ID_KEY, AUTHOR_KEY)
P384 = "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384"


def openssl(words: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *words.split()], input=stdin, capture_output=True, check=True).stdout


def write_key(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(data)
    path.chmod(mode)
    return path


# Bytes.

REAL_BLOCK = base64.b64decode(
    "oU1jg0HlZ0Yo/h4C++3r5eWrT68d1y2JZgaOYVu5nv0T0hSzXCMXFbOOJj3GBZdFAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB"
    "AAAAAAAAAAAAAwAAAAAA"
)


@needs_vectors
def test_vectors(tmp_path: Path) -> None:
    folder = VECTORS / "idblock"
    block, auth = IdBlock.decode(REAL_BLOCK), IdAuth.decode((folder / "test_auth_block.bin").read_bytes())
    assert block.encode() == REAL_BLOCK and block.policy == POLICY
    identity = Identity(block, auth)
    check_identity(identity, block.launch_digest, POLICY)
    for path, name, digest in (
        ("test_id_key.pem", "id_key", "WfssaG36T+9J84M5qndckAUcKNVzg93DuvO160sUlt87DbvcuuX+J2d6ZEggdz/i"),
        ("test_auth_key.pem", "author_key", "7tgRafsMteDsNHlPEo/U4MSkb2fGWhrfqB/LJLzAiMJyNpt//D6ytq9qQoShs2xf"),
    ):
        key = load_key(write_key(tmp_path / path, (folder / path).read_bytes()))
        assert encode_public_key(key.public_key()) == getattr(auth, name)
        assert getattr(identity, f"{name}_digest") == key_digest(key.public_key()) == base64.b64decode(digest)
    assert auth.block_signature == (folder / "test_id_sig.bin").read_bytes()
    assert auth.id_key_signature == (folder / "test_auth_sig.bin").read_bytes()
    assert auth.encode() == (folder / "test_auth_block.bin").read_bytes()


def test_layout() -> None:
    block, auth = SIGNED.block.encode(), SIGNED.auth.encode()
    assert (len(block), len(auth)) == (96, 4096)
    assert block[:48] == MEASUREMENT and block[48:64] == b"f" * 16 and block[64:80] == b"i" * 16
    assert [int.from_bytes(block[at:end], "little") for at, end in ((80, 84), (84, 88), (88, 96))] == [1, 7, POLICY]
    assert [int.from_bytes(auth[at : at + 4], "little") for at in (0, 4, 0x240, 0x880)] == [1, 1, 2, 2]
    x = ID_KEY.public_key().public_numbers().x
    assert auth[0x244:0x28C] == x.to_bytes(72, "little")
    zeros = ((0x08, 0x40), (0xD0, 0x240), (0x2D4, 0x680), (0x710, 0x880), (0x914, 0x1000))
    assert not any(any(auth[start:end]) for start, end in zeros)


def test_a_written_id_block_is_read_back(tmp_path: Path) -> None:
    assert IdBlock.decode(SIGNED.block.encode()) == SIGNED.block and IdAuth.decode(SIGNED.auth.encode()) == SIGNED.auth
    paths = tmp_path / "block", tmp_path / "auth"
    write_identity(SIGNED, *paths)
    assert read_identity(*paths) == SIGNED
    assert all(path.read_text().count("\n") == 1 for path in paths)


def test_equal_to_the_other_implementation(tmp_path: Path) -> None:
    theirs = pytest.importorskip("sevsnpmeasure.id_block", reason="sev-snp-measure is not installed")
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    paths = []
    for name, key in (("id", ID_KEY), ("author", AUTHOR_KEY)):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    text = theirs.snp_calc_id_block(MEASUREMENT, *map(str, paths))
    block, auth = (base64.b64decode(part.split("=", 1)[1]) for part in text.splitlines()[0].split(","))
    # It can neither say an SVN nor the ids, and its nonces are its own.
    mine = make_identity(IdBlock(MEASUREMENT, bytes(16), bytes(16), 0, POLICY), ID_KEY, AUTHOR_KEY)
    assert mine.block.encode() == block
    found = Identity(IdBlock.decode(block), IdAuth.decode(auth))
    assert (found.auth.id_key, found.auth.author_key) == (mine.auth.id_key, mine.auth.author_key)
    assert base64.b64encode(mine.id_key_digest).decode() in text
    assert base64.b64encode(mine.author_key_digest).decode() in text
    for one in (found, mine):
        check_identity(one, MEASUREMENT, POLICY)


def test_the_same_input_gives_the_same_bytes() -> None:
    assert make_identity(BLOCK, ID_KEY, AUTHOR_KEY) == SIGNED
    assert make_identity(BLOCK, OTHER_KEY, AUTHOR_KEY) != SIGNED


def test_lengths_and_reserved_bytes() -> None:
    block, auth = SIGNED.block.encode(), SIGNED.auth.encode()
    for wrong in (b"", block[:-1], block + b"\0", block[:80] + b"\2" + block[81:]):
        with pytest.raises(UserError, match="ID block: found"):
            IdBlock.decode(wrong)
    for wrong in (b"", auth[:-1], auth + b"\0"):
        with pytest.raises(UserError, match="found"):
            IdAuth.decode(wrong)
    for at in (0, 1, 4, 8, 0x3F, 0x644, 0x67F, 0xC84, 0xFFF):
        with pytest.raises(UserError, match="ID authentication block: algorithms"):
            IdAuth.decode(auth[:at] + bytes((auth[at] ^ 4,)) + auth[at + 1 :])
    with pytest.raises(ValueError, match="family_id: 15 bytes"):
        dataclasses.replace(BLOCK, family_id=bytes(15))


@pytest.mark.parametrize("text", [b"", b"AAAA", b"%" * 128, b"A" * 200, b"\xff" * 128])
def test_files_that_are_not_an_id_block_are_refused(tmp_path: Path, text: bytes) -> None:
    paths = tmp_path / "block", tmp_path / "auth"
    write_identity(SIGNED, *paths)
    read_identity(*paths)  # control
    paths[0].write_bytes(text)
    with pytest.raises(UserError, match=r"block: found other than 96 bytes in base64"):
        read_identity(*paths)
    paths[0].unlink()
    with pytest.raises(UserError, match=r"block: cannot be read"):
        read_identity(*paths)


# What the secure processor checks.


def test_every_bit_of_the_block_is_signed() -> None:
    check_identity(SIGNED, MEASUREMENT, POLICY)
    raw = SIGNED.block.encode()
    for bit in range(8 * len(raw)):
        if 640 <= bit < 672:
            continue  # the version, which is refused when it is read
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        one = IdBlock.decode(bytes(changed))
        with pytest.raises(UserError, match=r"BAD_SIGNATURE \(0xa\)"):
            check_identity(Identity(one, SIGNED.auth), one.launch_digest, one.policy)


def changed_auth(**changes: bytes) -> Identity:
    return Identity(BLOCK, dataclasses.replace(SIGNED.auth, **changes))


STRANGER = make_identity(BLOCK, OTHER_KEY, AUTHOR_KEY).auth
# A number that is no point of the curve, and a point with bytes after it that nobody reads.
NO_POINT = SIGNED.auth.id_key[:4] + bytes(71) + b"\1" + SIGNED.auth.id_key[76:]
TRAILING = SIGNED.auth.id_key[:-1] + b"\1"


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (changed_auth(id_key=STRANGER.id_key), "ID block is not signed"),
        (changed_auth(id_key=STRANGER.id_key, block_signature=STRANGER.block_signature), "ID key is not signed"),
        (changed_auth(block_signature=bytes(512)), "ID block is not signed"),
        (changed_auth(id_key_signature=bytes(512)), "ID key is not signed"),
        (changed_auth(author_key=SIGNED.auth.id_key), "ID key is not signed"),
        (changed_auth(id_key=NO_POINT), "ID block is not signed"),
        (changed_auth(id_key=TRAILING), "ID block is not signed"),
        (changed_auth(block_signature=SIGNED.auth.block_signature[:-1] + b"\1"), "ID block is not signed"),
    ],
)
def test_keys_and_signatures_that_do_not_match_are_refused(identity: Identity, words: str) -> None:
    check_identity(Identity(BLOCK, SIGNED.auth), MEASUREMENT, POLICY)  # control
    with pytest.raises(UserError, match=rf"BAD_SIGNATURE \(0xa\): the {words}"):
        check_identity(identity, MEASUREMENT, POLICY)


def test_another_guest_and_another_policy() -> None:
    check_identity(SIGNED, MEASUREMENT, POLICY)  # control
    with pytest.raises(UserError, match=r"BAD_MEASUREMENT \(0xb\): the guest measures as 0101"):
        check_identity(SIGNED, b"\1" * 48, POLICY)
    with pytest.raises(UserError, match=r"POLICY_FAILURE \(0x7\): the guest policy is 0xb0000, .* for 0x30000"):
        check_identity(SIGNED, MEASUREMENT, 0xB0000)


def test_without_an_author() -> None:
    alone = make_identity(BLOCK, ID_KEY, None)
    check_identity(alone, MEASUREMENT, POLICY)
    assert not alone.auth.has_author and alone.author_key_digest == bytes(48)
    assert alone.auth.encode()[4:8] == bytes(4) and not any(alone.auth.encode()[0x680:])
    assert alone.id_key_digest == SIGNED.id_key_digest == hashlib.sha384(SIGNED.auth.id_key).digest()
    assert IdAuth.decode(alone.auth.encode()) == alone.auth


# Keys.


@needs_openssl
@pytest.mark.parametrize("make", [P384, "ecparam -name secp384r1 -genkey", "ecparam -name secp384r1 -genkey -noout"])
def test_forms_of_keys(tmp_path: Path, make: str) -> None:
    key = write_key(tmp_path / "key.pem", openssl(make))
    public = tmp_path / "key.pub.pem"
    public.write_bytes(openssl(f"pkey -pubout -in {key}"))
    assert key_digest_of(public) == key_digest(load_key(key).public_key())
    check_identity(make_identity(BLOCK, load_key(key), load_key(key)), MEASUREMENT, POLICY)


@needs_openssl
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (P384.replace("P-384", "P-256"), "found secp256r1"),
        ("genpkey -algorithm ed25519", "found a key of another kind"),
        ("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-521", "found secp521r1"),
        ("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048", "found (RSA|a key of another kind)"),
    ],
)
def test_keys_of_another_kind(tmp_path: Path, make: str, words: str) -> None:
    key = write_key(tmp_path / "key.pem", openssl(make))
    with pytest.raises(UserError, match=words):
        load_key(key)
    public = tmp_path / "key.pub.pem"
    public.write_bytes(openssl(f"pkey -pubout -in {key}"))
    with pytest.raises(UserError, match=words):
        key_digest_of(public)


@needs_openssl
def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = write_key(tmp_path / "key.pem", openssl(P384))
    load_key(key)  # control
    key.chmod(0o644)
    with pytest.raises(UserError, match="expected 0600"):
        load_key(key)
