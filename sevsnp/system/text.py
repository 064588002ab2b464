# SPDX-License-Identifier: Apache-2.0
"""Foreign text, made safe for the terminal."""


def printable(text: str, keep: str = "") -> str:
    """``text`` without cursor movements and colours for the terminal; the characters of ``keep`` stay."""
    return "".join(character if character.isprintable() or character in keep else "?" for character in text)
