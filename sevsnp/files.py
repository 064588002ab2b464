"""Files that appear whole or not at all, and their digests."""

import atexit
import contextlib
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

CHUNK = 1 << 20
_in_use: set[Path] = set()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 lower-case hex digits, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def scratch_directory(near: Path) -> Iterator[Path]:
    """A temporary directory beside ``near``, on the same file system so that renames out of it are atomic.

    What killed processes left there of the same kind is removed first.
    """
    near.parent.mkdir(parents=True, exist_ok=True)
    _sweep(near)
    path, descriptor = _locked_directory(near)
    _in_use.add(path)
    try:
        # mkdtemp gives 0700 whatever the umask; what is built inside must not inherit either.
        yield path
    finally:
        remove_tree(path)
        _in_use.discard(path)
        os.close(descriptor)


def _locked_directory(near: Path) -> tuple[Path, int]:
    """A new directory, locked as long as this process lives, so that one whose maker is dead can be told."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{near.name}.", dir=near.parent))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # taken for a dead one's before it was locked
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path, descriptor
        os.close(descriptor)


@atexit.register
def _remove_scratch() -> None:
    """What threads leave that end with the process and never reach the end of their block."""
    for path in list(_in_use):
        remove_tree(path)


def _sweep(near: Path) -> None:
    for path in near.parent.glob(f".{glob.escape(near.name)}.????????"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(path)
            finally:
                os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, read-only directories too; what resists stays."""
    for directory, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(directory, 0o700)  # noqa: PTH101
    shutil.rmtree(path, ignore_errors=True)


def write_atomic(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write ``path`` whole: a reader sees the old content or the new, never a part."""
    with scratch_directory(path) as scratch:
        new = scratch / path.name
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data.encode() if isinstance(data, str) else data)
        new.chmod(mode)
        new.replace(path)
