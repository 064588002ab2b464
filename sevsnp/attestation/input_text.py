# SPDX-License-Identifier: Apache-2.0
"""Text that stands for bytes: hex, base64 and the dumps of xxd, od and hexdump, in any of the usual encodings of text.

Every function is linear in its input and gives at most MAX_BYTES.
"""

import base64
import binascii
import re

MAX_BYTES = 64 << 10
_BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"))
_SEPARATORS = str.maketrans("", "", " \t\r\n\v\f:,;{}[]()\\")
_URL_SAFE = str.maketrans("-_", "+/", " \t\r\n\v\f=")
_FIRST_OFFSET = re.compile(r"0{4,16}:?")
_OCTAL = re.compile(r"[0-7]{6}")


def as_text(data: bytes) -> str:
    """``data`` as text without its byte order mark and outer white space; empty if it is not text.

    UTF-16 is known without a mark, too: every other byte of ASCII in it is zero.
    """
    encoding = next((name for mark, name in _BOMS if data.startswith(mark)), "")
    if not encoding and len(data) >= 4 and len(data) % 2 == 0:
        if not any(data[1:64:2]) and all(data[0:64:2]):
            encoding = "utf-16-le"
        elif not any(data[0:64:2]) and all(data[1:64:2]):
            encoding = "utf-16-be"
    try:
        text = data.decode(encoding or "utf-8").lstrip("\ufeff").strip().strip("\0").strip()
    except UnicodeDecodeError:
        return ""
    return text if all(character >= " " or character in "\t\r\n\v\f" for character in text) else ""


def of_hex(text: str) -> bytes:
    """The bytes of hex digits, with or without 0x, colons, commas, brackets and white space; empty for other text."""
    digits = text.replace("0x", "").replace("0X", "").translate(_SEPARATORS)
    if len(digits) % 2 or len(digits) > 2 * MAX_BYTES or not digits.isascii():
        return b""
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return b""


def of_base64(text: str) -> bytes:
    """The bytes of base64 or base64url, with or without padding and quotes; empty for other text."""
    digits = text.strip("\"'").translate(_URL_SAFE)
    if len(digits) > 2 * MAX_BYTES or not digits.isascii():
        return b""
    try:
        return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)
    except (ValueError, binascii.Error):
        return b""


def of_digest(text: str, size: int) -> bytes:
    """Exactly ``size`` bytes from hex digits in either case (also with 0x), or from base64; empty for other text."""
    words = "".join(text.split())
    digits = words[2:] if words[:2] in ("0x", "0X") else words
    if len(digits) == 2 * size:
        return of_hex(digits) if digits.isalnum() else b""
    found = of_base64(words)
    return found if len(found) == size else b""


def of_dump(text: str) -> bytes:
    """The bytes of a dump by xxd, hexdump or od (bytes or words in hex, words in octal); empty for other text.

    Offsets may be hexadecimal, octal or decimal: the radix is the one in which every offset is right. A line with only
    ``*`` repeats the line before it up to the next offset. Words are those of a little-endian machine, but for xxd,
    which prints bytes in their order and a colon behind the offset.
    """
    lines = text.splitlines()
    first = lines[0].split(maxsplit=1) if lines else []
    if len(first) != 2 or len(lines) > MAX_BYTES or not _FIRST_OFFSET.fullmatch(first[0]):
        return b""
    return next(filter(None, (_dumped(lines, radix) for radix in (16, 8, 10))), b"")


def _dumped(lines: list[str], radix: int) -> bytes:
    """The bytes of a dump whose offsets have this radix; empty if one offset is not right in it."""
    found = bytearray()
    last, repeated = b"", False
    for line in lines:
        if line.strip() == "*":
            repeated = True
            continue
        offset, _, content = line.strip().partition(" ")
        try:
            position = int(offset.removesuffix(":"), radix)
            if repeated and last and len(found) < position <= MAX_BYTES:
                found += last * ((position - len(found)) // len(last))
            last = _line(content.strip(), offset.endswith(":"))
        except ValueError:
            return b""
        if position != len(found) or len(found) + len(last) > MAX_BYTES:
            return b""
        repeated = False
        found += last
    return bytes(found)


def _line(content: str, xxd: bool) -> bytes:
    """The bytes of one line without its offset and its text column. Raises ValueError."""
    if xxd:
        return bytes.fromhex(content.partition("  ")[0])
    words = content.partition("|")[0].partition(">")[0].split()
    if words and all(_OCTAL.fullmatch(word) for word in words):
        return b"".join((int(word, 8) & 0xFFFF).to_bytes(2, "little") for word in words)
    return b"".join(bytes.fromhex(word)[::-1] for word in words)
