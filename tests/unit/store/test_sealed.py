# SPDX-License-Identifier: Apache-2.0
"""Signed entries of the shared cache: only entries that are signed by the given key are accepted."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sevsnp.errors import UserError
from sevsnp.keys.signature import load_signing_key, sign
from sevsnp.store.entries import Blob, Entry, EntryError, File, canonical
from sevsnp.store.sealed import seal, unseal

ENTRY = Entry("1" * 64, "sevsnp.x:make", {"output": File(Blob("2" * 64, 5), 0o644)}).to_bytes()


def pair(directory: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = directory / f"{name}.pem", directory / f"{name}.pub.pem"
    private.touch(0o600)
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_a_sealed_entry_opens_with_its_key_and_without_one(tmp_path: Path) -> None:
    private, public = pair(tmp_path, "mine")
    sealed = seal(ENTRY, private)
    assert sealed != ENTRY and seal(ENTRY, private) == sealed
    assert unseal(sealed, public) == unseal(sealed, None) == unseal(ENTRY, None) == ENTRY
    with pytest.raises(EntryError):
        Entry.from_bytes(sealed)


def test_an_entry_without_a_signature_or_of_another_key_is_refused(tmp_path: Path) -> None:
    private, public = pair(tmp_path, "mine")
    other, _ = pair(tmp_path, "other")
    with pytest.raises(EntryError, match="is not signed, and CACHE_PUBLIC_KEY"):
        unseal(ENTRY, public)
    with pytest.raises(EntryError, match="is not signed by"):
        unseal(seal(ENTRY, other), public)
    # A signature by the right key over the bare document, made for something else.
    fields = Entry.from_bytes(ENTRY)
    assert fields.key == "1" * 64
    import base64
    import json

    bare = base64.b64encode(sign(load_signing_key(private), ENTRY)).decode()
    with pytest.raises(EntryError, match="is not signed by"):
        unseal(canonical({**json.loads(ENTRY), "signature": bare}), public)


def test_every_changed_byte_is_refused_with_a_key(tmp_path: Path) -> None:
    private, public = pair(tmp_path, "mine")
    sealed = seal(ENTRY, private)
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(EntryError):
            unseal(changed, public)
    # The control arm: without a key a changed digest goes through, and names other content.
    moved = sealed.replace(b"2" * 64, b"3" * 64)
    assert Entry.from_bytes(unseal(moved, None)).outputs != Entry.from_bytes(ENTRY).outputs


@pytest.mark.parametrize("document", [b"", b"[]", b"1", b'{"signature":1}', b'{"signature":"%"}', b'{ "a":1}'])
def test_a_document_that_is_not_an_entry_is_refused(tmp_path: Path, document: bytes) -> None:
    _, public = pair(tmp_path, "mine")
    with pytest.raises(EntryError):
        unseal(document, public)


def test_a_file_that_is_not_a_key_is_a_user_error(tmp_path: Path) -> None:
    private, public = pair(tmp_path, "mine")
    with pytest.raises(UserError, match="not a public key"):
        unseal(seal(ENTRY, private), private)
    with pytest.raises(UserError):
        seal(ENTRY, public)
