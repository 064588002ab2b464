# SPDX-License-Identifier: Apache-2.0
"""Locks between processes. The kernel releases a lock when its holder dies, however it dies."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_NOTE = 200


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock at ``path``; ``waiting`` is called once if another process or thread holds it."""
    with _taken(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, waiting):
        yield


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock at ``path`` if it is free; yields whether it is held."""
    descriptor = _open(path)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(path: Path, taken: Callable[[str], Exception], mode: int = 0o600) -> Iterator[Callable[[str], None]]:
    """Hold the lock at ``path``, and note the holder in the file. The yielded function takes the text of the note.

    If another process holds the lock, raises what ``taken`` makes of the first 200 bytes of that process's note.
    ``mode`` is the file's mode; its directory must exist.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)

    def note(text: str) -> None:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)

    try:
        if not _can_have(descriptor):
            raise taken(os.pread(descriptor, _NOTE, 0).decode(errors="replace"))
        try:
            yield note
        finally:
            os.ftruncate(descriptor, 0)  # before the lock is released: a note without a lock means nothing
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock at ``path``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _can_have(descriptor: int) -> bool:
    """Whether the lock could be taken.

    It tries again, because a process that only tests the lock holds it for an instant.
    """
    for pause in (0.05, 0.2, 0.0):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(pause)
    return False


@contextlib.contextmanager
def _taken(path: Path, kind: int, waiting: Callable[[], None] | None) -> Iterator[None]:
    while True:
        descriptor = _open(path)
        try:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting:
                    waiting()
                    waiting = None
                fcntl.flock(descriptor, kind)
            if _still_there(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def _still_there(descriptor: int, path: Path) -> bool:
    """Whether ``path`` still names this file: a process that cleans up may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
