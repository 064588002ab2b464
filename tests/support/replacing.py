# SPDX-License-Identifier: Apache-2.0
"""Replacements in a text that a test needs to have happened."""

from typing import AnyStr


def replaced_once(text: AnyStr, old: AnyStr, new: AnyStr) -> AnyStr:
    """``text`` with ``new`` in the place of ``old``. Raises AssertionError unless ``old`` is there exactly once."""
    found = text.count(old)
    assert found == 1, f"found {found} times {old!r}, expected once"
    return text.replace(old, new)
