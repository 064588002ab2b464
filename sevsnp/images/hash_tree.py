# SPDX-License-Identifier: Apache-2.0
"""Computes a dm-verity hash tree independently of veritysetup: both trees must be equal.

The layout is that of the kernel's Documentation/admin-guide/device-mapper/verity.rst, version 1: each block of 4,096
bytes is hashed after the salt, 128 digests are a block of the level above, and the topmost level lies first.
"""

import hashlib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sevsnp.errors import UserError
from sevsnp.system.files import CHUNK
from sevsnp.vm_config.verity_word import BLOCK_SIZE

if TYPE_CHECKING:
    from hashlib import _Hash

_DIGESTS = BLOCK_SIZE // 32


@dataclass(frozen=True)
class Level:
    """One level: its length in blocks of 4,096 bytes, and the SHA-256 of these blocks in the order of the file."""

    blocks: int
    sha256: bytes


@dataclass(frozen=True)
class HashTree:
    """A complete description of a tree: the ``root_hash`` (32 bytes), and its ``levels`` from the top."""

    root_hash: bytes
    levels: tuple[Level, ...]

    def check(self, file: Path) -> None:
        """Raises UserError unless ``file`` is exactly this tree."""
        with file.open("rb") as stream:
            for number, level in enumerate(self.levels):
                found = hashlib.sha256()
                for _ in range(level.blocks):
                    found.update(stream.read(BLOCK_SIZE))
                if found.digest() != level.sha256:
                    raise UserError(f"{file.name}: level {number} from the top is not the hash tree of its image")
            if stream.read(1):
                raise UserError(f"{file.name}: longer than the hash tree of its image")


def hash_tree(image: Path, salt: bytes, stopped: threading.Event | None = None) -> HashTree:
    """The tree of ``image``, which has a whole number of blocks, at least one. Uses little memory for any size.

    ``stopped`` is set by another thread to end the work early, with InterruptedError.
    """

    def digest(block: bytes) -> bytes:
        # One string: a digest that continues from a copy of the salt's takes twice as long.
        return hashlib.sha256(salt + block).digest()

    nothing = bytes(BLOCK_SIZE)
    of_nothing = digest(nothing)  # free space consists of such blocks

    def level(below: Iterable[bytes], written: "_Hash") -> Iterator[bytes]:
        digests: list[bytes] = []
        for block in below:
            digests.append(of_nothing if block == nothing else digest(block))
            if len(digests) == _DIGESTS:
                yield _packed(digests, written)
                digests = []
        if digests:
            yield _packed(digests, written)

    # Each level reads from the one below as needed, so that one block of each level is in memory.
    length, blocks = image.stat().st_size // BLOCK_SIZE, _blocks(image, stopped)
    lengths, hashes = [], []
    while length > 1:
        length = -(-length // _DIGESTS)
        lengths.append(length)
        hashes.append(hashlib.sha256())
        blocks = level(blocks, hashes[-1])
    (top,) = blocks
    levels = (Level(blocks, each.digest()) for blocks, each in zip(lengths, hashes, strict=True))
    return HashTree(digest(top), tuple(levels)[::-1])


def _packed(digests: list[bytes], written: "_Hash") -> bytes:
    block = b"".join(digests).ljust(BLOCK_SIZE, b"\0")
    written.update(block)
    return block


def _blocks(image: Path, stopped: threading.Event | None) -> Iterator[bytes]:
    with image.open("rb", buffering=0) as stream:
        while piece := stream.read(CHUNK):
            if stopped and stopped.is_set():
                raise InterruptedError
            for place in range(0, len(piece), BLOCK_SIZE):
                yield piece[place : place + BLOCK_SIZE]
