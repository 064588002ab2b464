# SPDX-License-Identifier: Apache-2.0
"""build/sources.tar: every pinned file in one archive. MIRROR takes its path instead of a URI."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from sevsnp.archives.tar_reader import TAR_ERRORS, opened
from sevsnp.errors import UserError
from sevsnp.packages.lock import Package
from sevsnp.system.files import CHUNK

README = "README"
# The same paths as in the cache: an archive that is unpacked into CACHE_DIR is a full cache.
_README = """\
Debian packages, each below the SHA-256 that packages.lock has for it. Use this file as it is: MIRROR=FILE
"""


def member_name(package: Package) -> str:
    return f"debs/{package.sha256}/{package.deb}"


def write_archive(files: Mapping[Package, Path], output: Path, said: Callable[[int], None]) -> str:
    """Write ``files`` to the tar ``output`` and return its SHA-256. The same packages give the same bytes everywhere.

    ``said`` is called with each number of bytes written.
    """
    with output.open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(_member(README, len(_README)), io.BytesIO(_README.encode()))
        for name, file in sorted({member_name(package): file for package, file in files.items()}.items()):
            size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(_member(name, size), content)
            said(size)
    with output.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


def _member(name: str, size: int) -> tarfile.TarInfo:
    # TarInfo's defaults for owner, group and time are neutral: 0, 0 and 1970.
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member


class Archive:
    """An archive of pinned packages, for reading by several threads. Raises :class:`UserError` for any other file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with opened(path) as tar:
                self._places = {one.name: (one.offset_data, one.size) for one in tar if one.isreg()}
        except (*TAR_ERRORS, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a plain tar archive"
            raise UserError(
                f"MIRROR={path}: {why}", "give a file made by ./doitw pack_sources, or the URI of a mirror"
            ) from error

    def open(self, package: Package) -> BinaryIO:
        """The archive's file for ``package``. Raises FileNotFoundError if it has none with that name and size."""
        place, size = self._places.get(member_name(package), (0, -1))
        if size != package.size:
            raise FileNotFoundError(member_name(package))
        stream = self.path.open("rb")
        stream.seek(place)
        return _Section(stream, size)


class _Section(io.BufferedReader):
    """The next ``size`` bytes of a stream. Closing the section closes the stream."""

    def __init__(self, stream: io.BufferedReader, size: int) -> None:
        super().__init__(stream.detach())
        self._left = size

    def read(self, size: int | None = CHUNK) -> bytes:
        piece = super().read(min(self._left, CHUNK if size is None else size))
        self._left -= len(piece)
        return piece
