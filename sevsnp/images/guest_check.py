# SPDX-License-Identifier: Apache-2.0
"""Looks at a root, whatever its source, for what would not work in a measured guest. Nothing is changed or refused."""

from collections.abc import Iterable, Iterator

from sevsnp.archives.tar import Entry
from sevsnp.archives.tree import Tree
from sevsnp.images.network_managers import UNITS, network_remarks

# File systems without a disk.
_IN_MEMORY = {"proc", "sysfs", "tmpfs", "devtmpfs", "devpts", "cgroup2", "securityfs", "debugfs", "mqueue", "hugetlbfs"}
_MODULE_LISTS = ("etc/modules-load.d", "usr/local/lib/modules-load.d", "usr/lib/modules-load.d")
_TAKES_DISKS = ("multipathd.service", "multipathd.socket", "multipath-tools.service")


def remarks(entries: Iterable[Entry]) -> Iterator[str]:
    """A line for each thing in the tree that probably does not work."""
    tree = Tree(entries)
    yield from network_remarks(tree)
    if (asked := sorted(asked_modules(tree))) and not any(
        tree.names(folder) for folder in ("lib/modules", "usr/lib/modules")
    ):
        yield f"modules-load.d names {', '.join(asked)}, and the root has no kernel modules: put those of the kernel in"
    for line in tree.text("etc/fstab").splitlines():
        words = line.split("#", 1)[0].split()
        if len(words) > 2 and words[1] != "/" and words[2] not in _IN_MEMORY:
            yield f"/etc/fstab: {words[1]} is not mounted: a measured guest has its root and memory, and reads no fstab"
    wanted = {unit for name in tree.names(UNITS) if name.endswith(".wants") for unit in tree.names(f"{UNITS}/{name}")}
    for unit in _TAKES_DISKS:
        if unit in wanted and not tree.has(f"{UNITS}/{unit}"):
            yield f"{unit} is switched on: it takes any disk that the host attaches"


def asked_modules(tree: Tree) -> set[str]:
    """The modules that the root's lists name (modules-load.d(5)); init loads them (initramfs/device_lock.py)."""
    texts = (tree.text(f"{folder}/{n}") for folder in _MODULE_LISTS for n in tree.names(folder) if n.endswith(".conf"))
    lines = (line.strip() for text in texts for line in text.splitlines())
    return {line for line in lines if line and line[0] not in "#;"}
