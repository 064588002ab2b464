# SPDX-License-Identifier: Apache-2.0
"""Reads TOML files with a limit of work. VM configs and policies may come from others, for example with a release.

The time of the standard library's parser grows with the square of the number of parts of a dotted key, its recursion
has no limit of its own, and it takes integers of any size, which then cannot be printed.
"""

import tomllib
from pathlib import Path
from typing import Any

_MAX_BYTES = 256 << 10
_MAX_DOTS = 50


def loads(text: str) -> dict[str, Any]:
    """The document in ``text``. Raises tomllib.TOMLDecodeError, also for a document that would cost much time.

    Its integers have at most 64 bits, which every reader of TOML must be able to take (TOML 1.0.0, "Integer").
    """
    if len(text) > _MAX_BYTES:
        raise tomllib.TOMLDecodeError(f"more than {_MAX_BYTES} characters")
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > _MAX_DOTS:
            raise tomllib.TOMLDecodeError(f"line {number}: more than {_MAX_DOTS} dots")
    try:
        document = tomllib.loads(text)
        _check_integers(document)
    except RecursionError:
        raise tomllib.TOMLDecodeError("too many nested values") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # of int(), for more than 4300 digits
        raise tomllib.TOMLDecodeError("found a number of too many digits, expected 64 bits with the sign") from None
    return document


def _check_integers(value: Any, key: str = "") -> None:
    """Raise TOMLDecodeError for an integer outside of the 64 bits with a sign. ``key`` is where ``value`` stands."""
    if isinstance(value, dict):
        for name, one in value.items():
            _check_integers(one, name)
    elif isinstance(value, list):
        for one in value:
            _check_integers(one, key)
    elif isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        found = f"an integer of {value.bit_length() + 1} bits"
        raise tomllib.TOMLDecodeError(f"{key!a:.60}: found {found}, expected 64 bits with the sign")


def read(path: Path) -> dict[str, Any]:
    """The document in the file ``path``. Raises OSError, UnicodeDecodeError, or an error of :func:`loads`."""
    with path.open(encoding="utf-8") as stream:
        return loads(stream.read(_MAX_BYTES + 1))
