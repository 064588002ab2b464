# SPDX-License-Identifier: Apache-2.0
"""The digest of a directory tree, which packages.json of build/snp-release contains.

Later tasks know the tree only by that file, wherever the tree came from. With the digest in it, two trees with the same
packages.json have the same content, also if one of them was not unpacked from Debian's packages.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.system.files import sha256_file


def tree_digest(tree: Path, left_out: str) -> str:
    """SHA-256 (64 hex digits) over all entries below ``tree``, except the file ``left_out`` at its top.

    The digest covers each entry's kind, path and content, in the order of the paths. Kinds are directory, link, file
    and program, which is a file that its owner may execute. Owners, times and other mode bits have no effect. Raises
    :class:`UserError` for an entry of another kind.
    """
    digest = hashlib.sha256()
    for path in sorted(_below(tree, "")):
        if path == left_out:
            continue
        kind, content = _described(tree / path)
        # No field can contain a zero byte.
        digest.update(b"".join(os.fsencode(field) + b"\0" for field in (kind, path, content)))
    return digest.hexdigest()


def _below(tree: Path, above: str) -> Iterator[str]:
    with os.scandir(tree / above) as entries:
        for entry in entries:
            path = f"{above}{entry.name}"
            yield path
            if entry.is_dir(follow_symlinks=False):
                yield from _below(tree, f"{path}/")


def _described(path: Path) -> tuple[str, str]:
    if path.is_symlink():
        return "link", str(path.readlink())
    if path.is_dir():
        return "directory", ""
    if path.is_file():
        return "program" if path.stat().st_mode & 0o100 else "file", sha256_file(path)
    raise UserError(f"{path}: expected a file, a directory or a symbolic link")
