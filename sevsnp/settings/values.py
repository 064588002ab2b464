# SPDX-License-Identifier: Apache-2.0
"""Parse the texts of settings; each parser raises ValueError for a text that it does not accept.

This module is separate from the table of settings, because a host bundle contains it too: the bundle's sizes and TCB
versions have the same form.
"""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from urllib.parse import urlsplit

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


def host_name(text: str) -> str:
    """A name or an IP address of a machine, in a form that the system's look-up of names accepts."""
    if not re.fullmatch(r"[^\s/?#@\x00-\x20\x7f]+", text):
        raise ValueError
    # The look-up raises UnicodeError for a part that is empty or too long; of a name that is not ASCII, Python says it.
    if text.isascii():
        if not all(0 < len(part) < 64 for part in text.removesuffix(".").split(".")):
            raise ValueError
    else:
        text.encode("idna")  # UnicodeError is a ValueError
    return text


def web_address(value: str) -> str:
    """The URL of a server, or empty."""
    if value and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
        raise ValueError
    if value:
        host_name(urlsplit(value).hostname or "")
    return value


def location(value: str) -> str:
    """A path, the URI of a file or a server, or another word; not a URI that nothing can read, as ``http://[::1``."""
    if "://" in value:
        urlsplit(value)
    return text(value)


def words(text: str) -> str:
    """Names of hosts with what distcc allows behind them (localhost/4,lzo), separated by blanks; or nothing."""
    if not re.fullmatch(r"[A-Za-z0-9@:/.,_\[\] -]*", text) or text.startswith("-"):
        raise ValueError
    return text


def commit_date(text: str) -> str:
    """``today``, or a day as ISO 8601 writes it with dashes."""
    # fromisoformat alone would also accept 20260131 and 2026-W05-6.
    if text != "today" and date.fromisoformat(text).isoformat() != text:
        raise ValueError
    return text


@dataclass(frozen=True)
class Choice:
    """A parser for one of a few words; ``also`` has synonyms."""

    allowed: tuple[str, ...]
    also: tuple[tuple[str, str], ...] = ()

    def __call__(self, text: str) -> str:
        text = dict(self.also).get(text, text)
        if text not in self.allowed:
            raise ValueError
        return text


def guest_name(text: str) -> str:
    """A guest's name, which becomes a directory in build/run, or empty. Other files there have no such names."""
    if text and (len(text) > 40 or text == "e2e"):
        raise ValueError
    return word(text) if text else text


def volume(text: str) -> str:
    """The UUID of a volume, or the beginning of a UUID."""
    if not re.fullmatch("[0-9a-f-]{0,36}", text):
        raise ValueError
    return text


def choice(*allowed: str) -> Choice:
    return Choice(allowed)


# 0 and 1 are allowed too, as in most programs that read such a variable.
no_or_yes = Choice(("no", "yes"), also=(("0", "no"), ("1", "yes")))


def integer(low: int, high: int) -> Parser:
    def parse(text: str) -> int:
        # int() alone would also accept 1_000, blanks, and digits of other scripts.
        if not re.fullmatch(r"[0-9]+|0x[0-9A-Fa-f]+", text):
            raise ValueError
        value = int(text, 16 if text.startswith("0x") else 10)
        if not low <= value <= high:
            raise ValueError
        return value

    return parse


def digest(text: str) -> str:
    """A SHA-256 in lower-case hex, or nothing."""
    if not re.fullmatch("(?:[0-9a-f]{64})?", text):
        raise ValueError
    return text


def dns_servers(text: str) -> str:
    """Up to three addresses of DNS servers with commas between, each in its shortest form, or nothing."""
    found = []
    for address in text.split(",") if text else []:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            found.append(socket.inet_ntop(family, socket.inet_pton(family, address)))
        except OSError:
            raise ValueError from None
    if len(set(found)) < len(found) or len(found) > 3:
        raise ValueError
    return ",".join(found)


def parse_forwards(text: str) -> tuple[tuple[int, int], ...]:
    """Parse ``8443:443,9000:80``: pairs of a port here and the guest's port, or nothing. Raises ValueError.

    No port here is in two pairs.
    """
    pairs = []
    for pair in text.split(",") if text else []:
        if not re.fullmatch("[0-9]{1,5}:[0-9]{1,5}", pair):
            raise ValueError(text)
        here, _, inside = pair.partition(":")
        pairs.append((int(here), int(inside)))
    if not all(1 <= port <= 65535 for pair in pairs for port in pair) or len(dict(pairs)) < len(pairs):
        raise ValueError(text)
    return tuple(pairs)


def forwards(text: str) -> str:
    parse_forwards(text)
    return text


FORWARDS = "pairs of TCP ports with commas between them, each port here once, as 8443:443,9000:80"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def parse_size(text: str) -> int:
    """Parse ``512M``, ``2G``, ``2GiB`` or plain bytes; return bytes. Binary units, no fractions. Raises ValueError."""
    # re.ASCII, because otherwise the Kelvin sign would match as a K.
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


def size_or_none(low: int, high: int) -> Parser:
    """A size from ``low`` to ``high``, or 0."""
    some = size(low, high)
    return lambda text: 0 if text == "0" else some(text)


# Where something else is mounted, or what the guest boots with.
_TAKEN = {"etc", "home", "var", "root"}
_TAKEN_BELOW = {"bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "tmp", "usr"}


def data_path(text: str) -> str:
    """The mount point of the data disk: an absolute path of plain names, where a guest can do without its own files."""
    if len(text) > 100 or not re.fullmatch("(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)+", text):
        raise ValueError
    if text[1:] in _TAKEN or text.split("/")[1] in _TAKEN_BELOW:
        raise ValueError
    return text


def policy(text: str) -> int:
    # Reserved bits: AMD 56860, guest policy. The verifier never accepts a policy with debugging or migration, so such a
    # policy is not allowed here either.
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


def sha256(text: str) -> Value:
    return hex_digits(64)(text) if text else text


# The parts of a TCB version in the order of AMD's documents; fmc exists only on Turin.
TCB_PARTS = ("fmc", "bootloader", "tee", "snp", "microcode")


def parse_tcb(text: str) -> dict[str, int]:
    """Parse ``bootloader:3,tee:0,snp:8,microcode:115``: numbers from 0 to 255 by part; parts without a number are 0."""
    values: dict[str, int] = {}
    for item in text.split(","):
        name, _, number = item.partition(":")
        known = name in TCB_PARTS and name not in values
        if not known or not re.fullmatch("[0-9]{1,3}", number) or int(number) > 255:
            raise ValueError(text)
        values[name] = int(number)
    return dict.fromkeys(TCB_PARTS, 0) | values


_NUMBER = "(?:0x[0-9a-f]{1,2}|[0-9]{1,3})"
_PROCESSOR = re.compile(f"cpuid:{_NUMBER}/{_NUMBER}(?:/{_NUMBER})?", re.IGNORECASE)


def parse_minimum_tcb(text: str) -> list[tuple[str, dict[str, int]]]:
    """Parse ``bootloader:3,snp:8`` or ``cpuid:0x19/0x11/1,snp:8,cpuid:0x19/0xa0/2,snp:9``. Raises ValueError.

    One entry for each processor: its family, model and perhaps stepping, and the parts as :func:`parse_tcb` has them.
    Without processors there is one entry, whose processor is empty.
    """
    if not text.lower().startswith("cpuid:"):
        return [("", parse_tcb(text))]
    found: list[tuple[str, dict[str, int]]] = []
    for one in re.split(",(?=cpuid:)", text, flags=re.IGNORECASE):
        processor, _, parts = one.partition(",")
        if not _PROCESSOR.fullmatch(processor):
            raise ValueError(text)
        found.append((processor.partition(":")[2].lower(), parse_tcb(parts)))
    return found


def minimum_tcb(text: str) -> str:
    # A floor of zeros would silently refuse nothing; the explicit word for that is any.
    if text not in ("", "any") and not all(any(parts.values()) for _, parts in parse_minimum_tcb(text)):
        raise ValueError
    return text


def cache_place(text: str) -> str:
    # The code that opens a reference checks its form: an error from here would show a password in the reference.
    if text and text != "off" and "://" not in text:
        raise ValueError
    return text


LEAST_MEMORY = 256 << 20
