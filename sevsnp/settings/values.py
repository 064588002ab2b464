# SPDX-License-Identifier: Apache-2.0
"""How the text of a setting is read; each parser raises ValueError for what it does not take.

Apart from the table of settings, for what a host bundle has too: its sizes and TCB versions are written the same way.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

Value = str | int
Parser = Callable[[str], Value]


def text(value: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise ValueError
    return value


def word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise ValueError
    return text


@dataclass(frozen=True)
class Choice:
    """One of a few words; ``also`` are other words for some of them."""

    allowed: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()

    def __call__(self, text: str) -> str:
        text = dict(self.also).get(text, text)
        if text not in self.allowed:
            raise ValueError
        return text


def guest_name(text: str) -> str:
    """A guest's name, which becomes a directory in build/run, or nothing. What else is there has other names."""
    if text and (len(text) > 40 or text == "e2e"):
        raise ValueError
    return word(text) if text else text


def volume(text: str) -> str:
    """The UUID of a volume, or its beginning."""
    if not re.fullmatch("[0-9a-f-]{0,36}", text):
        raise ValueError
    return text


def choice(*allowed: str) -> Choice:
    return Choice(allowed)


# As most programs that read such a variable have it, too.
no_or_yes = Choice(("no", "yes"), also=(("0", "no"), ("1", "yes")))


def integer(low: int, high: int) -> Parser:
    def parse(text: str) -> int:
        # int() alone would also take 1_000, blanks and other scripts' digits.
        if not re.fullmatch(r"[0-9]+|0x[0-9A-Fa-f]+", text):
            raise ValueError
        value = int(text, 16 if text.startswith("0x") else 10)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """``512M``, ``2G``, ``2GiB`` or plain bytes, in bytes; binary units, no fractions. Raises ValueError."""
    # ASCII, or the Kelvin sign would count as a K.
    match = re.fullmatch(r"([0-9]+)(?:([KMG])(?:i?B)?|B)?", text, re.IGNORECASE | re.ASCII)
    if not match:
        raise ValueError(text)
    return int(match[1]) * _UNITS[(match[2] or "").upper()]


def size(low: int, high: int) -> Parser:
    def parse(text: str) -> int:
        value = parse_size(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def policy(text: str) -> int:
    # Reserved bits as AMD 56860 table 10 has them; a policy with debugging or migration is never accepted, so none is
    # ever made.
    value = integer(0, (1 << 64) - 1)(text)
    assert isinstance(value, int)
    if not value >> 17 & 1 or value >> 26 or value >> 18 & 0b11:
        raise ValueError
    return value


def hex_digits(digits: int) -> Parser:
    def parse(text: str) -> str:
        if not re.fullmatch(f"[0-9a-f]{{{digits}}}", text):
            raise ValueError
        return text

    return parse


# The order in which AMD's documents name the parts of a TCB version; fmc exists on Turin only.
TCB_PARTS = ("fmc", "bootloader", "tee", "snp", "microcode")


def parse_tcb(text: str) -> dict[str, int]:
    """``bootloader:3,tee:0,snp:8,microcode:115`` as numbers from 0 to 255 by part; what is not named is 0."""
    values: dict[str, int] = {}
    for item in text.split(","):
        name, _, number = item.partition(":")
        known = name in TCB_PARTS and name not in values
        if not known or not re.fullmatch("[0-9]{1,3}", number) or int(number) > 255:
            raise ValueError(text)
        values[name] = int(number)
    return dict.fromkeys(TCB_PARTS, 0) | values


def minimum_tcb(text: str) -> str:
    # A floor of zeros would refuse nothing without saying so; the word for that is any.
    if text not in ("", "any") and not any(parse_tcb(text).values()):
        raise ValueError
    return text


def cache_place(text: str) -> str:
    # What a reference must look like is for who opens it to say: what is said here would show a password in it.
    if text and text != "off" and "://" not in text:
        raise ValueError
    return text


LEAST_MEMORY = 256 << 20
