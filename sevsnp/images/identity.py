# SPDX-License-Identifier: Apache-2.0
"""Removes from an image: identities that clones would share, secrets that the host could read, traces of the builder.

A verity image lies on the host's disk unencrypted; an encrypted image is cloned and passed on. The list
(guest-vm/denied.yaml) is applied to the stream of entries before any file system is made, so that no removed content
survives in free space.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from sevsnp.archives.rootfs import expression, text_entry
from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.images.lists import read_classes


class ImageKind(Enum):
    """The kind of image: the host can read a VERITY image; only the guest and its owner can read a LUKS image."""

    VERITY = "verity"
    LUKS = "luks"


@dataclass(frozen=True)
class Removal:
    """One entry that was removed or changed: its ``name``, its class in the deny-list, and the action."""

    name: str
    reason: str
    action: str


_HOMES = ("root", "home/*")
# Keys lie in places that no list names. Programs and their documentation under /usr are public, with their test keys.
_SEARCHED = re.compile(r"(?!usr/(?!local/)).*", re.DOTALL)
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s")
_LARGEST_KEY = 64 << 10

_ACCOUNTS = 1 << 20  # bytes; enough for /etc/shadow of a large site


def _machine_id(_: bytes) -> bytes:
    # Empty, not absent: without the file the boot is a first boot, with units enabled by preset.
    return b""


def _lock_shadow(data: bytes) -> bytes:
    return _each_line(data, lambda old: b"!*" if old.startswith(b"!") else b"*")


def _lock_passwd(data: bytes) -> bytes:
    return _each_line(data, lambda old: old if old in (b"x", b"*", b"!") else b"*")


def _lock_gshadow(data: bytes) -> bytes:
    return _each_line(data, lambda old: old if old in (b"*", b"!") else b"!")


def _each_line(data: bytes, password: Callable[[bytes], bytes]) -> bytes:
    lines = []
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) > 1:
            fields[1] = password(fields[1])
        lines.append(b":".join(fields))
    return b"\n".join(lines)


Rewrite = Callable[[bytes], bytes]
_REWRITTEN: dict[str, tuple[str, str, Rewrite]] = {"etc/machine-id": ("machine id", "emptied", _machine_id)}
_REWRITTEN_VERITY: dict[str, tuple[str, str, Rewrite]] = {
    "etc/shadow": ("password hash", "locked", _lock_shadow),
    "etc/passwd": ("password hash", "locked", _lock_passwd),
    "etc/group": ("password hash", "locked", _lock_passwd),
    "etc/gshadow": ("password hash", "locked", _lock_gshadow),
}


class DenyList:
    """The classes of paths in guest-vm/denied.yaml, and the class of private keys, which are found by content.

    Raises UserError for a file that is not such a list.
    """

    def __init__(self, file: Path) -> None:
        classes = read_classes(file, r"(?!/)[^\n]*[^/\n]", "a path from the root, without a / at its ends")
        self._classes = {
            reason: "|".join(expression(path) for pattern in patterns for path in _in_homes(pattern))
            for reason, patterns in classes.items()
        }
        # Almost no entry is denied: one search finds that out, and only then the pattern matters.
        self._any = re.compile("|".join(self._classes.values()), re.DOTALL)

    @property
    def reasons(self) -> set[str]:
        """The names of its classes."""
        return set(self._classes)

    def reason(self, entry: Entry) -> str:
        """The class that ``entry`` falls into, or the empty string."""
        if self._any.fullmatch(entry.name):
            return next(reason for reason, each in self._classes.items() if re.fullmatch(each, entry.name, re.DOTALL))
        content = entry.content
        if (
            entry.kind is Kind.FILE
            and content is not None
            and 0 < content.size <= _LARGEST_KEY
            and _SEARCHED.fullmatch(entry.name)
            and _PRIVATE_KEY.search(content.read())
        ):
            return "private key"
        return ""


def _in_homes(pattern: str) -> list[str]:
    """A pattern that begins with ``~/``, once for each home; any other pattern unchanged."""
    return [f"{home}/{pattern[2:]}" for home in _HOMES] if pattern.startswith("~/") else [pattern]


@dataclass
class IdentityFilter:
    """A filter for :func:`sevsnp.archives.rootfs.make_rootfs`; afterwards ``removed`` lists what it removed."""

    kind: ImageKind
    denied: DenyList
    removed: list[Removal] = field(default_factory=list)

    def __call__(self, entries: Iterable[Entry]) -> Iterable[Entry]:
        """The entries without the denied ones, in their order. Raises UserError for an absurdly large account file."""
        kept, gone = [], set()
        rewritten = _REWRITTEN | (_REWRITTEN_VERITY if self.kind is ImageKind.VERITY else {})
        for entry in entries:
            reason = self.denied.reason(entry)
            if reason:
                self.removed.append(Removal(entry.name, reason, "removed"))
                if entry.content is not None:
                    gone.add(entry.content.inode)
            elif entry.name in rewritten and entry.content is not None:
                kept.append(self._rewrite(entry, entry.content, *rewritten[entry.name], gone))
            else:
                kept.append(entry)
        result = []
        for entry in kept:
            # A hard link to a removed file: the same bytes under another name.
            if entry.content is not None and entry.content.inode in gone and entry.content.size:
                self.removed.append(Removal(entry.name, "hard link to a removed file", "removed"))
            else:
                result.append(entry)
        return self._without_cloud_init(result)

    def _rewrite(
        self, entry: Entry, content: Content, reason: str, action: str, change: Rewrite, gone: set[tuple[str, int]]
    ) -> Entry:
        old = content.read(_ACCOUNTS)
        new = change(old)
        if new == old:
            return entry
        self.removed.append(Removal(entry.name, reason, action))
        gone.add(content.inode)
        return replace(entry, content=Content.literal(f"identity:{entry.name}", new))

    def _without_cloud_init(self, entries: Sequence[Entry]) -> Iterable[Entry]:
        """Switch cloud-init off for good if it is there: with it, a disk labelled cidata has root rights in a guest."""
        marker = "etc/cloud/cloud-init.disabled"
        present = False
        for entry in entries:
            if entry.name.startswith("etc/cloud/") and not present:
                present = True
                if not any(other.name == marker for other in entries):
                    self.removed.append(Removal(marker, "cloud-init takes orders from the host", "switched off"))
                    yield text_entry(marker, "")
            yield entry


def summary(removed: Sequence[Removal]) -> list[str]:
    """One readable line for each class: the first entry, and how many more."""
    classes: dict[tuple[str, str], list[str]] = {}
    for removal in removed:
        classes.setdefault((removal.reason, removal.action), []).append(f"/{removal.name}")
    return [
        f"{action} {reason}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for (reason, action), names in classes.items()
    ]
