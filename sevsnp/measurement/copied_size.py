# SPDX-License-Identifier: Apache-2.0
"""The memory that a verified guest's writable directories need when they are copied at boot (WRITABLE=copy)."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from sevsnp.archives.tar import Entry, Kind
from sevsnp.errors import UserError

# The directories that init copies (initramfs/verity_root.py).
DIRECTORIES = ("etc", "home", "var")
_PAGE = 4096
_INLINE = 128  # bytes of a symbolic link's target that tmpfs keeps beside the inode
_MIB = 1 << 20


def write_copied_sizes(entries: Iterable[Entry], output: Path) -> None:
    """Write the bytes that each directory takes in a tmpfs, as JSON: whole pages, holes filled, hard links once."""
    sizes = dict.fromkeys(DIRECTORIES, 0)
    seen: set[tuple[str, tuple[str, int]]] = set()
    for entry in entries:
        first = entry.name.partition("/")[0]
        if first not in sizes:
            continue
        if entry.content is not None and (first, entry.content.inode) not in seen:
            seen.add((first, entry.content.inode))
            sizes[first] += -(-entry.content.size // _PAGE) * _PAGE
        elif entry.kind is Kind.SYMLINK and len(entry.target) >= _INLINE:
            sizes[first] += _PAGE
    output.write_text(json.dumps(sizes) + "\n")


def check_copied_sizes(sizes: Path, tmpfs: Mapping[str, int]) -> None:
    """Raises UserError if a directory's content does not fit into its tmpfs; ``tmpfs`` has bytes by directory."""
    for name, size in json.loads(sizes.read_text()).items():
        if size > tmpfs[name]:
            setting = f"TMPFS_{name.upper()}"
            raise UserError(
                f"{setting}: found {-(-tmpfs[name] // _MIB)}M, but /{name} has {-(-size // _MIB)}M, which WRITABLE=copy"
                " puts there at each boot",
                f"take more: {setting}={-(-size * 5 // 4 // _MIB) + 16}M; or WRITABLE=overlay, which copies nothing",
            )
