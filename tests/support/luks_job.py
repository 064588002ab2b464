# SPDX-License-Identifier: Apache-2.0
"""A job for the tests' own appliance: what a volume returns after each of many changes to its disk.

Each change is made, the volume is opened as the guest opens it, some of its blocks are read, and the change is undone.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import linux
import root_guard
from appliance.luks import INTEGRITY, MAPPING, NAME, cryptsetup, table
from dm_tables import tables_digest

MODULES = ("luks",)
_TRAP = "root_trap"
BLOCK = 4096
# A volume without integrity, whose data begin after one MiB.
_PLAIN = (
    "--type=luks2", "--cipher=aes-xts-plain64", "--key-size=512", "--sector-size=4096", "--offset=2048",
    "--luks2-metadata-size=16k", "--luks2-keyslots-size=512k", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
)  # fmt: skip


def run(job: "dict[str, Any]", secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    """``cases`` are changes by name: offset, hex bytes, and how often to repeat them; ``blocks``: the blocks to read.

    ``kept``: offset and size of the area that the kernel may write when it opens a volume. The answer has for each case
    the result of :func:`outcome`.

    With ``flips`` the answer is that of :func:`flips`.
    """
    if "flips" in job:
        return flips(job, secret, say)
    disk, plain = linux.find_disks("luks", "plain")
    with _opened(disk, secret):
        tables = tables_digest(table(NAME), table(INTEGRITY))
        good = [read_block(number) for number in job["blocks"]]
    assert None not in good
    found = {"nothing": outcome(disk, secret, tables, job["blocks"], good)}
    for name, changes in job["cases"].items():
        say(step=name)
        with changed(disk, [(offset, bytes.fromhex(data) * count) for offset, data, count in changes], job["kept"]):
            found[name] = outcome(disk, secret, tables, job["blocks"], good)
    found["nothing, at the end"] = outcome(disk, secret, tables, job["blocks"], good)
    return {"cases": found, "plain": without_integrity(plain, secret)}


def outcome(disk: str, secret: bytes, tables: str, blocks: "list[int]", good: "list[bytes | None]") -> str:
    """``refused`` or ``other tables``; or for the blocks that were read: ``same``, ``errors``, or ``ALTERED``."""
    try:
        with _opened(disk, secret):
            if tables_digest(table(NAME), table(INTEGRITY)) != tables:
                return "other tables"
            read = [read_block(number) for number in blocks]
    except linux.Stop as error:
        return f"refused: {error}"
    if any(one not in (None, wanted) for one, wanted in zip(read, good, strict=True)):
        return "ALTERED"
    return "errors" if None in read else "same"


def without_integrity(disk: str, secret: bytes) -> str:
    """The result of a flipped bit on a volume without tags."""
    cryptsetup("luksFormat", *_PLAIN, "--key-file=-", disk, secret=secret)
    with _opened(disk, secret):
        with open(MAPPING, "r+b", buffering=0) as stream:
            stream.write(b"\1" * BLOCK)
            os.fsync(stream.fileno())
        good = read_block(0)
    with changed(disk, [(1 << 20, bytes([read(disk, 1 << 20, 1)[0] ^ 1]))], [0, BLOCK]), _opened(disk, secret):
        found = read_block(0)
    return "error" if found is None else "same" if found == good else "ALTERED"


@contextmanager
def _opened(disk: str, secret: bytes) -> Iterator[None]:
    try:
        cryptsetup("open", "--key-file=-", disk, NAME, secret=secret)
        yield
    finally:
        # If the opening fails half-way, cryptsetup leaves a part behind.
        for name in (NAME, INTEGRITY):
            if os.path.exists(f"/dev/mapper/{name}"):
                linux.run("/usr/sbin/dmsetup", "remove", "--retry", name)


def read_block(number: int, device: str = MAPPING) -> "bytes | None":
    """A block of the mapping, or of another device, read past the page cache; None if it cannot be read."""
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, BLOCK) as buffer:
            return bytes(buffer) if os.preadv(descriptor, [buffer], number * BLOCK) == BLOCK else None
    except OSError:
        return None
    finally:
        os.close(descriptor)


def read(disk: str, offset: int, size: int) -> bytes:
    with open(disk, "rb") as stream:
        stream.seek(offset)
        return stream.read(size)


def write(disk: str, offset: int, data: bytes) -> None:
    with open(disk, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def changed(disk: str, changes: "list[tuple[int, bytes]]", kept: "list[int]") -> Iterator[None]:
    before = [(kept[0], read(disk, *kept)), *((offset, read(disk, offset, len(data))) for offset, data in changes)]
    for offset, data in changes:
        write(disk, offset, data)
    try:
        yield
    finally:
        for offset, data in before:
            write(disk, offset, data)


def flips(job: "dict[str, Any]", secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    """Change single bytes. ``job`` has for each its offset, the new byte in hex, and the numbers of the blocks to read.

    The answer has for each change the result of :func:`first_answers` through the devices of root_guard.py, and without
    them. The trap's reads are I/O errors here, so that the appliance survives; in a guest such an error is the end.
    """
    (disk,) = linux.find_disks("luks")
    guarded, bare = [], []
    with _opened(disk, secret):
        genuine = [[read_block(block) for block in blocks] for _, _, blocks in job["flips"]]
    for number, ((offset, data, blocks), good) in enumerate(zip(job["flips"], genuine, strict=True)):
        say(step=f"flip {number}")
        with changed(disk, [(offset, bytes.fromhex(data))], job["kept"]), _opened(disk, secret):
            bare.append(first_answers(MAPPING, blocks, good))
            guarded.append(through_guard(blocks, good))
    return {"guarded": guarded, "bare": bare}


def through_guard(blocks: "list[int]", good: "list[bytes | None]") -> str:
    with _devices(_guard(NAME)):
        return first_answers(f"{MAPPING}_guarded", blocks, good)


def _sectors() -> int:
    return int(table(NAME).split()[1])


def _guard(mapping: str) -> "list[tuple[str, str]]":
    """The guest's devices over ``mapping``, with errors in place of the trap."""
    error = f"0 {_sectors()} error"
    return [(name, error if name == _TRAP else text) for name, text in root_guard.tables(mapping, _sectors())]


@contextmanager
def _devices(tables: "list[tuple[str, str]]") -> Iterator[None]:
    try:
        for name, text in tables:
            linux.run("/usr/sbin/dmsetup", "create", name, "--table", text)
        yield
    finally:
        for name, _ in reversed(tables):
            if os.path.exists(f"/dev/mapper/{name}"):
                linux.run("/usr/sbin/dmsetup", "remove", "--retry", name)


def first_answers(device: str, blocks: "list[int]", good: "list[bytes | None]") -> str:
    """The result for the blocks, in their order until one cannot be read: ``same``, ``ends``, or ``ALTERED``."""
    for block, wanted in zip(blocks, good, strict=True):
        found = read_block(block, device)
        if found is None:
            return "ends"
        if found != wanted:
            return "ALTERED"
    return "same"
