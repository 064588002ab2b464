# SPDX-License-Identifier: Apache-2.0
"""Reads a LUKS2 header, and tests whether a key opens it: without the kernel, without device-mapper.

LUKS2 On-Disk Format Specification 1.1.3; the anti-forensic splitter is LUKS1's (LUKS On-Disk Format Specification
1.2.3, section 2.4). Supports only what our own headers use: AES-XTS keyslots, PBKDF2 or Argon2id.
"""

import base64
import binascii
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system.files import each_key_once

# Bytes. The data of our images begin here; everything before is the header: two copies of it, and the keyslots.
HEADER_SIZE = 1 << 20
# Of a volume key, and of its stripes: the header has no room for more bytes. What is derived is one or two AES keys.
_SIZES, _DERIVED = range(1, HEADER_SIZE + 1), range(1, 65)
_MAGIC = b"LUKS\xba\xbe"
_SECTOR = 512
# What a key derivation may cost. Ours need 1,000 rounds, or 4 passes over 131,072 KiB in one lane; for the digest,
# cryptsetup takes as many rounds as its machine does in 125 ms. A malicious header must neither make this machine
# swap (KiB of memory) nor keep it busy: one call of the derivation cannot be interrupted.
_ROUNDS = range(1, 10_000_001)
_PASSES, _MEMORY, _LANES = range(1, 17), range(1, (1 << 20) + 1), range(1, 17)


@dataclass(frozen=True)
class Luks2:
    """A header: ``uuid`` names the volume, ``metadata`` is its JSON area, ``data`` all of its bytes."""

    uuid: str
    metadata: Mapping[str, Any]
    data: bytes

    @classmethod
    def parse(cls, data: bytes) -> "Luks2":
        """Raises UserError for an invalid LUKS2 header (its checksum is checked)."""
        try:
            magic, version, size = struct.unpack_from(">6sHQ", data)
            if magic != _MAGIC or version != 2 or not 4096 < size <= len(data):
                raise ValueError("no LUKS2 header")
            (uuid,) = struct.unpack_from("40s", data, 168)
            digest = hashlib.sha256(data[:448] + bytes(64) + data[512:size]).digest()
            if data[72:104].rstrip(b"\0") != b"sha256" or data[448:480] != digest:
                raise ValueError("its checksum is wrong")
            metadata = json.loads(data[4096:size].rstrip(b"\0"))
            return cls(_text(uuid), metadata, data)
        except (ValueError, RecursionError, struct.error) as error:
            raise UserError(f"not a LUKS2 header: {error}", "make the image again: ./doitw setup_luks") from None

    @classmethod
    def read(cls, path: Path) -> "Luks2":
        """The header at the beginning of an image, or a file that contains only the header."""
        with path.open("rb") as stream:
            return cls.parse(stream.read(HEADER_SIZE))


def _text(field: bytes) -> str:
    return field.rstrip(b"\0").decode("ascii")


def opens(header: bytes, key: bytes) -> bool:
    """Whether ``key`` opens one of the keyslots of ``header`` (its bytes, keyslots included).

    Takes as long as the key derivation, which is bounded. Raises UserError for a header of another kind than ours.
    """
    luks = Luks2.parse(header)
    try:
        return any(_opens(luks, number, slot, key) for number, slot in luks.metadata["keyslots"].items())
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError, binascii.Error) as error:
        raise UserError(
            f"LUKS2 header {luks.uuid}: not made by this project: {type(error).__name__}: {error}"
        ) from None


# One of our headers as cryptsetup writes it. A range stands for any number in it, _BYTES for 32 bytes in base64.
_BYTES = ("bytes",)
_KDFS: tuple[Mapping[str, Any], ...] = (
    {"type": "pbkdf2", "hash": "sha256", "iterations": _ROUNDS, "salt": _BYTES},
    {"type": "argon2id", "time": _PASSES, "memory": _MEMORY, "cpus": _LANES, "salt": _BYTES},
)
_OURS: Mapping[str, Any] = {
    "keyslots": {
        "0": {
            "type": "luks2",
            "key_size": 96,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {
                "type": "raw", "offset": "32768", "size": "385024", "encryption": "aes-xts-plain64", "key_size": 64,
            },
        }
    },
    "tokens": {},
    "segments": {
        "0": {
            "type": "crypt", "offset": str(HEADER_SIZE), "size": "dynamic", "iv_tweak": "0",
            "encryption": "aes-xts-random", "sector_size": 4096,
            "integrity": {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"},
        }
    },
    "digests": {
        "0": {
            "type": "pbkdf2", "keyslots": ["0"], "segments": ["0"], "hash": "sha256", "iterations": _ROUNDS,
            "salt": _BYTES, "digest": _BYTES,
        }
    },
    "config": {"json_size": "12288", "keyslots_size": "385024"},
}  # fmt: skip


def check_ours(luks: Luks2) -> None:
    """Raises UserError unless a header is of the one kind that setup_luks makes, and so gives the same protection.

    A key that opens the header does not prove this: everything but the keyslot is unencrypted, and the host of a disk
    can change it. Both copies must be equal: cryptsetup takes the newer one.
    """
    first, second = luks.data[: 4 * 4096], luks.data[4 * 4096 : 8 * 4096]
    try:
        if first[8:24] != second[8:24] or first[4096:] != second[4096:]:
            raise ValueError("its two copies differ")
        metadata = json.loads(first[4096:].rstrip(b"\0"), object_pairs_hook=each_key_once)
        kdf = metadata["keyslots"]["0"].pop("kdf")
        _compare(metadata, _OURS, "")
        _compare(kdf, next((each for each in _KDFS if each["type"] == kdf["type"]), _KDFS[0]), "kdf")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, binascii.Error) as error:
        raise UserError(
            f"LUKS2 header {luks.uuid}: not made by this project: {error}",
            "use an older copy of this disk: this one was changed",
        ) from None


def _compare(found: Any, expected: Any, where: str) -> None:
    if isinstance(expected, Mapping):
        if not isinstance(found, dict) or set(found) != set(expected):
            names = ", ".join(expected) or "nothing"
            raise ValueError(f"{where or 'its JSON'}: found {found!r:.200}, expected {names}")
        for name, value in expected.items():
            _compare(found[name], value, f"{where}/{name}" if where else name)
    elif isinstance(expected, range):
        _number(found, expected, where)
    elif expected == _BYTES:
        if len(base64.b64decode(found, validate=True)) != 32:
            raise ValueError(f"{where}: found {found!r:.200}, expected 32 bytes")
    elif found != expected or type(found) is not type(expected):
        raise ValueError(f"{where}: found {found!r:.200}, expected {expected!r}")


def _number(found: Any, allowed: range, where: str) -> int:
    """``found``, if it is a number in ``allowed``; else raises ValueError."""
    if type(found) is not int or found not in allowed:
        raise ValueError(f"{where}: found {found!r:.200}, expected a number from {allowed[0]} to {allowed[-1]}")
    return found


def _opens(luks: Luks2, number: str, slot: Mapping[str, Any], key: bytes) -> bool:
    area, splitter = slot["area"], slot["af"]
    if area["encryption"] != "aes-xts-plain64" or splitter["type"] != "luks1":
        raise ValueError(f"keyslot {number} is encrypted by {area['encryption']}")
    length = _number(slot["key_size"], _SIZES, "key_size")
    stripes = _number(splitter["stripes"], _SIZES, "stripes")
    offset, size = int(area["offset"]), -(-length * stripes // _SECTOR) * _SECTOR
    material = luks.data[offset : offset + size]
    if len(material) != size or size > int(area["size"]):
        raise ValueError(f"keyslot {number} is cut off")
    derived = _derive(slot["kdf"], key, _number(area["key_size"], _DERIVED, "area/key_size"))
    volume_key = _merge(_decrypt(derived, material)[: length * stripes], length, stripes, splitter["hash"])
    for digest in luks.metadata["digests"].values():
        if number in digest["keyslots"]:
            expected = base64.b64decode(digest["digest"])
            salt = base64.b64decode(digest["salt"])
            rounds = _number(digest["iterations"], _ROUNDS, "digest/iterations")
            found = hashlib.pbkdf2_hmac(
                digest["hash"], volume_key, salt, rounds, _number(len(expected), _DERIVED, "digest")
            )
            return found == expected
    raise ValueError(f"keyslot {number} has no digest")


def _derive(kdf: Mapping[str, Any], key: bytes, length: int) -> bytes:
    salt = base64.b64decode(kdf["salt"])
    if kdf["type"] == "pbkdf2":
        return hashlib.pbkdf2_hmac(kdf["hash"], key, salt, _number(kdf["iterations"], _ROUNDS, "iterations"), length)
    if kdf["type"] != "argon2id":
        raise ValueError(f"key derivation {kdf['type']}")
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    passes, lanes = _number(kdf["time"], _PASSES, "time"), _number(kdf["cpus"], _LANES, "cpus")
    memory = _number(kdf["memory"], _MEMORY, "memory")
    return Argon2id(salt=salt, length=length, iterations=passes, lanes=lanes, memory_cost=memory).derive(key)


def _decrypt(key: bytes, data: bytes) -> bytes:
    """AES-XTS by sectors of 512 bytes, each with its number, from 0 on, as little-endian tweak (plain64)."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    pieces = []
    for number in range(len(data) // _SECTOR):
        cipher = Cipher(algorithms.AES(key), modes.XTS(number.to_bytes(16, "little"))).decryptor()
        pieces.append(cipher.update(data[number * _SECTOR : (number + 1) * _SECTOR]) + cipher.finalize())
    return b"".join(pieces)


def _merge(material: bytes, length: int, stripes: int, name: str) -> bytes:
    """The inverse of the anti-forensic splitter: every stripe is needed for any bit of the key."""
    block = 0
    for number in range(stripes):
        block ^= int.from_bytes(material[number * length : (number + 1) * length], "big")
        if number < stripes - 1:
            block = int.from_bytes(_diffuse(block.to_bytes(length, "big"), name), "big")
    return block.to_bytes(length, "big")


def _diffuse(block: bytes, name: str) -> bytes:
    step = hashlib.new(name).digest_size
    pieces = [block[start : start + step] for start in range(0, len(block), step)]
    return b"".join(
        hashlib.new(name, number.to_bytes(4, "big") + piece).digest()[: len(piece)]
        for number, piece in enumerate(pieces)
    )
