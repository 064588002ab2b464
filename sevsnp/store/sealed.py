# SPDX-License-Identifier: Apache-2.0
"""Signed entries.

A party that can write to a registry decides which artefacts others use, unless these require a signature. A sealed
entry is its document with one more field: the signature over the rest. Without a public key it is taken like any other.
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
# The signed bytes begin with their type, so that no signature made for another purpose counts here.
_TYPE = b"openend2e-sevsnp artefact cache entry\n"


@functools.cache
def signing_key(path: Path) -> "SigningKey":
    """Read the key once in a run: an encrypted key asks for its password."""
    from sevsnp.keys.signature import load_signing_key

    return load_signing_key(path)


def seal(document: bytes, key: Path) -> bytes:
    """An entry's document with a signature by the private key in ``key``. Raises UserError for an invalid key."""
    from sevsnp.keys.signature import sign

    value = base64.b64encode(sign(signing_key(key), _TYPE + document)).decode()
    return canonical({**json.loads(document), _FIELD: value})


def unseal(document: bytes, key: Path | None) -> bytes:
    """The entry's document without its seal. With a public key in ``key``, the key's signature is required.

    Raises EntryError if the document is malformed or not signed by that key, and UserError for an invalid key.
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
