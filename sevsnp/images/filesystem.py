# SPDX-License-Identifier: Apache-2.0
"""File system images made directly from a tar: without root or loop device, and the same tar gives the same bytes.

From a directory mke2fs also copies access and change times, so each image would differ. From a tar it only gets what
the tar contains.
"""

import contextlib
import os
import re
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sevsnp.archives.rootfs import EPOCH
from sevsnp.archives.tar import Content, Entry, Kind, read_tar
from sevsnp.archives.tar_writer import stream_tar
from sevsnp.errors import UserError
from sevsnp.images.ext4_attributes import set_attributes
from sevsnp.system import progress
from sevsnp.system.alongside import alongside
from sevsnp.system.command import run
from sevsnp.system.time_limits import seconds_for

BLOCK_SIZE = 4096
INODE_SIZE = 256
INODES_PER_GROUP = 8192
MIB = 1 << 20

# All features by name, so that no default of another version changes the image.
FEATURES = (
    "ext_attr",
    "dir_index",
    "filetype",
    "extent",
    "64bit",
    "flex_bg",
    "sparse_super",
    "large_file",
    "huge_file",
    "dir_nlink",
    "extra_isize",
    "metadata_csum",
)

_BETWEEN = 0.2  # seconds; by default the kernel waits thirty, or for a tenth of the memory

# Bytes. mke2fs accepts any size. A larger one is a wrong unit, and would fill the disk with inode tables.
LARGEST = 1 << 44


def fixed_uuid(label: str) -> str:
    """A UUID that depends only on ``label``.

    It names a file system inside its own image and is never searched for, so it need not be unique in the world. A
    random UUID would make every build different.
    """
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"openend2e-sevsnp:{label}"))


@dataclass(frozen=True)
class Usage:
    """The minimum that a tree needs: ``blocks`` of 4,096 bytes for content, and ``inodes``."""

    blocks: int
    inodes: int


def usage(entries: Iterable[Entry]) -> Usage:
    """Count the blocks and inodes that the tree needs in ext4."""
    blocks = inodes = 0
    seen: set[tuple[str, int]] = set()
    names: dict[str, int] = {}
    for entry in entries:
        parent = entry.name.rpartition("/")[0]
        names[parent] = names.get(parent, 0) + 12 + len(entry.name) - len(parent)
        if entry.content is not None:
            if entry.content.inode in seen:
                continue
            seen.add(entry.content.inode)
            blocks += _data_blocks(entry.content)
        elif entry.kind is Kind.SYMLINK:
            blocks += len(entry.target) >= 60  # a shorter one is stored in the inode
        inodes += 1
    # A directory block is never quite full: no name crosses its end.
    blocks += sum(-(-size * 5 // (4 * BLOCK_SIZE)) for size in names.values())
    return Usage(blocks, inodes)


def _data_blocks(content: Content) -> int:
    if not content.sparse:
        return -(-content.size // BLOCK_SIZE)
    # An extent may begin within a block that the one before ends in: this is at most one block too many for each.
    return sum(-(-length // BLOCK_SIZE) + 1 for _, length, _ in content.extents())


def ext4_size(need: Usage, *, spare: int = 16 * MIB, journal: int = 0) -> int:
    """The size in bytes of an ext4 image that holds ``need`` with ``spare`` bytes left, rounded up to 1 MiB."""
    tables = (need.inodes + INODES_PER_GROUP) * INODE_SIZE * 9 // 8
    content = need.blocks * BLOCK_SIZE * 101 // 100  # extent trees, bitmaps and group descriptors
    return -(-(content + tables + spare + journal + 2 * MIB) // MIB) * MIB


def make_ext4(
    tar: Path,
    image: Path,
    *,
    tools: Path,
    label: str = "root",
    size: int | None = None,
    journal: bool = False,
    epoch: int = EPOCH,
    entries: Collection[Entry] | None = None,
) -> None:
    """Write the tree in ``tar`` as an ext4 image and check it with e2fsck.

    With ``entries`` these are the tree, and ``tar`` is only its name for messages: no archive need be written. ``size``
    is in bytes, a multiple of 4,096; the default is what the tree needs and 16 MiB more. No journal by default: a
    read-only root has no use for one. ``tools`` is the directory with mke2fs (1.47.1 or newer), debugfs and e2fsck.
    Raises UserError for a size into which the tree does not fit.
    """
    tree = read_tar(tar).values() if entries is None else entries
    need = usage(tree)
    if size is None:
        size = ext4_size(need, journal=64 * MIB if journal else 0)
    least = need.blocks * BLOCK_SIZE + need.inodes * INODE_SIZE
    if size % BLOCK_SIZE or size <= 0:
        raise UserError(f"{image.name}: size {size} bytes, expected a positive multiple of {BLOCK_SIZE}")
    if size > LARGEST:
        raise UserError(f"{image.name}: size {size} bytes, expected at most {LARGEST} (16 TiB)")
    if size < least:
        raise UserError(f"{image.name}: size {size} bytes, but the files of {tar.name} need {least} at least")
    # A writable root gets an inode for every 16 KiB, as mke2fs would give it.
    inodes = max(need.inodes + INODES_PER_GROUP // 8, size // 16384 if journal else 0)
    identity = fixed_uuid(f"ext4:{label}")
    env = {
        "SOURCE_DATE_EPOCH": str(epoch),
        "E2FSPROGS_FAKE_TIME": str(epoch),
        # The host's /etc/mke2fs.conf must have no effect.
        "MKE2FS_CONFIG": "/dev/null",
    }
    image.unlink(missing_ok=True)
    with image.open("wb") as stream:
        stream.truncate(size)
    try:
        with progress.growing(image, need.blocks * BLOCK_SIZE, "mke2fs"), _written_out(image):
            run(
                [
                    tools / "mke2fs",
                    *("-q", "-F"),
                    *("-t", "ext4"),
                    *("-b", str(BLOCK_SIZE)),
                    *("-I", str(INODE_SIZE)),
                    *("-N", str(inodes)),
                    *("-m", "0"),
                    *("-L", label),
                    *("-U", identity),
                    *("-O", ",".join(("none", *FEATURES, *(("has_journal",) if journal else ())))),
                    *("-E", f"hash_seed={identity},lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0"),
                    *("-d", tar if entries is None else "-"),
                    image,
                ],
                feed=None if entries is None else lambda stream: stream_tar(entries, stream, epoch=epoch),
                env=env,
                timeout=seconds_for(size),
            )
    except UserError as error:
        if re.search(r"Could not allocate|No space left|no free space|too small", error.message, re.IGNORECASE):
            raise UserError(f"{image.name}: size {size} bytes, too few for the files of {tar.name}") from error
        raise
    set_attributes(image, tree, tools=tools, env=env)
    progress.step("checking")
    check_ext4(image, tools=tools)


@contextlib.contextmanager
def _written_out(image: Path) -> Iterator[None]:
    """While a child process writes ``image``, flush the written part to the disk.

    mke2fs ends with an fsync. Otherwise the disk would be idle until then, and we would wait afterwards.
    """

    def write_out(done: threading.Event) -> None:
        with contextlib.suppress(OSError), image.open("rb") as stream:  # mke2fs reports disk errors from its own fsync
            while not done.wait(_BETWEEN):
                os.fdatasync(stream.fileno())

    with alongside(write_out):
        yield


def check_ext4(image: Path, *, tools: Path) -> None:
    """Raises UserError if e2fsck finds an error."""
    _check([tools / "e2fsck", "-f", "-n", image], image)


def make_erofs(tar: Path, image: Path, *, tools: Path, label: str = "root", epoch: int = EPOCH) -> None:
    """Write the tree in ``tar`` as a compressed, read-only EROFS image and check it with fsck.erofs."""
    image.unlink(missing_ok=True)
    with progress.growing(image, 0, "mkfs.erofs"):
        run(
            [
                tools / "mkfs.erofs",
                "--quiet",
                "--tar=f",
                *("-b", str(BLOCK_SIZE)),
                # lz4: every kernel with EROFS can read it, and it is the fastest to read.
                *("-z", "lz4hc,level=9"),
                *("-L", label),
                *("-U", fixed_uuid(f"erofs:{label}")),
                *("-T", str(epoch)),
                "--mkfs-time",
                # With more threads, the order in which they finish would be the order on disk.
                "--workers=1",
                image,
                tar,
            ],
            timeout=seconds_for(tar.stat().st_size),
        )
    progress.step("checking")
    _check([tools / "fsck.erofs", image], image)


def _check(argv: Sequence[str | Path], image: Path) -> None:
    hint = f"{image.name} was just made: is the disk full or failing?"
    run(argv, hint=hint, timeout=seconds_for(image.stat().st_size))
