# SPDX-License-Identifier: Apache-2.0
"""The parsers of the values in a policy. Each raises ValueError, which says what was expected."""

import re
from collections.abc import Callable
from typing import Any

from sevsnp.attestation.input_text import of_digest


def integers(low: int, high: int) -> Callable[[Any], int]:
    def parse(item: Any) -> int:
        if isinstance(item, str) and re.fullmatch(r"0x[0-9A-Fa-f]{1,16}", item):
            item = int(item, 16)
        if type(item) is not int or not low <= item <= high:
            raise ValueError(f"an integer from {low} to {high:#x}")
        return item

    return parse


def bytes_of(length: int, *, none: bytes | None = None, pad_from: int = 0) -> Callable[[Any], bytes]:
    """A parser of bytes in hex or base64. ``none`` is the word none's value; ``pad_from`` bytes are padded."""

    def parse(item: Any) -> bytes:
        if none is not None and item == "none":
            return none
        found = b""
        if isinstance(item, str):
            found = of_digest(item, length) or (of_digest(item, pad_from) if pad_from else b"")
        if not found:
            raise ValueError(f"{2 * length} hex digits ({length} bytes), or the bytes in base64")
        return found.ljust(length, b"\0")

    return parse


def words(*allowed: str) -> Callable[[Any], str]:
    def parse(item: Any) -> str:
        if item not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return str(item)

    return parse


def text(item: Any) -> str:
    if not isinstance(item, str) or not item:
        raise ValueError("a name")
    return item


def boolean(item: Any) -> bool:
    if type(item) is not bool:
        raise ValueError("true or false")
    return item


def version(parts: int) -> Callable[[Any], tuple[int, ...]]:
    def parse(item: Any) -> tuple[int, ...]:
        pattern = r"\.".join([r"(\d{1,3})"] * parts)
        match = re.fullmatch(pattern, item) if isinstance(item, str) else None
        if not match:
            raise ValueError(f"a version of {parts} numbers, as {'.'.join(['1', '55', '40'][:parts])}")
        return tuple(int(part) for part in match.groups())

    return parse
