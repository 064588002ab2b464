# SPDX-License-Identifier: Apache-2.0
"""LUKS2 headers as cryptsetup writes them for our images, made without it: keyslots, checksums, both copies.

LUKS2 On-Disk Format Specification 1.1.3; the anti-forensic splitter is LUKS1's.
"""

import base64
import copy
import functools
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SIZE = 1 << 20
COPY = 16384
STRIPES, KEY_SIZE = 4000, 96
AREA, AREA_SIZE = 32768, 385024


def make_keyslot(
    volume_key: bytes, key: bytes, offset: int = AREA, seed: int = 1, iterations: int = 1000
) -> tuple[dict[str, Any], bytes]:
    """A keyslot's JSON, and its area's bytes: ``key`` opens it and gives ``volume_key`` (96 bytes)."""
    random = Random(seed)
    kdf = {"type": "pbkdf2", "hash": "sha256", "iterations": iterations, "salt": _base64(random.randbytes(32))}
    slot = {
        "type": "luks2",
        "key_size": KEY_SIZE,
        "af": {"type": "luks1", "stripes": STRIPES, "hash": "sha256"},
        "area": {
            "type": "raw",
            "offset": str(offset),
            "size": str(AREA_SIZE),
            "encryption": "aes-xts-plain64",
            "key_size": 64,
        },
        "kdf": kdf,
    }
    derived = hashlib.pbkdf2_hmac("sha256", key, base64.b64decode(str(kdf["salt"])), iterations, 64)
    return slot, _encrypt(derived, split(volume_key, random)).ljust(AREA_SIZE, b"\0")


def split(key: bytes, random: Random) -> bytes:
    """The anti-forensic splitter: random stripes, and a last one with which all of them give the key."""
    stripes = [random.randbytes(len(key)) for _ in range(STRIPES - 1)]
    block = bytes(len(key))
    for stripe in stripes:
        block = _diffuse(_xor(block, stripe))
    return b"".join([*stripes, _xor(block, key)])


def _diffuse(block: bytes) -> bytes:
    pieces = [struct.pack(">I", number) + block[32 * number : 32 * number + 32] for number in range(len(block) // 32)]
    return b"".join(hashlib.sha256(piece).digest() for piece in pieces)


def _xor(left: bytes, right: bytes) -> bytes:
    assert len(left) == len(right)
    return (int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).to_bytes(len(left), "big")


def _encrypt(key: bytes, data: bytes) -> bytes:
    pieces = []
    for number, start in enumerate(range(0, len(data), 512)):
        cipher = Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little"))).encryptor()
        pieces.append(cipher.update(data[start : start + 512].ljust(512, b"\0")))
    return b"".join(pieces)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def make_digest(volume_key: bytes, *keyslots: str, salt: bytes = bytes(32)) -> dict[str, Any]:
    """The digest that identifies the right volume key."""
    return {
        "type": "pbkdf2",
        "keyslots": list(keyslots),
        "segments": ["0"],
        "hash": "sha256",
        "iterations": 1000,
        "salt": _base64(salt),
        "digest": _base64(hashlib.pbkdf2_hmac("sha256", volume_key, salt, 1000, 32)),
    }


@functools.lru_cache(maxsize=32)
def make_header(key: bytes, seed: int = 1, sequence: int = 3) -> bytes:
    """A complete header (1 MiB), opened by ``key``; each ``seed`` gives another volume."""
    random = Random(seed)
    volume_key = random.randbytes(KEY_SIZE)
    slot, material = make_keyslot(volume_key, key, seed=seed)
    metadata = {
        "keyslots": {"0": slot},
        "tokens": {},
        "segments": {
            "0": {
                "type": "crypt",
                "offset": str(SIZE),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": "aes-xts-random",
                "sector_size": 4096,
                "integrity": {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"},
            }
        },
        "digests": {"0": make_digest(volume_key, "0", salt=random.randbytes(32))},
        "config": {"json_size": "12288", "keyslots_size": str(AREA_SIZE)},
    }
    header = bytearray(SIZE)
    for offset, magic in ((0, b"LUKS\xba\xbe"), (COPY, b"SKUL\xba\xbe")):
        struct.pack_into(">6sHQQ48s32s", header, offset, magic, 2, COPY, sequence, b"", b"sha256")
        header[offset + 104 : offset + 168] = random.randbytes(64)
        uuid = f"00000000-0000-4000-8000-{seed:012}".encode()
        struct.pack_into(">40s48sQ", header, offset + 168, uuid, b"", offset)
    header[AREA : AREA + AREA_SIZE] = material
    return with_metadata(bytes(header), metadata)


def metadata_of(header: bytes, offset: int = 0) -> dict[str, Any]:
    """The JSON of one of the two copies."""
    found: dict[str, Any] = json.loads(header[offset + 4096 : offset + COPY].rstrip(b"\0"))
    return found


def with_metadata(header: bytes, metadata: Mapping[str, Any], copies: tuple[int, ...] = (0, COPY)) -> bytes:
    """The header with other JSON in the given copies, and right checksums."""
    return with_text(header, json.dumps(metadata, separators=(",", ":")).encode(), copies)


def with_text(header: bytes, text: bytes, copies: tuple[int, ...] = (0, COPY)) -> bytes:
    """Like :func:`with_metadata`, for JSON as text."""
    data = bytearray(header)
    for offset in copies:
        data[offset + 4096 : offset + COPY] = text.ljust(COPY - 4096, b"\0")
    return summed(bytes(data), copies)


def with_field(header: bytes, offset: int, value: bytes, copies: tuple[int, ...] = (0, COPY)) -> bytes:
    """The header with a field of its binary part set, and right checksums."""
    data = bytearray(header)
    for start in copies:
        data[start + offset : start + offset + len(value)] = value
    return summed(bytes(data), copies)


def summed(header: bytes, copies: tuple[int, ...] = (0, COPY)) -> bytes:
    """The header with the checksums of its algorithm."""
    data = bytearray(header)
    for offset in copies:
        name = data[offset + 72 : offset + 104].rstrip(b"\0").decode()
        data[offset + 448 : offset + 512] = bytes(64)
        digest = hashlib.new(name, data[offset : offset + COPY]).digest()
        data[offset + 448 : offset + 448 + len(digest)] = digest
    return bytes(data)


@dataclass(frozen=True)
class Volume:
    """A header and its volume key, so that any variant can be made; ``key`` opens it."""

    header: bytes
    key: bytes = field(repr=False)
    volume_key: bytes = field(repr=False)

    @property
    def metadata(self) -> dict[str, Any]:
        return copy.deepcopy(metadata_of(self.header))


def synthetic(key: bytes = b"the owner's key", seed: int = 1, sequence: int = 3) -> Volume:
    return Volume(make_header(key, seed, sequence), key, Random(seed).randbytes(KEY_SIZE))
