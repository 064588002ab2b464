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
from sevsnp.archives.tar import Content, Entry, Kind, without_security
from sevsnp.errors import UserError
from sevsnp.images.lists import read_scopes


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


DROPPED = "what DROP names"
PRIVATE_KEY = "private key"
LINK = "hard link to a removed file"
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


class Scope(Enum):
    """What a class of the deny-list is about, by its key in denied.yaml."""

    SECRET = "secrets"  # noqa: S105
    READABLE = "secrets_where_the_host_reads"
    TRACE = "traces"


_EXPECTED = "a path from the root, without a / at its ends"
_FORM = r"(?!/)[^\n]*[^/\n]"


@dataclass(frozen=True)
class Change:
    """A user's own changes of the deny-list: path patterns that are kept, and others that are dropped."""

    keep: Sequence[str] = ()
    drop: Sequence[str] = ()

    @classmethod
    def parse(cls, keep: str, drop: str) -> "Change":
        """From the settings KEEP and DROP: patterns with commas between them. Raises UserError for another form."""
        return cls(_patterns("KEEP", keep), _patterns("DROP", drop))


def _patterns(setting: str, text: str) -> list[str]:
    patterns = [each for part in text.split(",") if (each := part.strip().removeprefix("/").rstrip("/"))]
    for each in patterns:
        if not re.fullmatch(_FORM, each):
            raise UserError(f"{setting}={text}: found {each!r}, expected path patterns with commas between them")
    return patterns


@dataclass(frozen=True)
class _Paths:
    """Path patterns: ``any`` matches all that they take, ``folders`` the directories among it; None: no directory.

    Both are regular expressions (re.DOTALL), compiled at their first use: most are never used.
    """

    any: str
    folders: str | None

    @classmethod
    def of(cls, patterns: Sequence[str], *, below: bool = False) -> "_Paths":
        """With ``below`` each pattern takes directories, with all that they hold; else only one that ends in ``**``."""
        every = {path: expression(path, below=below) for pattern in patterns for path in _in_homes(pattern)}
        wide = [each for path, each in every.items() if below or path.endswith("**")]
        return cls("|".join(every.values()), "|".join(wide) or None)

    def take(self, name: str, *, folder: bool) -> bool:
        """Whether one of the patterns takes the directory or the other file ``name``."""
        pattern = self.folders if folder else self.any
        return pattern is not None and re.fullmatch(pattern, name, re.DOTALL) is not None


_AS_LISTED = Change()


class DenyList:
    """The classes of paths in a deny-list, and the class of private keys, which are found by content.

    For an image of ``kind``; None: all classes. A pattern takes no directory unless it ends in ``**``. Raises UserError
    for a file that is not such a list.
    """

    def __init__(self, file: Path, kind: ImageKind | None = None, change: Change = _AS_LISTED) -> None:
        self._classes: dict[str, _Paths] = {}
        self._secret: set[str] = set()
        self._searches = kind is not ImageKind.LUKS
        for scope, classes in read_scopes(file, [scope.value for scope in Scope], _FORM, _EXPECTED).items():
            if kind is ImageKind.LUKS and Scope(scope) is Scope.READABLE:
                continue
            for reason, patterns in classes.items():
                self._classes[reason] = _Paths.of(patterns)
                if Scope(scope) is not Scope.TRACE:
                    self._secret.add(reason)
        if change.drop:
            self._classes[DROPPED] = _Paths.of(change.drop, below=True)
        self.kept = {pattern: _Paths.of([pattern], below=True) for pattern in change.keep}
        # Almost no entry is denied: one search finds that out, and only then the pattern matters.
        self._any = re.compile("|".join(each.any for each in self._classes.values()), re.DOTALL)

    @property
    def reasons(self) -> set[str]:
        """The names of its classes."""
        return set(self._classes)

    def is_secret(self, reason: str) -> bool:
        """Whether all links of a file of this class are removed with it; of others only the name."""
        return reason in self._secret or reason == PRIVATE_KEY

    def reason(self, entry: Entry) -> str:
        """The class that ``entry`` falls into, or the empty string."""
        if self._any.fullmatch(entry.name):
            folder = entry.kind is Kind.DIRECTORY
            found = (reason for reason, each in self._classes.items() if each.take(entry.name, folder=folder))
            if reason := next(found, ""):
                return reason
        content = entry.content
        if (
            self._searches
            and entry.kind is Kind.FILE
            and content is not None
            and 0 < content.size <= _LARGEST_KEY
            and _SEARCHED.fullmatch(entry.name)
            and _PRIVATE_KEY.search(content.read())
        ):
            return PRIVATE_KEY
        return ""


def _in_homes(pattern: str) -> list[str]:
    """A pattern that begins with ``~/``, once for each home; any other pattern unchanged."""
    return [f"{home}/{pattern[2:]}" for home in _HOMES] if pattern.startswith("~/") else [pattern]


@dataclass
class IdentityFilter:
    """A filter for :func:`sevsnp.archives.rootfs.make_rootfs`; afterwards ``removed`` lists what it removed.

    ``kept`` lists what the user keeps, by the user's pattern and the class that would have removed it.
    """

    kind: ImageKind
    denied: DenyList
    removed: list[Removal] = field(default_factory=list)
    kept: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def __call__(self, entries: Iterable[Entry]) -> Iterable[Entry]:
        """The entries without the denied ones, in their order. Raises UserError for an absurdly large account file."""
        whole = list(entries)
        reasons = {entry.name: reason for entry in whole if (reason := self.denied.reason(entry))}
        self._keep(reasons)
        left, gone = [], set()
        rewritten = _REWRITTEN | (_REWRITTEN_VERITY if self.kind is ImageKind.VERITY else {})
        for entry in whole:
            if entry.name in reasons:
                reason = reasons[entry.name]
                self.removed.append(Removal(entry.name, reason, "removed"))
                if entry.content is not None and self.denied.is_secret(reason):
                    gone.add(entry.content.inode)
            elif entry.name in rewritten and entry.content is not None:
                left.append(self._rewrite(entry, entry.content, *rewritten[entry.name], gone))
            else:
                left.append(entry)
        result = []
        for entry in left:
            # A hard link to a removed secret: the same bytes under another name.
            if entry.content is not None and entry.content.inode in gone and entry.content.size:
                self.removed.append(Removal(entry.name, LINK, "removed"))
            else:
                result.append(entry)
        return self._without_cloud_init(result)

    def _keep(self, reasons: dict[str, str]) -> None:
        """Take from ``reasons`` what the user keeps, with the directories that it is in."""
        for pattern, each in self.denied.kept.items():
            found = [name for name in reasons if each.take(name, folder=False)]
            for name in found:
                self.kept.setdefault((pattern, reasons[name]), []).append(f"/{name}")
            if not found:
                self.kept[pattern, ""] = []
            for name in found:
                while name:
                    reasons.pop(name, None)
                    name = name.rpartition("/")[0]

    def _rewrite(
        self, entry: Entry, content: Content, reason: str, action: str, change: Rewrite, gone: set[tuple[str, int]]
    ) -> Entry:
        old = content.read(_ACCOUNTS)
        new = change(old)
        if new == old:
            return entry
        self.removed.append(Removal(entry.name, reason, action))
        gone.add(content.inode)
        return replace(without_security(entry), content=Content.literal(f"identity:{entry.name}", new))

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


def kept_lines(clean: IdentityFilter) -> list[str]:
    """One line for each pattern of KEEP: what it keeps, and of which class, or that it matches nothing."""
    host = ", which the host can read" if clean.kind is ImageKind.VERITY else ""
    return [
        f"kept {reason}: {_first(names)} (KEEP: {pattern}){host if clean.denied.is_secret(reason) else ''}"
        if names
        else f"KEEP: {pattern}: the deny-list removes nothing of this name"
        for (pattern, reason), names in clean.kept.items()
    ]


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def summary(removed: Sequence[Removal]) -> list[str]:
    """One readable line for each class: the first entry, and how many more."""
    classes: dict[tuple[str, str], list[str]] = {}
    for removal in removed:
        classes.setdefault((removal.reason, removal.action), []).append(f"/{removal.name}")
    return [f"{action} {reason}: {_first(names)}" for (reason, action), names in classes.items()]
