# SPDX-License-Identifier: Apache-2.0
"""Locks between processes: the kernel lets go of one when its holder dies, however it dies."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock at ``path``; ``waiting`` is called once where another process or thread has it."""
    with _taken(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, waiting):
        yield


@contextlib.contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock at ``path`` if nobody else has it, and say whether."""
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
    """Whether others meet us at this file: who tidies up may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
