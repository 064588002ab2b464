# SPDX-License-Identifier: Apache-2.0
"""Reads an initrd as the kernel does (init/initramfs.c): joined cpio archives, each plain or compressed by itself.

mkinitcpio, dracut and initramfs-tools put a plain archive with microcode in front. The file is not trusted: the plain
bytes, the names and the entries are limited, and a decompressor gets no more memory than the kernel's own needs.
"""

from pathlib import Path
from typing import BinaryIO

from sevsnp.archives.compressed import DAMAGED, decompressor
from sevsnp.archives.newc import MAGICS, read_newc
from sevsnp.archives.tar import Entry
from sevsnp.errors import UserError

_MOST_PLAIN = 4 << 30
_MOST_ENTRIES = 1_000_000
_PIECE = 1 << 20
_EXPECTED = "a cpio archive (newc), plain or compressed with gzip, bzip2, xz, lzma, zstd or lz4 -l"


def read_initrd(initrd: Path, scratch: Path) -> list[Entry]:
    """The entries of all archives in ``initrd``, in order; plain copies of the compressed ones go into ``scratch``.

    Raises UserError for a file that the kernel would not unpack to its end, and for more than 4 GiB of content.
    """
    entries: list[Entry] = []
    left = _MOST_PLAIN
    place = 0
    try:
        size = initrd.stat().st_size
        while (place := _skip_zeros(initrd, place)) < size:
            with initrd.open("rb") as stream:
                stream.seek(place)
                start = stream.read(6)
                stream.seek(place)
                if start in MAGICS:
                    found, place = read_newc(initrd, place)
                else:
                    spool = scratch / f"{place}.cpio"
                    left = _unpack(stream, start, initrd, spool, left)
                    place = stream.tell()
                    found = _archives(spool, initrd)
            entries += found
            if len(entries) > _MOST_ENTRIES:
                raise UserError(f"{initrd}: more than {_MOST_ENTRIES} entries")
    except OSError as error:
        raise UserError(f"{initrd}: cannot be read: {error.strerror or error}") from error
    if not entries:
        raise UserError(f"{initrd}: empty, expected an initrd")
    return entries


def _archives(plain: Path, initrd: Path) -> list[Entry]:
    """The entries of the cpio archives that one compressed part contains."""
    entries: list[Entry] = []
    place, size = 0, plain.stat().st_size
    while (place := _skip_zeros(plain, place)) < size:
        found, place = read_newc(plain, place, initrd)
        entries += found
        if len(entries) > _MOST_ENTRIES:
            break
    return entries


def _skip_zeros(path: Path, place: int) -> int:
    with path.open("rb") as stream:
        stream.seek(place)
        while piece := stream.read(_PIECE):
            if rest := piece.lstrip(b"\0"):
                return place + len(piece) - len(rest)
            place += len(piece)
    return place


def _unpack(stream: BinaryIO, start: bytes, initrd: Path, output: Path, left: int) -> int:
    """Decompress the part at the stream's position, and leave the stream behind it; return ``left`` less its size."""
    pieces = decompressor(start)
    if pieces is None:
        raise UserError(f"{initrd}: byte {stream.tell()}: found {start.hex()}, expected {_EXPECTED}")
    try:
        with output.open("wb") as plain:
            for piece in pieces(stream):
                left -= len(piece)
                if left < 0:
                    raise UserError(f"{initrd}: more than {_MOST_PLAIN >> 30} GiB when decompressed")
                plain.write(piece)
    except DAMAGED as error:
        raise UserError(f"{initrd}: damaged compressed archive: {error}") from error
    return left
