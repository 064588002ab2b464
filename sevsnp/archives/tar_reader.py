# SPDX-License-Identifier: Apache-2.0
"""tarfile for archives that are not trusted: every tar of others is read with :class:`Reader`."""

import tarfile
from pathlib import Path

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


class Header(tarfile.TarInfo):
    """A header with a possible size, whose records are not larger than any file system's. Raises ReadError."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        _check_size(self)
        if self.type in _RECORDS and self.size > LARGEST_RECORDS:
            raise tarfile.ReadError(f"found {self.size} bytes of extended records, expected at most {LARGEST_RECORDS}")
        made: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
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


def opened(path: Path) -> Reader:
    """An uncompressed tar, open for reading; names that are not UTF-8 are kept. Raises TarError and OSError."""
    return Reader.open(path, "r:", errorlevel=2, encoding="utf-8", errors="surrogateescape")
