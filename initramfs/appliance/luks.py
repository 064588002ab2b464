# SPDX-License-Identifier: Apache-2.0
"""The job `luks`: makes a LUKS2 volume with integrity on one disk, filled from a finished file system on another.

Every sector of the mapping is written once, because a sector that was never written has no tag and cannot be read. Then
the data are read back through a mapping as the guest opens it, and compared.
"""

import mmap
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import linux
from dm_tables import tables_digest

Say = Callable[..., None]

MODULES = ("luks",)
NAME = "root"
MAPPING, INTEGRITY = f"/dev/mapper/{NAME}", f"{NAME}_dif"
PIECE = 4 << 20
SECTOR = 4096
THREADS = 2
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin", "DM_DISABLE_UDEV": "1", "LC_ALL": "C"}
_COMMON = ("--disable-external-tokens", "--disable-keyring", "--disable-locks", "--batch-mode")


def run(job: "dict[str, Any]", secret: bytes, say: Say) -> "dict[str, Any]":
    """Make the volume on the disk ``luks`` from the file system on the disk ``source``.

    ``job`` has ``format``, the options of luksFormat, and ``size``, the bytes of the file system. The rest of the
    mapping is filled with zeros. Returns the digest of the tables, the tables themselves, the mapping's bytes, and the
    seconds of each step.
    """
    seconds: dict[str, float] = {}
    (source, target), size = linux.find_disks("source", "luks"), job["size"]
    say(step="formatting")
    with _timed(seconds, "format"):
        cryptsetup("luksFormat", *job["format"], "--key-file=-", target, secret=secret)
    # No data can be lost yet, so the journal is not needed; it would write everything twice.
    with opened(target, secret, "--integrity-no-journal"):
        room = _size(MAPPING)
        if room < size:
            raise linux.Stop(f"the mapping has {room} bytes, the file system needs {size}")
        with _timed(seconds, "write"):
            filling = Filling(source, size, room)
            filling.write(lambda done: say(done=done, total=room, step="encrypting"))
    with opened(target, secret):
        crypt, integrity = table(NAME), table(INTEGRITY)
        with _timed(seconds, "check"):
            filling.compare(lambda done: say(done=done, total=room, step="checking"))
    return {
        "tables": tables_digest(crypt, integrity),
        "crypt": crypt,
        "integrity": integrity,
        "mapping": room,
        "seconds": seconds,
    }


def cryptsetup(*words: str, secret: bytes = b"") -> None:
    """Run cryptsetup with the secret on its standard input. If it fails, raise Stop with its message."""
    done = subprocess.run(
        ["/usr/sbin/cryptsetup", *_COMMON, *words], input=secret, env=_ENVIRONMENT, capture_output=True, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise linux.Stop(f"cryptsetup {words[0]}: exit code {done.returncode}: {said}")


def table(name: str) -> str:
    done = subprocess.run(
        ["/usr/sbin/dmsetup", "table", name], env=_ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


@contextmanager
def opened(target: str, secret: bytes, *options: str) -> Iterator[None]:
    cryptsetup("open", *options, "--key-file=-", target, NAME, secret=secret)
    yield
    cryptsetup("close", NAME)


def _size(device: str) -> int:
    descriptor = os.open(device, os.O_RDONLY)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


@contextmanager
def _timed(seconds: "dict[str, float]", name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[name] = round(time.monotonic() - started, 3)


class Filling:
    """The content of the mapping: ``size`` bytes of the disk ``source``, then zeros; ``room`` bytes in all."""

    def __init__(self, source: str, size: int, room: int) -> None:
        self.source, self.size, self.room = source, size, room

    def write(self, done: "Callable[[int], None]") -> None:
        """Write all of it, past the page cache."""
        self._divide(self._write, done)

    def compare(self, done: "Callable[[int], None]") -> None:
        """Read it back and compare: all data; of pieces of zeros, which are most of a new disk, only the ends."""
        self._divide(self._compare, done)

    def _divide(self, work: "Callable[[int], Iterator[int]]", done: "Callable[[int], None]") -> None:
        """Use two threads, each with every other piece: one reads or waits while the other's piece is encrypted."""
        together, lock = [0], threading.Lock()
        errors: list[BaseException] = []

        def thread(first: int) -> None:
            try:
                for length in work(first):
                    with lock:
                        together[0] += length
                        done(together[0])
                    if errors:
                        return
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=thread, args=(number * PIECE,)) for number in range(THREADS)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        if errors:
            raise errors[0]

    def _pieces(self, first: int) -> "Iterator[tuple[int, int, mmap.mmap]]":
        """Offset, length and content of every other piece, each in the same page-aligned buffer."""
        descriptor = os.open(self.source, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        piece = mmap.mmap(-1, PIECE)
        for offset in range(first, self.room, THREADS * PIECE):
            read = os.preadv(descriptor, [piece], offset) if offset < self.size else 0
            if read < min(PIECE, self.size - offset):
                raise linux.Stop(f"short read at byte {offset}")
            if read < PIECE:
                piece[read:] = bytes(PIECE - read)
            yield offset, min(PIECE, self.room - offset), piece
        os.close(descriptor)

    def _write(self, first: int) -> "Iterator[int]":
        mapping = os.open(MAPPING, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        for offset, length, piece in self._pieces(first):
            with memoryview(piece) as view, view[:length] as part:
                if os.pwrite(mapping, part, offset) != length:
                    raise linux.Stop(f"short write at byte {offset}")
            yield length
        os.fsync(mapping)
        os.close(mapping)

    def _compare(self, first: int) -> "Iterator[int]":
        mapping = os.open(MAPPING, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        found = mmap.mmap(-1, PIECE)
        for offset, length, piece in self._pieces(first):
            empty = piece[:length] == bytes(length)
            for start, count in ((0, SECTOR), (length - SECTOR, SECTOR)) if empty else ((0, length),):
                with memoryview(found) as view, view[:count] as part:
                    read = os.preadv(mapping, [part], offset + start)
                if read != count or found[:count] != piece[start : start + count]:
                    raise linux.Stop(f"what was read back from byte {offset + start} on is not what was written")
            yield length
        os.close(mapping)
