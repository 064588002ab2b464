# SPDX-License-Identifier: Apache-2.0
"""Unpacks the archive of a prebuilt build/snp-release, and checks that the tree is complete.

The archive comes from other people. So an entry is refused unless it is a plain file, a directory or a link inside the
tree, comes once, and has its directory before it. Nothing is ever written through a link, and sizes are limited.
"""

import gzip
import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

from sevsnp.archives.tar_reader import TAR_ERRORS, Header, streamed
from sevsnp.errors import UserError
from sevsnp.packages.lock import Package
from sevsnp.packages.tree import GUEST_KERNELS, MANIFEST, replace_tree, sealed
from sevsnp.packages.tree_digest import tree_digest
from sevsnp.packages.wrappers import LOADER, PROGRAMS
from sevsnp.system import progress
from sevsnp.system.files import CHUNK, each_key_once, scratch_directory

TOP = "snp-release"
FIRMWARE = "usr/share/ovmf/OVMF.amdsev.fd"
REQUIRED = (MANIFEST, FIRMWARE, LOADER, *(f"bin/{name}" for name in PROGRAMS))
# Our own tree has 2,000 entries and 310 MB.
MOST_ENTRIES, MOST_BYTES = 50_000, 4 << 30
_LONGEST_MANIFEST = 16 << 20
# Of a header with a long name. tarfile reads such a header into memory as a whole.
_LONGEST_NAME = 1 << 16
_AGAIN = "make the archive again where it was built: ./doitw pack_release"


class _OddError(Exception):
    """The archive cannot be unpacked; the text says why."""


class _Header(Header):
    """A header as tarfile reads it. Of headers that only describe the next header, long ones are refused."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        found = super().frombuf(buf, encoding, errors)
        plain = found.isreg() or found.issym() or found.isdir()
        if not plain and found.size > _LONGEST_NAME:
            raise _OddError(f"found a header with {found.size} bytes, expected at most {_LONGEST_NAME}")
        return found


class _Measured:
    """The archive as it is read: its digest, and its progress."""

    def __init__(self, stream: BinaryIO, said: Callable[[int], None]) -> None:
        self._stream, self._said, self.digest = stream, said, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self.digest.update(piece)
        self._said(len(piece))
        return piece


class _Limited:
    """The unpacked stream. Raises :class:`_OddError` after ``most`` bytes."""

    def __init__(self, stream: BinaryIO, most: int) -> None:
        self._stream, self._most, self._left = stream, most, most

    def read(self, size: int = -1) -> bytes:
        piece = self._stream.read(size)
        self._left -= len(piece)
        if self._left < 0:
            raise _OddError(f"found more than {self._most} unpacked bytes")
        return piece


def unpack_release(
    *, archive: Path, sha256: str, output: Path, most_entries: int = MOST_ENTRIES, most_bytes: int = MOST_BYTES
) -> None:
    """Unpack ``archive``, whose SHA-256 is ``sha256``, into ``output``, which appears complete and checked, or not.

    ``most_entries`` and ``most_bytes`` limit the entries, and the bytes of the unpacked archive. Raises
    :class:`UserError` naming the entry that is refused, or what the tree lacks.
    """
    with scratch_directory(output) as scratch:
        tree = scratch / "tree"
        tree.mkdir()
        tree.chmod(0o755)
        with archive.open("rb") as stream, progress.amount("unpacking", archive.stat().st_size) as shown:
            measured = _Measured(stream, shown)
            try:
                _unpack(measured, tree, most_entries, most_bytes)
                _check_links(tree)
            except (zlib.error, gzip.BadGzipFile, *TAR_ERRORS) as error:
                raise UserError(f"{archive}: damaged, or not a .tar.gz: {error}", _AGAIN) from error
            except _OddError as error:
                raise UserError(f"{archive}: {error}", _AGAIN) from None
            while measured.read(CHUNK):
                pass
        if measured.digest.hexdigest() != sha256:
            raise UserError(f"{archive}: has changed since its SHA-256 was checked", _AGAIN)
        check_release(tree, str(archive))
        replace_tree(tree, output, scratch)


def _unpack(measured: _Measured, tree: Path, most_entries: int, most_bytes: int) -> None:
    seen: dict[str, bool] = {}  # path → whether it is a directory
    # GzipFile needs only read(): the archive is read once, from front to back.
    with gzip.GzipFile(fileobj=measured, mode="rb") as unzipped:  # type: ignore[call-overload]
        limited = _Limited(unzipped, most_bytes)
        with streamed(limited, _Header) as tar:
            for member in tar:
                if len(seen) == most_entries:
                    raise _OddError(f"found more than {most_entries} entries")
                _unpack_entry(tar, member, tree, seen)
        # To the end: gzip checks the length and the checksum there.
        while limited.read(CHUNK):
            pass


def _unpack_entry(tar: tarfile.TarFile, member: tarfile.TarInfo, tree: Path, seen: dict[str, bool]) -> None:
    path = _path(member.name)
    shown = f"the entry {member.name!a}"
    if path in seen:
        raise _OddError(f"{shown} occurs twice")
    if path and not seen.get(path.rpartition("/")[0]):
        raise _OddError(f"{shown} comes before the entry of its directory")
    if member.mode & 0o7000:
        raise _OddError(f"{shown} has the mode {member.mode:o}, expected no set-ID and no sticky bit")
    target = tree / path
    if member.isdir():
        if path:
            target.mkdir()
            target.chmod(0o755)
    elif not path:
        raise _OddError(f"{shown} is not a directory")
    elif member.issym():
        if member.linkname.startswith("/"):
            raise _OddError(f"{shown} is a link to {member.linkname!a}, expected a relative link")
        target.symlink_to(member.linkname)
    elif member.isreg() and not member.issparse():
        _write(tar, member, target)
    else:
        raise _OddError(f"{shown} has the type {member.type!a}, expected a file, a directory or a symbolic link")
    seen[path] = member.isdir()


def _path(name: str) -> str:
    """An entry's path in the tree; empty for the tree itself."""
    parts = name.removeprefix("./").split("/")
    if parts[0] != TOP or any(part in ("", ".", "..") for part in parts) or not name.isprintable():
        raise _OddError(f"the entry {name!a} is outside of {TOP}/")
    return "/".join(parts[1:])


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    content = tar.extractfile(member)
    assert content is not None, member.name
    # O_EXCL follows no link: the file is new, or this fails.
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as stream:
        left = member.size
        while piece := content.read(min(CHUNK, left)) if left else b"":
            stream.write(piece)
            left -= len(piece)
    if left:
        raise EOFError(f"{left} bytes of the entry {member.name!a} are missing")
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


def _check_links(tree: Path) -> None:
    root = os.path.realpath(tree)
    for directory, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(directory, name)
            if path.is_symlink() and not f"{os.path.realpath(path)}/".startswith(f"{root}/"):
                raise _OddError(f"the link {path.relative_to(tree)} leads out of the tree")


def check_release(tree: Path, name: str) -> Mapping[str, tuple[Package, ...]]:
    """The packages by set in the manifest of the release ``tree``, which must be complete and as it was made.

    ``name`` is the tree's or its archive's, for messages. Raises :class:`UserError`.
    """
    if missing := [path for path in REQUIRED if not (tree / path).is_file()]:
        raise UserError(f"{name}: not a release of this project: it lacks {', '.join(missing)}", _AGAIN)
    kernels = sorted((tree / GUEST_KERNELS).glob("linux-image-*.deb"))
    if len(kernels) != 1:
        found = f"{len(kernels)} files {GUEST_KERNELS}/linux-image-*.deb"
        raise UserError(f"{name}: not a release of this project: found {found}, expected one", _AGAIN)
    try:
        document = _read_manifest(tree / MANIFEST)
        sets = {key: tuple(_package(item) for item in items) for key, items in document["sets"].items()}
        expected = document["tree"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{name}: {MANIFEST} is not that of a release: {error!r}", _AGAIN) from None
    if (found := tree_digest(tree, MANIFEST)) != expected:
        raise UserError(
            f"{name}: not as it was made: its files have the digest {found}, expected {expected} ({MANIFEST})", _AGAIN
        )
    return sets


def _read_manifest(path: Path) -> Any:
    with path.open("rb") as stream:
        data = stream.read(_LONGEST_MANIFEST + 1)
    if len(data) > _LONGEST_MANIFEST:
        raise ValueError(f"more than {_LONGEST_MANIFEST} bytes")
    document = json.loads(data, object_pairs_hook=each_key_once)
    if sealed({name: value for name, value in document.items() if name != "manifest"}).encode() != data:
        raise ValueError("its text does not have its digest")
    return document


def _package(item: Mapping[str, Any]) -> Package:
    for field in fields(Package):
        if not isinstance(item[field.name], int if field.name == "size" else str):
            raise TypeError(f"{field.name} of a package: found {item[field.name]!r}")
    return Package(**item)
