# SPDX-License-Identifier: Apache-2.0
"""The index of a tar that was read before: an edited file must not cost a walk through ten thousand headers.

The index is remembered beside the digests of files, under the digest of the archive and that of the reading code. For
another archive, or with other code, it is made anew.
"""

from pathlib import Path
from typing import Any

from sevsnp.archives.tar import Content, Entry, Kind, read_tar
from sevsnp.store.recipe import recipe_digest
from sevsnp.store.session import index

_KINDS = {kind.value.decode(): kind for kind in Kind}


def read_known_tar(path: Path) -> dict[str, Entry]:
    """The same result and errors as :func:`sevsnp.archives.tar.read_tar`, in the same order."""

    def rows() -> list[Any]:
        return list(map(_row, read_tar(path).values()))

    try:
        # The code is this module with all modules that it reaches.
        found = index().memo_of(path, f"tar:{recipe_digest(__name__)}", rows)
    except OSError:
        return read_tar(path)  # it raises the proper error
    return {row[0]: _entry(path, *row) for row in found}


def _row(entry: Entry) -> tuple[Any, ...]:
    """An entry in JSON's types; a file's content is a place in the archive."""
    return (
        *(entry.name, entry.kind.value.decode(), entry.mode, entry.uid, entry.gid, entry.mtime, entry.target),
        *(entry.device, entry.capability.hex(), entry.attributes),
        [(name, value.hex()) for name, value in entry.values],
        entry.content and (entry.content.size, entry.content.inode[1], entry.content.offset, entry.content.sparse),
    )


def _entry(
    path: Path,
    name: str,
    kind: str,
    mode: int,
    uid: int,
    gid: int,
    mtime: int,
    target: str,
    device: tuple[int, int],
    capability: str,
    attributes: list[str],
    values: list[list[str]],
    place: list[Any] | None,
) -> Entry:
    content = None
    if place:
        size, inode, offset, sparse = place
        content = Content(size, (str(path), inode), path, offset, sparse=sparse)
    return Entry(
        *(name, _KINDS[kind], mode, uid, gid, mtime, target, (device[0], device[1]), content),
        bytes.fromhex(capability),
        tuple(attributes),
        tuple((attribute, bytes.fromhex(value)) for attribute, value in values),
    )
