# SPDX-License-Identifier: Apache-2.0
"""Copies of large files: a reflink if the file system supports it, holes stay holes, content is never in memory."""

import errno
import fcntl
import os
from pathlib import Path

# linux/fs.h: share the blocks of another file until one of the two files is written to.
_FICLONE = 0x40049409
_PIECE = 64 << 20
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS, errno.ETXTBSY)


def copy_file(source: Path, target: Path, mode: int) -> None:
    """Copy ``source`` to ``target``, which must not exist, and set its permissions to ``mode``. Raises OSError."""
    with source.open("rb") as reader:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if not _cloned(reader.fileno(), descriptor):
                _copy_data(reader.fileno(), descriptor)
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def _copy_data(source: int, target: int) -> None:
    """Copy the extents that hold data; the space between them stays a hole."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    place = 0
    while place < size:
        try:
            start = os.lseek(source, place, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # only a hole is left
            raise
        place = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, place)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        count = min(_PIECE, end - start)
        try:
            done = os.copy_file_range(source, target, count, start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, *_NO_CLONE):
                raise
            done = os.pwrite(target, os.pread(source, min(count, 1 << 20), start), start)
        if not done:
            raise OSError(errno.EIO, "a file became shorter while it was copied")
        start += done
