# SPDX-License-Identifier: Apache-2.0
"""Text that somebody else wrote, for the terminal."""


def printable(text: str, keep: str = "") -> str:
    """``text`` in which nothing moves a terminal's cursor or is a colour; the characters of ``keep`` stay."""
    return "".join(character if character.isprintable() or character in keep else "?" for character in text)
