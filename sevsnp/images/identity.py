# SPDX-License-Identifier: Apache-2.0
"""What must not be in an image: identities a clone would share, secrets the host could read, traces of the builder.

A verity image lies on the host's disk in clear; an encrypted one is cloned and handed on. The list
(guest-vm/denied.yaml) is applied to the stream of entries before any file system is made, so that nothing removed
survives in free space either.
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
    """What the image will be: VERITY is readable by the host, LUKS only by the guest and its owner."""

    VERITY = "verity"
    LUKS = "luks"


@dataclass(frozen=True)
class Removal:
    """One entry that was taken out or changed: its ``name``, its class in the deny-list, and what was done."""

    name: str
    reason: str
    action: str


_HOMES = ("root", "home/*")
# Keys lie in places no list knows; programs and their documentation under /usr are public, with their test keys.
_SEARCHED = re.compile(r"(?!usr/(?!local/)).*", re.DOTALL)
_PRIVATE_KEY = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s")
_LARGEST_KEY = 64 << 10

_ACCOUNTS = 1 << 20  # /etc/shadow of a large site, generously


def _machine_id(_: bytes) -> bytes:
    # Empty, not absent: absent would make the boot a first one, with units enabled by preset.
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
    """The classes of paths in guest-vm/denied.yaml, and of private keys, which no list of paths knows.

    Raises UserError for a file that is no such list.
    """

    def __init__(self, file: Path) -> None:
        classes = read_classes(file, r"(?!/)[^\n]*[^/\n]", "a path from the root, without a / at its ends")
        self._classes = {
            reason: "|".join(expression(path) for pattern in patterns for path in _in_homes(pattern))
            for reason, patterns in classes.items()
        }
        # Nearly no entry is denied: one look tells that, and only then which pattern it was matters.
        self._any = re.compile("|".join(self._classes.values()), re.DOTALL)

    @property
    def reasons(self) -> set[str]:
        """What its classes are called."""
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
    """A pattern that begins with ``~/`` for each home."""
    return [f"{home}/{pattern[2:]}" for home in _HOMES] if pattern.startswith("~/") else [pattern]


@dataclass
class IdentityFilter:
    """A filter for :func:`sevsnp.archives.rootfs.make_rootfs`; ``removed`` then says what it took out."""

    kind: ImageKind
    denied: DenyList
    removed: list[Removal] = field(default_factory=list)

    def __call__(self, entries: Iterable[Entry]) -> Iterable[Entry]:
        """The entries without what is denied, in their order. Raises UserError for an absurdly large account file."""
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
            # The same bytes under another name: a hard link to what was taken out.
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
        """A disk labelled cidata is root in a guest with cloud-init: where there is one, switch it off for good."""
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
    """One line a class, for people: how many entries, and the first of them."""
    classes: dict[tuple[str, str], list[str]] = {}
    for removal in removed:
        classes.setdefault((removal.reason, removal.action), []).append(f"/{removal.name}")
    return [
        f"{action} {reason}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
        for (reason, action), names in classes.items()
    ]
