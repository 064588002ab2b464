# SPDX-License-Identifier: Apache-2.0
"""A digest of huge files, of which nearly all is a hole: only what is there is read and hashed.

SHA-256 of a hole takes as long as of data: the digest of 2 TiB would take half an hour. So the digest of an input of
LARGE bytes or more is another one, with a name and a version before it, so that neither is taken for the other.
"""

import errno
import hashlib
import os
from pathlib import Path

from sevsnp.system.files import CHUNK

# Bytes. The size decides, not the holes: a copy without holes has the same digest.
LARGE = 16 << 30
NAME = "sparse-1"


def sparse_digest(path: Path) -> str:
    """``sparse-1:`` and the SHA-256 of the size, and the place and content of each MiB that is not zero throughout.

    Raises OSError.
    """
    with path.open("rb", buffering=0) as stream:
        descriptor = stream.fileno()
        size = os.fstat(descriptor).st_size
        digest, zeros, place = hashlib.sha256(size.to_bytes(8, "big")), bytes(CHUNK), 0
        while place < size:
            # Beginning at whole pieces, so that holes of any form give the same pieces.
            start = max(place, _next_data(descriptor, place, size) // CHUNK * CHUNK)
            piece = os.pread(descriptor, CHUNK, start) if start < size else b""
            if piece != zeros[: len(piece)]:
                digest.update(start.to_bytes(8, "big") + piece)
            place = start + CHUNK
    return f"{NAME}:{digest.hexdigest()}"


def _next_data(descriptor: int, place: int, size: int) -> int:
    """Where the next data begin, not before ``place``; behind ``size`` if there are none."""
    try:
        return os.lseek(descriptor, place, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size + CHUNK
        if error.errno == errno.EINVAL:  # the file system cannot tell
            return place
        raise
