# SPDX-License-Identifier: Apache-2.0
"""A small build/snp-release with everything that a release must have, and archives of it, also hostile ones."""

import gzip
import hashlib
import io
import sys
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from sevsnp.packages.lock import Package
from sevsnp.packages.release_archive import REQUIRED, TOP
from sevsnp.packages.tree import GUEST_KERNELS, MANIFEST, seal
from tests.support.debian_repository import build_deb

PACKAGE = Package("tools", "1.0", "amd64", "debian", "pool/tools_1.0_amd64.deb", 1, "0" * 64)


def small_release(tree: Path) -> Path:
    """Write the tree. Its bin/python3 is this Python, because the tree's own Python compresses the archive."""
    for name in REQUIRED:
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
        path.chmod(0o755 if name.startswith("bin/") else 0o644)
    (tree / "bin/python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tree / "lib").symlink_to("usr/lib")
    (tree / GUEST_KERNELS).mkdir(parents=True)
    build_deb(tree / GUEST_KERNELS, "linux-image-1")
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    (tree / MANIFEST).unlink()
    seal(tree, {"tools": (PACKAGE,), "ovmf": (), "kernel": ()})
    return tree


def member(name: str, data: bytes = b"", mode: int = 0o644, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member; ``fields`` are those of TarInfo, such as type and linkname."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def directory(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, mode=0o755, type=tarfile.DIRTYPE)


def members_of(tree: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    """What an archive of ``tree`` has, as GNU tar would write it."""
    found = [directory(TOP)]
    for path in sorted(tree.rglob("*")):
        name = f"{TOP}/{path.relative_to(tree)}"
        if path.is_symlink():
            found.append(member(name, type=tarfile.SYMTYPE, linkname=str(path.readlink())))
        elif path.is_dir():
            found.append(directory(name))
        else:
            found.append(member(name, path.read_bytes(), path.stat().st_mode & 0o777))
    return found


def archive_of(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """The members as a .tar.gz in GNU's format."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), 1)


def written(path: Path, data: bytes, change: Callable[[bytes], bytes] = bytes) -> tuple[Path, str]:
    """``data`` in the file ``path``, after ``change``; and the SHA-256 of what is there."""
    path.write_bytes(change(data))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()
