# SPDX-License-Identifier: Apache-2.0
"""Blobs on their way to and from a registry: zstd, streamed, each byte counted and hashed on both sides."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from sevsnp.store.entries import Blob
from sevsnp.store.oci_reference import Tampered
from sevsnp.system.files import CHUNK

# One level and one thread: the same blob gives the same layer on every machine.
LEVEL = 3
# The memory limit of the decoder. Level 3 uses 2 MiB windows; a malicious frame may ask for gigabytes.
_WINDOW = 8 << 20
_BLOCK = 4096
_ZEROS = bytes(CHUNK)


@dataclass(frozen=True)
class Layer:
    """A blob as the registry stores it: digest (``sha256:`` and 64 hex digits) and size of the compressed bytes."""

    digest: str
    size: int


class Source(Protocol):
    """A stream of compressed bytes: up to ``size`` at a time, none at the end."""

    def read(self, size: int) -> bytes: ...


def largest_layer(size: int) -> int:
    """The maximum compressed size of ``size`` bytes: zstd's own bound, and room for the frame."""
    return size + (size >> 7) + 1024


@contextlib.contextmanager
def compressed(blob: Blob, path: Path, *, checksum: bool = False) -> Iterator[tuple[IO[bytes], Layer]]:
    """The layer made from ``path``, in an unnamed file beside it: the kernel removes the file when this process ends.

    With ``checksum`` the same content gives different bytes. Raises OSError, and :class:`Tampered` if the file does not
    match ``blob``.
    """
    import zstandard

    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=checksum).compressobj(size=blob.size)
    plain, packed, size = hashlib.sha256(), hashlib.sha256(), 0
    with path.open("rb") as source, tempfile.TemporaryFile(dir=path.parent) as stream:

        def write(data: bytes) -> None:
            packed.update(data)
            stream.write(data)

        # Read at most one byte more than expected: zstd was given the size in advance.
        while piece := source.read(min(CHUNK, blob.size + 1 - size)):
            size += len(piece)
            if size > blob.size:
                break
            plain.update(piece)
            write(compressor.compress(piece))
        if size != blob.size or plain.hexdigest() != blob.sha256:
            raise Tampered(f"{path}: not the {blob.size} bytes of SHA-256 {blob.sha256} any more")
        write(compressor.flush())
        length = stream.tell()
        stream.seek(0)
        yield stream, Layer(f"sha256:{packed.hexdigest()}", length)


def restore(source: Source, layer: Layer, blob: Blob, target: Path) -> None:
    """Decompress ``source``, which holds ``blob`` as ``layer``, to ``target``, with holes for blocks of zeros.

    Reads no more than the layer's size and writes no more than the blob's, plus one piece. Raises :class:`Tampered`,
    OSError and the errors of ``source``; the target is removed then.
    """
    import zstandard

    counted = _Counted(source, layer)
    digest, size = hashlib.sha256(), 0
    try:
        with target.open("wb") as stream:
            decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(counted)  # type: ignore[arg-type]
            while piece := decoder.read(min(CHUNK, blob.size + 1 - size)):
                size += len(piece)
                if size > blob.size:
                    raise Tampered(f"blob {blob.sha256}: more than its {blob.size} bytes")
                digest.update(piece)
                write_sparse(stream, piece)
            counted.finish()
            if size != blob.size:
                raise Tampered(f"blob {blob.sha256}: {size} bytes instead of {blob.size}")
            if digest.hexdigest() != blob.sha256:
                raise Tampered(f"blob {blob.sha256}: found SHA-256 {digest.hexdigest()}")
            stream.truncate(size)
    except zstandard.ZstdError as error:
        target.unlink(missing_ok=True)
        raise Tampered(f"blob {blob.sha256}: cannot be decompressed: {error}") from None
    except BaseException:
        target.unlink(missing_ok=True)
        raise


class _Counted:
    """A source that must have exactly the size and digest of a layer."""

    def __init__(self, source: Source, layer: Layer) -> None:
        self._source, self._layer = source, layer
        self._digest, self._size = hashlib.sha256(), 0

    def read(self, size: int = -1) -> bytes:
        piece = self._source.read(size if 0 < size < CHUNK else CHUNK)
        self._size += len(piece)
        if self._size > self._layer.size:
            raise Tampered(f"layer {self._layer.digest}: more than its {self._layer.size} bytes")
        self._digest.update(piece)
        return piece

    def finish(self) -> None:
        while self.read():
            pass
        if self._size != self._layer.size:
            raise Tampered(f"layer {self._layer.digest}: {self._size} bytes instead of {self._layer.size}")
        if f"sha256:{self._digest.hexdigest()}" != self._layer.digest:
            raise Tampered(f"layer {self._layer.digest}: found SHA-256 {self._digest.hexdigest()}")


def write_sparse(stream: IO[bytes], piece: bytes) -> None:
    """Write ``piece`` (at most 1 MiB) with holes for zero blocks of 4 KiB; the caller truncates the file at its end."""
    if piece == _ZEROS[: len(piece)]:
        stream.seek(len(piece), 1)
        return
    start = 0
    for place in range(0, len(piece), _BLOCK):
        block = piece[place : place + _BLOCK]
        if block == _ZEROS[: len(block)]:
            stream.write(piece[start:place])
            stream.seek(len(block), 1)
            start = place + len(block)
    stream.write(piece[start:])
