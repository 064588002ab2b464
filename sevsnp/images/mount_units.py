# SPDX-License-Identifier: Apache-2.0
"""Masks the mount, automount and swap units of a foreign root that would use a disk or a directory of the host's.

What such a unit mounts from the image itself was folded in when the image was read (initramfs/appliance).
"""

import re
from collections.abc import Iterator

from sevsnp.archives.tar import Kind
from sevsnp.archives.tree import Tree
from sevsnp.images.network_managers import UNIT_FOLDERS, UNITS

_SUFFIXES = (".mount", ".automount", ".swap")
_SETTING = re.compile(r"^\s*(What|Type)\s*=[ \t]*(.*?)\s*$", re.MULTILINE)
_DEVICE = re.compile(r'"?(/dev/(?!(hugepages|mqueue|shm)\b)|(PART)?(UUID|LABEL)=|.*%)', re.IGNORECASE)
_SHARES = ("9p", "virtiofs", "vboxsf", "prl_fs", "vmhgfs", "fuse.vmhgfs-fuse")


def is_masked(tree: Tree, name: str) -> bool:
    """Whether the unit or generator at ``name`` is a link to /dev/null."""
    entry = tree.entries.get(name)
    return entry is not None and entry.kind is Kind.SYMLINK and entry.target == "/dev/null"


def mask_mounts(tree: Tree) -> Iterator[str]:
    """Change ``tree`` and yield a line with the masked units. Units of memory, files and network shares stay."""
    names = {name for folder in UNIT_FOLDERS for name in tree.names(folder) if name.endswith(_SUFFIXES)}
    names = {name for name in names if not is_masked(tree, f"{UNITS}/{name}")}
    off = {name for name in names if not name.endswith(".automount") and _is_hosts(_text(tree, name))}
    off |= {name for name in names if name.endswith(".automount") and f"{name.removesuffix('.automount')}.mount" in off}
    for name in sorted(off):
        tree.link(f"{UNITS}/{name}", "/dev/null")
    if off:
        yield f"switched off, since what they mount would be the host's: {', '.join(sorted(off))}"


def _text(tree: Tree, name: str) -> str:
    """The unit of the strongest folder, and all drop-ins."""
    texts = [next((text for folder in UNIT_FOLDERS if (text := tree.text(f"{folder}/{name}"))), "")]
    for folder in reversed(UNIT_FOLDERS):
        texts += [tree.text(f"{folder}/{name}.d/{each}") for each in tree.names(f"{folder}/{name}.d")]
    return "\n".join(texts)


def _is_hosts(text: str) -> bool:
    """Whether any of the settings names a device or a share: which of them systemd takes does not matter."""
    return any(
        value in _SHARES if key == "Type" else bool(_DEVICE.match(value)) for key, value in _SETTING.findall(text)
    )
