# SPDX-License-Identifier: Apache-2.0
"""tarfile for archives that are not trusted: every tar of others is read with :class:`Reader`."""

import tarfile
from pathlib import Path
from typing import Protocol

# All that tarfile raises for damaged archives: RecursionError for a chain of records, OverflowError for sizes and times
# that are no numbers of C, LookupError for a header that ends early.
TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OverflowError, LookupError, RecursionError)

# Bytes of records before one header. tarfile reads them into memory, whatever size they claim.
LARGEST_RECORDS = 16 << 20
_RECORDS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class Stream(Protocol):
    """A source of bytes: up to ``size`` at a time, none at the end."""

    def read(self, size: int, /) -> bytes: ...


class Header(tarfile.TarInfo):
    """A header with a possible size, whose records are not larger than any file system's. Raises ReadError."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        assert isinstance(archive, Reader)
        _check_size(self)
        before = archive.held
        if self.type in _RECORDS:
            archive.held += self.size
        if archive.held > LARGEST_RECORDS:
            raise tarfile.ReadError(
                f"found {archive.held} bytes of extended records, expected at most {LARGEST_RECORDS}"
            )
        made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        if self.type != tarfile.XGLTYPE:  # global records are kept to the end of the archive
            archive.held = before
        # Again: records replace the size of the header.
        _check_size(made)
        _check_map(made)
        return made


def _check_size(header: tarfile.TarInfo) -> None:
    """A negative size leads tarfile back to headers that it has read, without end (CVE-2025-8194)."""
    if header.size < 0:
        raise tarfile.ReadError(f"found a header with {header.size} bytes, expected at least 0")


def _check_map(header: tarfile.TarInfo) -> None:
    """The data of a sparse file must be in order and inside of it."""
    end = 0
    parts: list[tuple[int, int]] = getattr(header, "sparse", None) or []  # typeshed does not know the attribute
    for offset, length in parts:
        if not length:
            continue  # the end of the file, or an empty place of the oldest format
        if length < 0 or not end <= offset <= header.size - length:
            raise tarfile.ReadError(f"found {length} bytes at {offset} in the map of a file of {header.size} bytes")
        end = offset + length


class Reader(tarfile.TarFile):
    """An archive whose headers are checked as :class:`Header` says."""

    tarinfo = Header
    held = 0  # bytes of the records that are in memory: those before the header that is read, and all global ones


class _Ending:
    """A stream that ends with an error for a reader who goes on: tarfile skips what a header claims, up to 2^88 bytes.

    The end of an archive without its end mark is read twice.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream, self._empty = stream, 0

    def read(self, size: int) -> bytes:
        piece = self._stream.read(size)
        self._empty += not piece
        if self._empty > 2:
            raise EOFError("the archive ends early")
        return piece


def streamed(stream: Stream, header: type[Header] = Header) -> Reader:
    """An uncompressed tar that is read once, from front to back. Raises one of :data:`TAR_ERRORS`, also when read."""
    return Reader.open(fileobj=_Ending(stream), mode="r|", tarinfo=header)  # type: ignore[call-overload, no-any-return]


def opened(path: Path) -> Reader:
    """An uncompressed tar, open for reading; names that are not UTF-8 are kept. Raises TarError and OSError."""
    return Reader.open(path, "r:", errorlevel=2, encoding="utf-8", errors="surrogateescape")
