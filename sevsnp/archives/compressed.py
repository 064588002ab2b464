# SPDX-License-Identifier: Apache-2.0
"""Decompressors for files that are not trusted: the memory is limited, and each piece of the content is small."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from sevsnp.archives import lz4

_MEMORY = 256 << 20
_WINDOW = 128 << 20  # ZSTD_WINDOWSIZE_MAX of lib/decompress_unzstd.c
_PIECE = 1 << 20
# Bytes of the first read of a compressed part; then twice as many each time. What a short part does not use is read
# again with the next part.
_FIRST_PIECE = 4096
# Four bytes of zstd can become 128 KiB, and its decompressor gives out all at once.
_ZSTD_PIECE = 4096
# The errors of damaged files.
DAMAGED = (ValueError, EOFError, MemoryError, zlib.error, lzma.LZMAError, zstandard.ZstdError)

Pieces = Callable[[BinaryIO], Iterator[bytes]]


def decompressor(start: bytes) -> Pieces | None:
    """The reader of a compressed part that begins with ``start`` (6 bytes); None for another format.

    The reader yields the content, and leaves the stream behind the part. It raises one of :data:`DAMAGED`.
    """
    return next((pieces for magic, pieces in _FORMATS if start.startswith(magic)), None)


def _growing(stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of a stream. Raises EOFError at its end."""
    size = _FIRST_PIECE
    while data := stream.read(size):
        yield data
        size = min(2 * size, _PIECE)
    raise EOFError("the compressed data ends early")


def _limited(made: Callable[[], Any]) -> Pieces:
    """A reader by a decompressor of the form of lzma's and bz2's."""

    def pieces(stream: BinaryIO) -> Iterator[bytes]:
        decompressor, read = made(), _growing(stream)
        while not decompressor.eof:
            data = next(read) if decompressor.needs_input else b""
            yield decompressor.decompress(data, _PIECE)
        stream.seek(-len(decompressor.unused_data), 1)

    return pieces


def _gzip(stream: BinaryIO) -> Iterator[bytes]:
    decompressor, read = zlib.decompressobj(16 + zlib.MAX_WBITS), _growing(stream)
    while not decompressor.eof:
        data = decompressor.unconsumed_tail or next(read)
        yield decompressor.decompress(data, _PIECE)
    stream.seek(-len(decompressor.unused_data), 1)


def _zstd(stream: BinaryIO) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
    while not decompressor.eof:
        data = stream.read(_ZSTD_PIECE)
        if not data:
            raise EOFError("the compressed data ends early")
        yield decompressor.decompress(data)
    stream.seek(-len(decompressor.unused_data), 1)


def _lz4(stream: BinaryIO) -> Iterator[bytes]:
    stream.seek(len(lz4.MAGIC), 1)
    return lz4.unpack_legacy(stream)


_FORMATS: tuple[tuple[bytes, Pieces], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"BZh", _limited(bz2.BZ2Decompressor)),
    (b"\xfd7zXZ\0", _limited(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))),
    (b"\x5d\0\0", _limited(lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY))),
    (b"\x28\xb5\x2f\xfd", _zstd),
    (lz4.MAGIC, _lz4),
)
