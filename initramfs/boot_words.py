"""The measured command line as init understands it: every word it needs exactly once, nothing it does not know.

The kernel command line is the only configuration there is. What is missing, doubled or malformed is an error, because
a default would be a boot mode that the owner did not ask for.
"""

import re

PREFIX = "sevsnp."
_REQUIRED = {"mode", "verity", "rootfs", "writable", "tmpfs"}
_OPTIONAL = {"emulated"}
_DIRECTORIES = ("etc", "home", "var", "tmp")
_VERITY = re.compile(
    r"1:(?P<data_block>4096):(?P<hash_block>4096):(?P<blocks>[1-9][0-9]{0,11}):(?P<hash_start>0|[1-9][0-9]{0,11})"
    r":(?P<algorithm>sha256):(?P<root>[0-9a-f]{64}):(?P<salt>[0-9a-f]{64})"
)


class BadCommandLine(Exception):
    """The command line is not one that the owner's tools make."""


class Words:
    """What the command line says: the verity table's parameters, file system, and writable directories in bytes."""

    def __init__(self, text: str) -> None:
        words = _own_words(text)
        self.mode = _match(words, "mode", "verity")
        self.verity = _verity(words)
        self.rootfs = _match(words, "rootfs", "ext4|erofs")
        self.writable = _match(words, "writable", "overlay|copy")
        self.tmpfs = _sizes(words)
        self.emulated = "emulated" in words and _match(words, "emulated", "1") == "1"
        self.acpi = "acpi=off" not in text.split()


def _own_words(text: str) -> "dict[str, str]":
    if not text.isascii() or any(character in text for character in "\"'\\\0"):
        raise BadCommandLine("found a quote, backslash or non-ASCII character")
    found: dict[str, str] = {}
    for word in text.split():
        if word == "--":
            raise BadCommandLine("found the word --")
        if word.startswith(PREFIX):
            name, equals, value = word[len(PREFIX) :].partition("=")
            if name not in _REQUIRED | _OPTIONAL or not equals:
                raise BadCommandLine(f"unknown word {word}")
            if name in found:
                raise BadCommandLine(f"{PREFIX}{name} given twice")
            found[name] = value
    for name in sorted(_REQUIRED - found.keys()):
        raise BadCommandLine(f"{PREFIX}{name} is missing")
    return found


def _match(words: "dict[str, str]", name: str, pattern: str) -> str:
    if not re.fullmatch(pattern, words[name]):
        raise BadCommandLine(f"{PREFIX}{name}: found {words[name]}, expected {pattern}")
    return words[name]


def _verity(words: "dict[str, str]") -> "dict[str, str]":
    match = _VERITY.fullmatch(words["verity"])
    if not match:
        raise BadCommandLine(f"{PREFIX}verity: found {words['verity']}, expected a verity table")
    return match.groupdict()


def _sizes(words: "dict[str, str]") -> "dict[str, int]":
    pattern = ",".join(rf"{name}:([1-9][0-9]{{0,14}})" for name in _DIRECTORIES)
    match = re.fullmatch(pattern, words["tmpfs"])
    if not match:
        raise BadCommandLine(f"{PREFIX}tmpfs: found {words['tmpfs']}, expected {pattern}")
    return {name: int(size) for name, size in zip(_DIRECTORIES, match.groups(), strict=True)}


def verity_table(verity: "dict[str, str]", data: str, tree: str) -> str:
    """The device-mapper line of the root (Documentation/admin-guide/device-mapper/verity.rst).

    Corruption and I/O errors both panic: an I/O error that is only reported lets a host delete files at will.
    """
    sectors = int(verity["blocks"]) * 4096 // 512
    return (
        f"0 {sectors} verity 1 {data} {tree} {verity['data_block']} {verity['hash_block']} {verity['blocks']} "
        f"{verity['hash_start']} {verity['algorithm']} {verity['root']} {verity['salt']} "
        "2 panic_on_corruption panic_on_error"
    )
