# SPDX-License-Identifier: Apache-2.0
"""LUKS2 headers: parsed, refused if damaged, and opened by the right key only; made here from the specification."""

import base64
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sevsnp.errors import UserError
from sevsnp.images.luks2 import HEADER_SIZE, Luks2, opens

UUID = "0f2a6c1e-5b1f-4f0c-9d3c-6a7b8c9d0e1f"
METADATA, OFFSET = 16384, 32768
VOLUME_KEY = bytes(range(96))
PBKDF2 = {"type": "pbkdf2", "hash": "sha256", "iterations": 1000}
ARGON2 = {"type": "argon2id", "time": 4, "memory": 1024, "cpus": 1}
KEY = b"\0binary\nkey\xff"


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def split(key: bytes, stripes: int) -> bytes:
    """LUKS1 specification, section 2.4: random stripes, and a last one with which they give the key."""
    written, block = [], bytes(len(key))
    for number in range(stripes - 1):
        stripe = hashlib.shake_256(number.to_bytes(4, "big")).digest(len(key))
        mixed = bytes(a ^ b for a, b in zip(block, stripe, strict=True))
        parts = [mixed[at : at + 32] for at in range(0, len(mixed), 32)]
        hashed = (hashlib.sha256(index.to_bytes(4, "big") + part).digest() for index, part in enumerate(parts))
        block = b"".join(value[: len(part)] for value, part in zip(hashed, parts, strict=True))
        written.append(stripe)
    return b"".join(written) + bytes(a ^ b for a, b in zip(block, key, strict=True))


def header(
    key: bytes, kdf: Mapping[str, Any] = PBKDF2, *, stripes: int = 4000, changes: Mapping[str, Any] | None = None
) -> bytes:
    """The header that cryptsetup makes for such a volume; ``changes`` are of its keyslot."""
    salt = bytes(range(32))
    if kdf["type"] == "pbkdf2":
        derived = hashlib.pbkdf2_hmac("sha256", key, salt, kdf["iterations"], 64)
    else:
        argon = Argon2id(salt=salt, length=64, iterations=kdf["time"], lanes=kdf["cpus"], memory_cost=kdf["memory"])
        derived = argon.derive(key)
    material = split(VOLUME_KEY, stripes)
    material += bytes(-len(material) % 512)
    area = b""
    for number in range(len(material) // 512):
        cipher = Cipher(algorithms.AES(derived), modes.XTS(number.to_bytes(16, "little"))).encryptor()
        area += cipher.update(material[number * 512 : number * 512 + 512])
    slot = {
        "type": "luks2",
        "key_size": len(VOLUME_KEY),
        "af": {"type": "luks1", "stripes": stripes, "hash": "sha256"},
        "area": {
            "type": "raw",
            "offset": str(OFFSET),
            "size": str(len(area)),
            "encryption": "aes-xts-plain64",
            "key_size": 64,
        },
        "kdf": {**kdf, "salt": encode(salt)},
        **(changes or {}),
    }
    digest = hashlib.pbkdf2_hmac("sha256", VOLUME_KEY, salt, 1000, 32)
    metadata = {
        "keyslots": {"0": slot},
        "digests": {
            "0": {
                "type": "pbkdf2",
                "keyslots": ["0"],
                "hash": "sha256",
                "iterations": 1000,
                "salt": encode(salt),
                "digest": encode(digest),
            }
        },
    }
    text = json.dumps(metadata).encode().ljust(METADATA - 4096, b"\0")
    binary = bytearray(4096)
    struct.pack_into(">6sHQQ", binary, 0, b"LUKS\xba\xbe", 2, METADATA, 1)
    binary[72:78] = b"sha256"
    binary[168 : 168 + len(UUID)] = UUID.encode()
    binary[448:480] = hashlib.sha256(bytes(binary) + text).digest()
    return (bytes(binary) + text).ljust(OFFSET, b"\0") + area.ljust(HEADER_SIZE - OFFSET, b"\0")


@pytest.mark.parametrize("kdf", [PBKDF2, ARGON2], ids=lambda kdf: kdf["type"])
def test_only_the_right_key_opens_the_header(kdf: dict[str, Any]) -> None:
    data = header(KEY, kdf)
    assert Luks2.parse(data).uuid == UUID
    assert opens(data, KEY)
    for other in (b"", KEY + b"\n", KEY[:-1], KEY.strip(b"\0"), b"x" * 32):
        assert not opens(data, other)


def test_a_change_in_any_stripe_of_the_keyslot_is_detected() -> None:
    data = bytearray(header(KEY, stripes=64))
    assert opens(bytes(data), KEY)
    data[OFFSET + 17] ^= 1
    assert not opens(bytes(data), KEY)


def test_the_header_is_read_from_an_image(tmp_path: Path) -> None:
    image = tmp_path / "luks.img"
    image.write_bytes(header(KEY) + b"data")
    assert len(Luks2.read(image).data) == HEADER_SIZE
    assert opens(Luks2.read(image).data, KEY)


@pytest.mark.parametrize("at", [0, 6, 13, 80, 170, 300, 4096 + 20, METADATA - 1])
def test_a_damaged_header_is_refused(at: int) -> None:
    data = bytearray(header(KEY))
    Luks2.parse(bytes(data))
    data[at] ^= 1
    with pytest.raises(UserError, match="not a LUKS2 header"):
        Luks2.parse(bytes(data))


def test_deeply_nested_metadata_is_refused() -> None:
    """A host may write any JSON there, with a right checksum."""
    data = bytearray(header(KEY))
    data[4096:METADATA] = b"[" * (METADATA - 4096)
    data[448:480] = hashlib.sha256(bytes(data[:448]) + bytes(64) + bytes(data[512:METADATA])).digest()
    with pytest.raises(UserError, match=r"not a LUKS2 header: .*recursion"):
        Luks2.parse(bytes(data))


@pytest.mark.parametrize("data", [b"", b"LUKS\xba\xbe", bytes(HEADER_SIZE), header(KEY)[:8192]], ids=len)
def test_a_truncated_header_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="not a LUKS2 header"):
        opens(data, KEY)


@pytest.mark.parametrize(
    "changes",
    [
        {"kdf": {**ARGON2, "memory": 1 << 30, "salt": encode(bytes(32))}},
        {"kdf": {"type": "scrypt", "salt": encode(bytes(32))}},
        {"kdf": {}},
        {"af": {"type": "luks2", "stripes": 4000, "hash": "sha256"}},
        {"area": {"offset": str(HEADER_SIZE - 1), "size": "384000", "encryption": "aes-xts-plain64", "key_size": 64}},
        {"area": {"offset": "32768", "size": "384000", "encryption": "cipher_null-ecb", "key_size": 64}},
        {"key_size": "96"},
        {"key_size": 1 << 40},
    ],
    ids=["memory", "scrypt", "no kdf", "splitter", "cut off", "null cipher", "text", "huge"],
)
def test_a_header_of_another_kind_is_refused_before_key_derivation(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="not made by this project"):
        opens(header(KEY, changes=changes), KEY)
