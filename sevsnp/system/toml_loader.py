# SPDX-License-Identifier: Apache-2.0
"""Reads TOML files with a limit of work. VM configs and policies may come from others, for example with a release.

The time of the standard library's parser grows with the square of the number of parts of a dotted key, and its
recursion has no limit of its own.
"""

import tomllib
from pathlib import Path
from typing import Any

_MAX_BYTES = 256 << 10
_MAX_DOTS = 50


def loads(text: str) -> dict[str, Any]:
    """The document in ``text``. Raises tomllib.TOMLDecodeError, also for a document that would cost much time."""
    if len(text) > _MAX_BYTES:
        raise tomllib.TOMLDecodeError(f"more than {_MAX_BYTES} characters")
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > _MAX_DOTS:
            raise tomllib.TOMLDecodeError(f"line {number}: more than {_MAX_DOTS} dots")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise tomllib.TOMLDecodeError("too many nested values") from None


def read(path: Path) -> dict[str, Any]:
    """The document in the file ``path``. Raises OSError, UnicodeDecodeError, or an error of :func:`loads`."""
    with path.open(encoding="utf-8") as stream:
        return loads(stream.read(_MAX_BYTES + 1))
