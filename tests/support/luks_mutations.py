# SPDX-License-Identifier: Apache-2.0
"""Headers that a host could put in place of a volume's own, each with right checksums, and their effects.

``OBEYED`` says what cryptsetup (2.7.5) does with a header that nothing has compared: "same" if it opens it to exactly
the device-mapper tables of the volume's own header, "other" if to other tables. ``KEYS`` says whose key opens it.
"""

import base64
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.support.luks_volume import (
    AREA,
    AREA_SIZE,
    COPY,
    SIZE,
    Volume,
    make_digest,
    make_keyslot,
    metadata_of,
    split,
    summed,
    synthetic,
    with_field,
    with_metadata,
    with_text,
)  # fmt: skip
from tests.support.replacing import replaced_once

HOST_KEY = b"a key of the host's"
Change = Callable[[Volume], bytes]
_UNSET = object()
# Offsets in the binary part: sequence id, label, checksum algorithm, salt, UUID, subsystem, the copy's own offset.
_SEQUENCE, _LABEL, _ALGORITHM, _SALT, _UUID, _SUBSYSTEM, _OFFSET = 16, 24, 72, 104, 168, 208, 256


def _set(path: str, value: Any = _UNSET) -> Change:
    """Set or remove one field of the JSON."""

    def change(volume: Volume) -> bytes:
        metadata = volume.metadata
        place: Any = metadata
        *above, name = path.split("/")
        for step in above:
            place = place[step]
        if value is _UNSET:
            del place[name]
        else:
            place[name] = value
        return with_metadata(volume.header, metadata)

    return change


def _both(first: Change, second: Change) -> Change:
    return lambda volume: second(replace(volume, header=first(volume)))


def _field(offset: int, value: bytes, copies: tuple[int, ...] = (0, COPY)) -> Change:
    return lambda volume: with_field(volume.header, offset, value, copies)


def _flip(place: int) -> Change:
    def change(volume: Volume) -> bytes:
        data = bytearray(volume.header)
        data[place] ^= 1
        return bytes(data)

    return change


def _text(old: bytes, new: bytes) -> Change:
    """Replace one piece of the JSON, as text."""

    def change(volume: Volume) -> bytes:
        text = volume.header[4096:COPY].rstrip(b"\0")
        return with_text(volume.header, replaced_once(text, old, new))

    return change


def _second_slot(volume: Volume) -> bytes:
    """The same volume key a second time, for a key of the host: an earlier administrator may have added it."""
    return _slot_for_the_host(volume, AREA + AREA_SIZE)


def _slot_for_the_host(volume: Volume, offset: int) -> bytes:
    slot, material = make_keyslot(volume.volume_key, HOST_KEY, offset, seed=7)
    metadata = volume.metadata
    metadata["keyslots"]["1"] = slot
    metadata["digests"]["0"]["keyslots"] = ["0", "1"]
    metadata["config"]["keyslots_size"] = str(2 * AREA_SIZE)
    data = bytearray(volume.header)
    data[offset : offset + AREA_SIZE] = material
    return with_metadata(bytes(data), metadata)


def _own_volume_key(volume: Volume) -> bytes:
    """A volume key of the host in a keyslot that is not encrypted at all, so that any key opens it."""
    from random import Random

    volume_key = bytes(range(96))
    metadata = volume.metadata
    metadata["keyslots"]["0"]["area"]["encryption"] = "cipher_null-ecb"
    metadata["digests"]["0"] = make_digest(volume_key, "0")
    data = bytearray(volume.header)
    data[AREA : AREA + AREA_SIZE] = split(volume_key, Random(3)).ljust(AREA_SIZE, b"\0")
    return with_metadata(bytes(data), metadata)


def _moved_area(volume: Volume) -> bytes:
    """The keyslot's area moved to another offset, with its bytes."""
    data = bytearray(volume.header)
    data[AREA + 4096 : AREA + 4096 + AREA_SIZE] = data[AREA : AREA + AREA_SIZE]
    metadata = volume.metadata
    metadata["keyslots"]["0"]["area"]["offset"] = str(AREA + 4096)
    metadata["config"]["keyslots_size"] = str(AREA_SIZE + 4096)
    return with_metadata(bytes(data), metadata)


def _weaker_derivation(volume: Volume) -> bytes:
    """The owner's key again, but with a single round; anyone who once knew the key can write that."""
    slot, material = make_keyslot(volume.volume_key, volume.key, seed=5, iterations=1)
    data = bytearray(volume.header)
    data[AREA : AREA + AREA_SIZE] = material
    return _set("keyslots/0", slot)(replace(volume, header=bytes(data)))


def _newer_second(volume: Volume) -> bytes:
    """The first copy unchanged, the second newer and with a null cipher: cryptsetup takes the newer one."""
    newer = with_field(volume.header, _SEQUENCE, struct.pack(">Q", 9), (COPY,))
    return with_metadata(newer, metadata_of(_NULL(volume)), (COPY,))


def _only_second(volume: Volume) -> bytes:
    """The first copy damaged, so that the second one, which differs, counts."""
    data = bytearray(_NULL(volume))
    data[:6] = bytes(6)
    return bytes(data)


def _older(volume: Volume) -> bytes:
    """The header before a change of its key: another keyslot, a lower sequence number, and the old key opens it."""
    slot, material = make_keyslot(volume.volume_key, HOST_KEY, seed=11)
    older = bytearray(with_field(volume.header, _SEQUENCE, struct.pack(">Q", 2)))
    older[AREA : AREA + AREA_SIZE] = material
    return _set("keyslots/0", slot)(replace(volume, header=bytes(older)))


def _others_keyslots(volume: Volume) -> bytes:
    other = synthetic(seed=2).header
    return volume.header[:AREA] + other[AREA : AREA + AREA_SIZE] + volume.header[AREA + AREA_SIZE :]


def _other_metadata(volume: Volume) -> bytes:
    return with_metadata(volume.header, metadata_of(synthetic(seed=2).header))


def _luks1(volume: Volume) -> bytes:
    return struct.pack(">6sH32s32s32s", b"LUKS\xba\xbe", 1, b"aes", b"ecb", b"sha256").ljust(SIZE, b"\0")


SEGMENT, SLOT, DIGEST = "segments/0", "keyslots/0", "digests/0"
_LINEAR = {"type": "linear", "offset": str(SIZE), "size": "dynamic"}
_PLAIN = {"type": "crypt", "offset": "67108864", "size": "dynamic", "iv_tweak": "0", "encryption": "cipher_null-ecb"}
_REENCRYPT = {"type": "reencrypt", "mode": "encrypt", "direction": "forward", "key_size": 1}
_ARGON = {"type": "argon2id", "time": 4, "memory": 1 << 22, "cpus": 4, "salt": base64.b64encode(bytes(32)).decode()}
_INTEGRITY = f"{SEGMENT}/integrity"

_NULL = _both(_set(f"{SEGMENT}/encryption", "cipher_null-ecb"), _set(_INTEGRITY))

MUTATIONS: dict[str, Change] = {
    # The cipher of the data.
    "null data cipher": _set(f"{SEGMENT}/encryption", "cipher_null-ecb"),
    "null data cipher, no integrity": _NULL,
    "data cipher xts with plain numbers": _set(f"{SEGMENT}/encryption", "aes-xts-plain64"),
    "data cipher cbc": _set(f"{SEGMENT}/encryption", "aes-cbc-random"),
    "data cipher ecb": _set(f"{SEGMENT}/encryption", "aes-ecb"),
    "data cipher counter": _set(f"{SEGMENT}/encryption", "aes-ctr-random"),
    "no data cipher": _set(f"{SEGMENT}/encryption", ""),
    "data cipher lacking": _set(f"{SEGMENT}/encryption"),
    # Integrity.
    "integrity removed": _set(_INTEGRITY),
    "integrity removed, plain numbers": _both(_set(_INTEGRITY), _set(f"{SEGMENT}/encryption", "aes-xts-plain64")),
    "integrity none": _set(f"{_INTEGRITY}/type", "none"),
    "integrity crc32c": _set(f"{_INTEGRITY}/type", "crc32c"),
    "integrity poly1305": _set(f"{_INTEGRITY}/type", "poly1305"),
    "integrity sha1": _set(f"{_INTEGRITY}/type", "hmac(sha1)"),
    "integrity cmac": _set(f"{_INTEGRITY}/type", "cmac(aes)"),
    "integrity sha512": _set(f"{_INTEGRITY}/type", "hmac(sha512)"),
    "integrity aead": _set(f"{_INTEGRITY}/type", "aead"),
    "journal encrypted": _set(f"{_INTEGRITY}/journal_encryption", "ctr(aes)"),
    "journal with integrity": _set(f"{_INTEGRITY}/journal_integrity", "hmac(sha256)"),
    # The rest of the segment.
    "sector size 512": _set(f"{SEGMENT}/sector_size", 512),
    "sector size 2048": _set(f"{SEGMENT}/sector_size", 2048),
    "sector size 8192": _set(f"{SEGMENT}/sector_size", 8192),
    "segment moved by a sector": _set(f"{SEGMENT}/offset", str(SIZE + 4096)),
    "segment moved by a mebibyte": _set(f"{SEGMENT}/offset", str(2 * SIZE)),
    "segment over the header": _set(f"{SEGMENT}/offset", "0"),
    "segment over the keyslots": _set(f"{SEGMENT}/offset", str(AREA)),
    "segment beyond the disk": _set(f"{SEGMENT}/offset", str(1 << 50)),
    "segment of a fixed size": _set(f"{SEGMENT}/size", str(16 << 20)),
    "segment of one sector": _set(f"{SEGMENT}/size", "4096"),
    "other first number": _set(f"{SEGMENT}/iv_tweak", "8"),
    "segment not encrypted": _set(SEGMENT, _LINEAR),
    "segment flag": _set(f"{SEGMENT}/flags", ["in-reencryption"]),
    "segment with a field more": _set(f"{SEGMENT}/note", "anything"),
    "second segment, not encrypted": _both(_set(f"{SEGMENT}/size", str(32 << 20)), _set("segments/1", _PLAIN)),
    "no segment": _set("segments", {}),
    # The keyslot.
    "null keyslot cipher": _set(f"{SLOT}/area/encryption", "cipher_null-ecb"),
    "null keyslot cipher, any key opens": _own_volume_key,
    "keyslot cipher with short numbers": _set(f"{SLOT}/area/encryption", "aes-xts-plain"),
    "keyslot cipher cbc": _set(f"{SLOT}/area/encryption", "aes-cbc-essiv:sha256"),
    "keyslot cipher's key shorter": _set(f"{SLOT}/area/key_size", 32),
    "keyslot area pointing elsewhere": _set(f"{SLOT}/area/offset", str(AREA + 4096)),
    "keyslot area moved": _moved_area,
    "keyslot area in the data": _set(f"{SLOT}/area/offset", str(SIZE)),
    "keyslot area over the metadata": _set(f"{SLOT}/area/offset", "4096"),
    "keyslot area shorter": _set(f"{SLOT}/area/size", "4096"),
    "keyslot area longer": _set(f"{SLOT}/area/size", str(AREA_SIZE + 4096)),
    "keyslot area of another kind": _set(f"{SLOT}/area/type", "datashift"),
    "derivation of a single round": _weaker_derivation,
    "derivation of fewer rounds": _set(f"{SLOT}/kdf/iterations", 999),
    "derivation of two thousand million rounds": _set(f"{SLOT}/kdf/iterations", (1 << 31) - 1),
    "derivation of 4 GiB": _set(f"{SLOT}/kdf", _ARGON),
    "derivation without end": _set(f"{SLOT}/kdf", {**_ARGON, "memory": 1 << 16, "time": (1 << 31) - 1}),
    "derivation by sha1": _set(f"{SLOT}/kdf/hash", "sha1"),
    "derivation with another salt": _set(f"{SLOT}/kdf/salt", base64.b64encode(bytes(32)).decode()),
    "one stripe": _set(f"{SLOT}/af/stripes", 1),
    "a million stripes": _set(f"{SLOT}/af/stripes", 1_000_000),
    "splitter by sha512": _set(f"{SLOT}/af/hash", "sha512"),
    "volume key shorter": _set(f"{SLOT}/key_size", 64),
    "volume key of one byte": _set(f"{SLOT}/key_size", 1),
    "keyslot ignored": _set(f"{SLOT}/priority", 0),
    "keyslot preferred": _set(f"{SLOT}/priority", 2),
    "keyslot of a re-encryption": _set(SLOT, {**_REENCRYPT, "area": {"type": "checksum", "offset": str(AREA)}}),
    "second keyslot, the host's": _second_slot,
    "second keyslot over the first": lambda volume: _slot_for_the_host(volume, AREA),
    "no keyslot": _set("keyslots", {}),
    "keyslot with another number": _both(
        _text(b'"keyslots":{"0"', b'"keyslots":{"5"'), _set(f"{DIGEST}/keyslots", ["5"])
    ),
    # Digests and tokens.
    "second digest": lambda volume: _set("digests/1", make_digest(bytes(96), "0"))(volume),
    "digest of another key": lambda volume: _set(DIGEST, make_digest(bytes(96), "0"))(volume),
    "digest of zeros": _set(f"{DIGEST}/digest", base64.b64encode(bytes(32)).decode()),
    "digest of one byte": _set(f"{DIGEST}/digest", base64.b64encode(b"\0").decode()),
    "digest with another salt": _set(f"{DIGEST}/salt", base64.b64encode(bytes(32)).decode()),
    "digest of fewer rounds": _set(f"{DIGEST}/iterations", 999),
    "digest of many rounds": _set(f"{DIGEST}/iterations", (1 << 31) - 1),
    "digest by sha512": _set(f"{DIGEST}/hash", "sha512"),
    "digest of no keyslot": _set(f"{DIGEST}/keyslots", []),
    "digest of no segment": _set(f"{DIGEST}/segments", []),
    "token of a keyring": _set("tokens/0", {"type": "luks2-keyring", "keyslots": ["0"], "key_description": "host"}),
    "token of a plug-in": _set("tokens/0", {"type": "systemd-tpm2", "keyslots": ["0"]}),
    "token of no keyslot": _set("tokens/0", {"type": "anything", "keyslots": []}),
    # Persistent settings in the header: flags and requirements.
    "flag: discards": _set("config/flags", ["allow-discards"]),
    "flag: no journal": _set("config/flags", ["no-journal"]),
    "flag: same processor": _set("config/flags", ["same-cpu-crypt"]),
    "flag: no queues": _set("config/flags", ["no-read-workqueue", "no-write-workqueue"]),
    "flag: unknown": _set("config/flags", ["anything"]),
    "requirement: re-encryption": _set("config/requirements", {"mandatory": ["online-reencrypt-v2"]}),
    "requirement: unknown": _set("config/requirements", {"mandatory": ["anything"]}),
    "less room for keyslots": _set("config/keyslots_size", "4096"),
    "more room for keyslots": _set("config/keyslots_size", str(AREA_SIZE + 4096)),
    "other length of the JSON": _set("config/json_size", "28672"),
    "config with a field more": _set("config/note", "anything"),
    "a field more at the top": _set("note", "anything"),
    "JSON: the same, spaced": _text(b'{"keyslots":', b'{ "keyslots":'),
    "JSON: a field twice": _text(b'"type":"crypt"', b'"type":"linear","type":"crypt"'),
    "JSON: a field twice, the other way": _text(b'"type":"crypt"', b'"type":"crypt","type":"linear"'),
    "JSON: none": lambda volume: with_text(volume.header, b""),
    "JSON: cut off": lambda volume: with_text(volume.header, volume.header[4096:4200]),
    # The binary part.
    "newer": _field(_SEQUENCE, struct.pack(">Q", 4)),
    "older number": _field(_SEQUENCE, struct.pack(">Q", 1)),
    "label": _field(_LABEL, b"root"),
    "subsystem": _field(_SUBSYSTEM, b"HW-OPAL"),
    "other UUID": _field(_UUID, b"00000000-0000-4000-8000-000000000099"),
    "other salt": _field(_SALT, bytes(64)),
    "checksum by sha512": _field(_ALGORITHM, b"sha512"),
    "copy's offset": _field(_OFFSET, struct.pack(">Q", 4096)),
    "version 3": _field(6, struct.pack(">H", 3)),
    "wrong checksum": _flip(_SEQUENCE),
    # Two copies, two headers.
    "second copy newer": _newer_second,
    "second copy alone": _only_second,
    "second copy damaged": _flip(COPY + 4096),
    "first copy damaged": _flip(4096),
    "first copy alone": lambda volume: volume.header[:COPY] + bytes(COPY) + volume.header[2 * COPY :],
    "older, before the key was changed": _older,
    "another volume's": lambda volume: synthetic(seed=2).header,
    "another volume's metadata": _other_metadata,
    "another volume's keyslots": _others_keyslots,
    "the host's own": lambda volume: synthetic(HOST_KEY, seed=3).header,
    "LUKS1": _luks1,
    "blank": lambda volume: bytes(SIZE),
    # Changes that no parser looks at.
    "a bit of the keyslot": _flip(AREA + 1000),
    "a bit after the keyslots": _flip(SIZE - 1),
    "a bit after the JSON": _flip(COPY - 1),
    "a bit after the JSON, summed": lambda volume: summed(_flip(COPY - 1)(volume)),
}

# The fields of the integrity superblock that a host would write for its header, if ours would not fit: bytes of a tag,
# bytes of a sector, provided sectors of 512 bytes.
SUPERBLOCKS: dict[str, dict[str, int]] = {
    "null data cipher": {"tag": 32},
    "data cipher xts with plain numbers": {"tag": 32},
    "data cipher ecb": {"tag": 32},
    "sector size 512": {"sector": 512, "provided": 65536},
    "sector size 2048": {"sector": 2048, "provided": 65536},
    "segment moved by a sector": {"provided": 65536},
    "segment moved by a mebibyte": {"provided": 65536},
    "segment of a fixed size": {"provided": 32768},
    "segment of one sector": {"provided": 8},
}
# The keys for mutations that the owner's key does not open.
KEYS = {
    "second keyslot, the host's": HOST_KEY,
    "null keyslot cipher, any key opens": HOST_KEY,
    "older, before the key was changed": HOST_KEY,
    "the host's own": HOST_KEY,
}

# Opened to other tables than the measured ones: the guest's second check would find it.
_OTHER = (
    "data cipher xts with plain numbers",
    "flag: no journal",
    "flag: no queues",
    "flag: same processor",
    "null data cipher, no integrity",
    "second copy alone",
    "second copy newer",
    "sector size 2048",
    "sector size 512",
    "segment moved by a mebibyte",
    "segment moved by a sector",
    "segment not encrypted",
    "segment of a fixed size",
    "segment of one sector",
    "segment over the header",
)
# Opened to exactly the same tables: only the header's digest tells the difference.
_SAME = (
    "JSON: a field twice",
    "JSON: the same, spaced",
    "a bit after the JSON",
    "a bit after the JSON, summed",
    "a bit after the keyslots",
    "a field more at the top",
    "a million stripes",
    "another volume's",
    "checksum by sha512",
    "config with a field more",
    "derivation of a single round",
    "digest by sha512",
    "digest of one byte",
    "first copy alone",
    "first copy damaged",
    "flag: unknown",
    "keyslot area moved",
    "keyslot area shorter",
    "keyslot cipher with short numbers",
    "keyslot preferred",
    "keyslot with another number",
    "label",
    "more room for keyslots",
    "newer",
    "null keyslot cipher, any key opens",
    "older number",
    "older, before the key was changed",
    "one stripe",
    "other UUID",
    "other first number",
    "other salt",
    "second copy damaged",
    "second keyslot, the host's",
    "segment flag",
    "segment with a field more",
    "subsystem",
    "the host's own",
    "token of a keyring",
    "token of a plug-in",
    "token of no keyslot",
    "wrong checksum",
)
OBEYED = dict.fromkeys(_OTHER, "other") | dict.fromkeys(_SAME, "same")
