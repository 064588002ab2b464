# SPDX-License-Identifier: Apache-2.0
"""Entries that say who made them.

Who may write to a registry decides what others build with, unless these ask for a key. A sealed entry is its document
with one more field, the signature of the rest. Without a key to check it by, it is taken like any other.
"""

import base64
import binascii
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from sevsnp.store.entries import EntryError, canonical

if TYPE_CHECKING:
    from sevsnp.keys.signature import SigningKey

_FIELD = "signature"
# What is signed begins with what it is, so that no signature made for something else counts here.
_TYPE = b"openend2e-sevsnp artefact cache entry\n"


@functools.cache
def signing_key(path: Path) -> "SigningKey":
    """Read once in a run: an encrypted one asks for its password."""
    from sevsnp.keys.signature import load_signing_key

    return load_signing_key(path)


def seal(document: bytes, key: Path) -> bytes:
    """An entry's document with a signature by the private key in ``key``. Raises UserError for a key that is none."""
    from sevsnp.keys.signature import sign

    value = base64.b64encode(sign(signing_key(key), _TYPE + document)).decode()
    return canonical({**json.loads(document), _FIELD: value})


def unseal(document: bytes, key: Path | None) -> bytes:
    """The entry's own document; with a public key in ``key`` only one that it has signed.

    Raises EntryError for what is not signed by it or malformed, and UserError for a key that is none.
    """
    try:
        fields = json.loads(document)
        signature = fields.pop(_FIELD, None)
        plain = canonical(fields)
        if (document if signature is None else canonical({**fields, _FIELD: signature})) != document:
            raise EntryError("not in canonical form")
        value = base64.b64decode(signature or "", validate=True)
    except EntryError:
        raise
    except (ValueError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise EntryError(f"malformed: {type(error).__name__} {error}") from None
    if key is not None:
        from sevsnp.keys.signature import is_signed, load_public_key

        if signature is None:
            raise EntryError(f"is not signed, and CACHE_PUBLIC_KEY={key} asks for it")
        if not is_signed(load_public_key(key), value, _TYPE + plain):
            raise EntryError(f"is not signed by CACHE_PUBLIC_KEY={key}")
    return document if signature is None else plain
