# SPDX-License-Identifier: Apache-2.0
"""Read files that an untrusted document names: only below one directory, and never through a symbolic link."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sevsnp.errors import UserError
from sevsnp.system.files import CHUNK

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class ContentsError(Exception):
    """A file is not usable; the text says why, without the file's name."""


def check_name(name: str, where: str) -> str:
    """Return ``name`` if it is a plain relative path: no ``..``, no empty part, printable. Raises UserError."""
    if not name or not name.isprintable() or any(part in ("", ".", "..") for part in name.split("/")):
        raise UserError(f"{where}: found the path {name!a}, expected one below the project, without . and ..")
    return name


class Contents:
    """The files below ``root``, by relative path. No component of a path may be a symbolic link, so none leads out."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def describe(self, name: str, size: int | None = None) -> dict[str, Any]:
        """A file's ``size`` in bytes and ``sha256`` (64 hex digits), or the ``link`` that a symbolic link holds.

        A file that has another size than ``size`` is not read: its ``sha256`` is missing. Raises ContentsError.
        """
        with self._folder(name) as (folder, last), contextlib.suppress(OSError):
            return {"link": os.readlink(last, dir_fd=folder)}
        digest = hashlib.sha256()
        with self._open(name) as stream:
            found = os.fstat(stream.fileno()).st_size
            if size is not None and found != size:
                return {"size": found}
            count = 0
            while piece := stream.read(CHUNK):
                digest.update(piece)
                count += len(piece)
        return {"size": count, "sha256": digest.hexdigest()}

    def read(self, name: str, sha256: str, limit: int) -> bytes:
        """A file's bytes, if their SHA-256 is ``sha256`` and their size at most ``limit``. Raises ContentsError."""
        with self._open(name) as stream:
            data = stream.read(limit + 1)
        if len(data) > limit:
            raise ContentsError(f"more than {limit} bytes")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ContentsError("changed while it was read")
        return data

    def below(self, name: str) -> list[str]:
        """All paths below the directory ``name`` except directories, sorted. Links are listed, not followed."""
        found = []
        with self._folder(f"{name}/.") as (folder, _):
            for place, folders, files, descriptor in os.fwalk(".", dir_fd=folder, onerror=_fail):
                links = [item for item in folders if _is_link(item, descriptor)]
                found += [os.path.normpath(f"{name}/{place}/{item}") for item in (*links, *files)]
        return sorted(found)

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[BinaryIO]:
        with self._folder(name) as (folder, last):
            try:
                # O_NONBLOCK: opening a pipe without a writer would block.
                descriptor = os.open(last, _FLAGS | os.O_NONBLOCK, dir_fd=folder)
            except OSError as error:
                raise _contents_error(error) from None
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise ContentsError("expected a file")
            with os.fdopen(descriptor, "rb") as stream:
                try:
                    yield stream
                except OSError as error:
                    raise _contents_error(error) from None

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[tuple[int, str]]:
        """The open directory that holds ``name``, and the last part of ``name``. Raises ContentsError."""
        *folders, last = name.split("/")
        descriptor = os.open(self.root, _FLAGS | os.O_DIRECTORY)
        try:
            for folder in folders:
                try:
                    inner = os.open(folder, _FLAGS | os.O_DIRECTORY, dir_fd=descriptor)
                except OSError as error:
                    raise _contents_error(error, f"{folder}: ") from None
                os.close(descriptor)
                descriptor = inner
            yield descriptor, last
        finally:
            os.close(descriptor)


def _is_link(name: str, folder: int) -> bool:
    return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)


def _fail(error: OSError) -> None:
    raise _contents_error(error) from None


def _contents_error(error: OSError, where: str = "") -> ContentsError:
    if isinstance(error, FileNotFoundError):
        return ContentsError("missing")
    if isinstance(error, NotADirectoryError):
        return ContentsError(f"{where}expected a directory, not a symbolic link")
    return ContentsError(f"{where}cannot be read: {error.strerror}")
