# SPDX-License-Identifier: Apache-2.0
"""Extended attributes in a root: those that ext4 and erofs can hold are kept, the others are dropped by name."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from sevsnp.archives.tar import Entry
from sevsnp.images.ext4_attributes import takes_name

# What both file systems can name; another prefix is a file system's own, as btrfs.compression.
_PREFIXES = ("user.", "trusted.", "security.")
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")
_BOUND = {
    "security.evm": "it is valid for one inode only",
    "security.selinux": "the guest's policy sets labels anew",
}
# Bytes. ext4 has one block of 4,096 bytes for the attributes of a file, with a header and an entry for each.
_MOST = 3900
_EACH = 24


@dataclass
class AttributeFilter:
    """A filter for :func:`sevsnp.archives.rootfs.filtered`; afterwards :meth:`lines` says what was dropped."""

    dropped: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def __call__(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries with the attributes that are kept."""
        for entry in entries:
            yield self._kept(entry) if entry.attributes else entry

    def _kept(self, entry: Entry) -> Entry:
        known, kept = dict(entry.values), []
        room = _MOST
        for attribute in entry.attributes:
            value = known.get(attribute)
            why = _reason(attribute, value) or ("" if takes_name(entry.name) else "the file's name has a line end")
            if value is not None and not why:
                room -= len(attribute) + len(value) + _EACH
                why = "too large" if room < 0 else ""
            if value is None or why:
                self.dropped.setdefault((attribute, why), []).append(f"/{entry.name}")
            else:
                kept.append((attribute, value))
        return replace(entry, attributes=tuple(name for name, _ in kept), values=tuple(kept))

    def lines(self) -> list[str]:
        """One line for each attribute and reason: the first file, and how many more."""
        return [
            f"dropped attribute {attribute} ({why}): {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}"
            for (attribute, why), names in sorted(self.dropped.items())
        ]


def _reason(attribute: str, value: bytes | None) -> str:
    """Why an attribute cannot be kept, or the empty string."""
    if attribute in _BOUND:
        return _BOUND[attribute]
    if value is None:
        return "the archive does not have it in the kernel's form"
    if attribute in _ACLS:
        return ""
    if not attribute.startswith(_PREFIXES):
        return "no attribute of ext4 or erofs"
    return ""
