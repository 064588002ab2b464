# SPDX-License-Identifier: Apache-2.0
"""Decompresses a file to a plain copy: digests of both sides, a limit of size, holes for zeros.

A compressed file may be hostile. A few kilobytes can become terabytes, so the plain size is limited. Zeros take no
room on the disk.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sevsnp.archives.compressed import DAMAGED, decompressor
from sevsnp.archives.tar_reader import Stream
from sevsnp.errors import AGAIN, UserError
from sevsnp.store.oci_blob import write_sparse
from sevsnp.system.files import CHUNK

# Bytes, of all that one image becomes. The largest published images have some tens of gigabytes.
LARGEST = 256 << 30
MAGIC_SIZE = 6
_NO_FRAME = b"\x2a\x4d\x18"  # RFC 8878, 3.1.2: a skippable frame; only the first byte of the magic varies
_TAR_MAGIC = slice(257, 262)


@dataclass(frozen=True)
class Plain:
    """A decompressed file: its SHA-256 (64 hex digits), its size, and the digest and size of what it was made from."""

    sha256: str
    size: int
    packed_sha256: str
    packed_size: int


class _Window:
    """A stream that a decompressor can step back in by what it did not use; each byte is hashed and counted once."""

    def __init__(self, stream: Stream) -> None:
        # The last bytes of the stream, and how many of them are read. Nothing is copied to step back: a file can have a
        # compressed part of 20 bytes in each 20 bytes.
        self._stream, self._held, self._place = stream, b"", 0
        self.digest, self.size = hashlib.sha256(), 0

    def read(self, size: int = CHUNK) -> bytes:
        left = len(self._held) - self._place
        if left < size:  # lz4 takes fewer bytes than it asks for as the end
            more = self._stream.read(size - left)
            self._held, self._place = self._held[self._place :] + more, 0
            self.digest.update(more)
            self.size += len(more)
        piece = self._held[self._place : self._place + size]
        self._place += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 1) -> None:
        """Step back by ``-offset`` bytes of the last read, or forward."""
        if offset < 0:
            self._place += offset
        while offset > 0 and (skipped := self.read(min(offset, CHUNK))):
            offset -= len(skipped)

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay unread; fewer at the end."""
        found = b""
        while len(found) < size and (piece := self.read(size - len(found))):
            found += piece
        if len(found) <= self._place:
            self._place -= len(found)
        else:
            self._held, self._place = found + self._held[self._place :], 0
        return found


def _plain(window: _Window) -> Iterator[bytes]:
    """The content of all compressed parts, one after the other; of an uncompressed file, its bytes."""
    start = window.peek(MAGIC_SIZE)
    if decompressor(start) is None:
        while piece := window.read(CHUNK):
            yield piece
        return
    while start.strip(b"\0"):
        pieces = decompressor(start)
        if pieces is not None:
            yield from pieces(window)  # type: ignore[arg-type]
        elif start[1:4] == _NO_FRAME and start[0] & 0xF0 == 0x50:
            window.seek(4)
            window.seek(int.from_bytes(window.peek(4), "little") + 4)
        else:
            raise ValueError("other bytes follow the compressed content")
        start = window.peek(MAGIC_SIZE)
    while rest := window.read(CHUNK):
        if rest.strip(b"\0"):
            raise ValueError("other bytes follow the compressed content")


def unpack(stream: Stream, name: str, output: Path, *, largest: int = LARGEST) -> Plain:
    """Write the plain content of ``stream`` to ``output``; gzip, bzip2, xz, lzma, zstd, or not compressed at all.

    ``name`` is for errors. Raises UserError for damaged content and for more than ``largest`` bytes of it; ``output``
    is removed then.
    """
    window, digest, size = _Window(stream), hashlib.sha256(), 0
    try:
        with output.open("wb") as file:
            for piece in _plain(window):
                size += len(piece)
                if size > largest:
                    raise UserError(f"{name}: more than {largest} bytes when decompressed")
                digest.update(piece)
                for place in range(0, len(piece), CHUNK):
                    write_sparse(file, piece[place : place + CHUNK])
            file.truncate(size)
    except DAMAGED as error:
        output.unlink(missing_ok=True)
        raise UserError(f"{name}: damaged compressed file: {error}", AGAIN) from error
    except BaseException:
        output.unlink(missing_ok=True)
        raise
    return Plain(digest.hexdigest(), size, window.digest.hexdigest(), window.size)


def unpack_file(path: Path, name: str, output: Path) -> Plain:
    """The same for a file. Raises OSError, too."""
    with path.open("rb") as stream:
        return unpack(stream, name, output)


def first_bytes(path: Path, size: int) -> bytes:
    """The first ``size`` bytes of the plain content; fewer where it is shorter, or damaged from there on."""
    found = bytearray()
    with path.open("rb") as stream:
        try:
            for piece in _plain(_Window(stream)):
                found += piece
                if len(found) >= size:
                    break
        except DAMAGED:
            pass
    return bytes(found[:size])


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed in a form that :func:`unpack` reads. Raises OSError."""
    with path.open("rb") as stream:
        return decompressor(stream.read(MAGIC_SIZE)) is not None


def is_tar(start: bytes) -> bool:
    """Whether the first 512 bytes are a tar header."""
    return start[_TAR_MAGIC] == b"ustar"


def open_range(path: Path, offset: int, size: int) -> BinaryIO:
    """``size`` bytes of a file from ``offset`` on, as a stream. Raises OSError."""
    stream = path.open("rb")
    stream.seek(offset)
    return _Range(stream, size)  # type: ignore[return-value]


class _Range:
    """A part of a stream that is closed with it."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int = CHUNK) -> bytes:
        piece = self._stream.read(min(size, self._left))
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        self._stream.close()
