# SPDX-License-Identifier: Apache-2.0
"""Computes the memory that writable directories of a verified guest need when they are copied at boot."""

import json
from collections.abc import Iterable
from pathlib import Path

from sevsnp.archives.tar import Entry, Kind

# The directories that init copies (initramfs/verity_root.py).
DIRECTORIES = ("etc", "home", "var")
_PAGE = 4096
_INLINE = 128  # bytes of a symbolic link's target that tmpfs keeps beside the inode


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
