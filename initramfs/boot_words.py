# SPDX-License-Identifier: Apache-2.0
"""Parse the measured command line for init: every word that init needs exactly once, and no unknown word.

The kernel command line is the only configuration. A missing, repeated or malformed word is an error, because a default
would be a boot mode that the owner did not ask for.
"""

import base64
import binascii
import re

PREFIX = "sevsnp."
# The words of each mode; each must be there exactly once.
_MODES = {
    "verity": {"verity", "rootfs", "writable", "tmpfs"},
    "luks": {"luks", "rootfs", "owner"},
}
# The optional words of each mode.
_OPTIONAL = {"verity": {"emulated", "dns", "data", "owner"}, "luks": {"emulated", "reports", "dns"}}
_DIRECTORIES = ("etc", "home", "var", "tmp")
_VERITY = re.compile(
    r"1:(?P<data_block>4096):(?P<hash_block>4096):(?P<blocks>[1-9][0-9]{0,11}):(?P<hash_start>0|[1-9][0-9]{0,11})"
    r":(?P<algorithm>sha256):(?P<root>[0-9a-f]{64}):(?P<salt>[0-9a-f]{64})"
)
_LUKS = re.compile(r"1:(?P<header_bytes>[1-9][0-9]{3,7}):(?P<header>[0-9a-f]{64}):(?P<tables>[0-9a-f]{64})")
_DATA = re.compile(_LUKS.pattern + r":(?P<path>(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)+)")
_OWNER = 268
_MOST_SERVERS = 3  # resolv.conf(5): MAXNS


class BadCommandLine(Exception):
    """The owner's tools do not make such a command line."""


class Words:
    """The values of the command line: ``mode``, ``rootfs``, ``emulated``, ``acpi``, ``reports``, ``dns``, and more.

    verity: the table's parameters, the method by which directories become writable, and their sizes in bytes. luks: the
    header's length in bytes, the SHA-256 of the header and of the dm tables (lower-case hex), and the owner's
    certificate (DER). data: the same for the data disk of a verified root, and the path of its mount point; empty
    without such a disk.
    """

    def __init__(self, text: str) -> None:
        words = _own_words(text)
        self.mode = _match(words, "mode", "|".join(_MODES))
        _check_names(words, self.mode)
        self.verity: dict[str, str] = {}
        self.tmpfs: dict[str, int] = {}
        self.luks: dict[str, str] = {}
        self.data: dict[str, str] = {}
        self.writable, self.owner = "", b""
        if self.mode == "verity":
            self.rootfs = _match(words, "rootfs", "ext4|erofs")
            self.verity = _table(words, "verity", _VERITY)
            self.writable = _match(words, "writable", "overlay|copy")
            self.tmpfs = _sizes(words)
            if words.keys() & {"data", "owner"}:
                self.data, self.owner = _table(words, "data", _DATA), _certificate(words)
        else:
            self.rootfs = _match(words, "rootfs", "ext4")
            self.luks = _table(words, "luks", _LUKS)
            self.owner = _certificate(words)
        self.emulated = "emulated" in words and _match(words, "emulated", "1") == "1"
        # The verified guest's agent asks for reports as long as it runs.
        self.reports = self.mode == "verity" or ("reports" in words and _match(words, "reports", "open") == "open")
        self.dns = _addresses(words) if "dns" in words else []
        self.acpi = "acpi=off" not in text.split()


def _own_words(text: str) -> "dict[str, str]":
    if not text.isascii() or any(character in text for character in "\"'\\\0"):
        raise BadCommandLine("found a quote, backslash or non-ASCII character")
    known = {"mode"}.union(*_MODES.values(), *_OPTIONAL.values())
    found: dict[str, str] = {}
    for word in text.split():
        if word == "--":
            raise BadCommandLine("found the word --")
        if word.startswith(PREFIX):
            name, equals, value = word[len(PREFIX) :].partition("=")
            if name not in known or not equals:
                raise BadCommandLine(f"unknown word {word}")
            if name in found:
                raise BadCommandLine(f"{PREFIX}{name} given twice")
            found[name] = value
    if "mode" not in found:
        raise BadCommandLine(f"{PREFIX}mode is missing")
    return found


def _check_names(words: "dict[str, str]", mode: str) -> None:
    for name in sorted(words.keys() - _MODES[mode] - _OPTIONAL[mode] - {"mode"}):
        raise BadCommandLine(f"{PREFIX}{name} is no word of {PREFIX}mode={mode}")
    for name in sorted(_MODES[mode] - words.keys()):
        raise BadCommandLine(f"{PREFIX}{name} is missing")


def _given(words: "dict[str, str]", name: str) -> str:
    if name not in words:
        raise BadCommandLine(f"{PREFIX}{name} is missing")
    return words[name]


def _match(words: "dict[str, str]", name: str, pattern: str) -> str:
    if not re.fullmatch(pattern, words[name]):
        raise BadCommandLine(f"{PREFIX}{name}: found {words[name]}, expected {pattern}")
    return words[name]


def _table(words: "dict[str, str]", name: str, pattern: "re.Pattern[str]") -> "dict[str, str]":
    match = pattern.fullmatch(_given(words, name))
    if not match:
        raise BadCommandLine(f"{PREFIX}{name}: found {words[name]}, expected {pattern.pattern}")
    return match.groupdict()


def _certificate(words: "dict[str, str]") -> bytes:
    # Accept only canonical base64 in the standard alphabet, and only the length of an owner's certificate.
    try:
        der = base64.b64decode(_given(words, "owner"), validate=True)
    except (ValueError, binascii.Error):
        der = b""
    if len(words["owner"]) != _OWNER or base64.b64encode(der).decode() != words["owner"]:
        raise BadCommandLine(f"{PREFIX}owner: expected a certificate of {_OWNER} base64 characters")
    return der


def _addresses(words: "dict[str, str]") -> "list[str]":
    import socket  # only here: loading it takes time, and most guests have no such word

    found = words["dns"].split(",")
    for address in found:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            good = socket.inet_ntop(family, socket.inet_pton(family, address)) == address
        except OSError:
            good = False
        if not good:
            raise BadCommandLine(f"{PREFIX}dns: found {address}, expected an IP address in its shortest form")
    if len(set(found)) < len(found) or len(found) > _MOST_SERVERS:
        raise BadCommandLine(f"{PREFIX}dns: found {words['dns']}, expected one to {_MOST_SERVERS} different addresses")
    return found


def _sizes(words: "dict[str, str]") -> "dict[str, int]":
    pattern = ",".join(rf"{name}:([1-9][0-9]{{0,14}})" for name in _DIRECTORIES)
    match = re.fullmatch(pattern, words["tmpfs"])
    if not match:
        raise BadCommandLine(f"{PREFIX}tmpfs: found {words['tmpfs']}, expected {pattern}")
    return {name: int(size) for name, size in zip(_DIRECTORIES, match.groups(), strict=True)}


def verity_table(verity: "dict[str, str]", data: str, tree: str) -> str:
    """The device-mapper line of the root (Documentation/admin-guide/device-mapper/verity.rst).

    Corruption and I/O errors both cause a panic: with I/O errors that are only reported, a host could delete any file.
    """
    sectors = int(verity["blocks"]) * 4096 // 512
    return (
        f"0 {sectors} verity 1 {data} {tree} {verity['data_block']} {verity['hash_block']} {verity['blocks']} "
        f"{verity['hash_start']} {verity['algorithm']} {verity['root']} {verity['salt']} "
        "2 panic_on_corruption panic_on_error"
    )
