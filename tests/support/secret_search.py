# SPDX-License-Identifier: Apache-2.0
"""Searches for a secret in every form in which it may have been written."""

import base64
from pathlib import Path


def forms(secret: bytes) -> dict[str, bytes]:
    """The secret and its text forms: hexadecimal, and base64 at each alignment, without the incomplete ends."""
    found = {"raw": secret, "hex": secret.hex().encode(), "HEX": secret.hex().upper().encode()}
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + secret)
        found[f"base64+{shift}"] = encoded[4 if shift else 0 : len(encoded) // 4 * 4 - 4]
    return found


def search(data: bytes, secret: bytes) -> list[str]:
    """The forms of ``secret`` that are in ``data``."""
    return [name for name, form in forms(secret).items() if form in data]


def search_file(path: Path, secret: bytes) -> list[str]:
    """The forms of ``secret`` in a file of any size, such as an image."""
    found: set[str] = set()
    before = b""
    with path.open("rb") as stream:
        while piece := stream.read(8 << 20):
            found.update(search(before + piece, secret))
            before = piece[-4 * len(secret) :]
    return sorted(found)
