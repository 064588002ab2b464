# SPDX-License-Identifier: Apache-2.0
"""Files that are written completely or not at all, and digests of files."""

import atexit
import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import pwd
import secrets
import shlex
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sevsnp.errors import UserError

CHUNK = 1 << 20
# A disk on which a program failed for lack of space has less than this free: programs write in pieces.
_NO_ROOM = 256 << 10
_in_use: set[Path] = set()
_making = threading.Lock()
_ended = threading.Event()


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json's ``object_pairs_hook`` that raises ValueError for a doubled key; json itself would take the last value."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"found the key {key!a} twice")
        found[key] = value
    return found


def sha256_file(path: Path) -> str:
    """SHA-256 of a file as 64 lower-case hex digits, read in 1 MiB pieces; its holes are not read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        if stat.S_ISREG(status.st_mode) and status.st_blocks * 512 < status.st_size:
            _hash_holes(digest, stream, status.st_size)
        while piece := stream.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _hash_holes(digest: "hashlib._Hash", stream: BinaryIO, size: int) -> None:
    """Hash a file of ``size`` bytes up to its end: of a hole, zeros that are in memory."""
    zeros, place = bytes(CHUNK), 0
    while place < size:
        try:
            data = os.lseek(stream.fileno(), place, os.SEEK_DATA)
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.EINVAL):
                raise
            data = size if error.errno == errno.ENXIO else place  # the file system cannot tell
        for start in range(place, min(data, size), CHUNK):
            digest.update(zeros[: min(data, size) - start])
        place = data
        end = os.lseek(stream.fileno(), place, os.SEEK_HOLE) if place < size and data != size else size
        stream.seek(min(place, size))
        while place < end and (piece := stream.read(min(CHUNK, end - place))):
            digest.update(piece)
            place += len(piece)
        if place < end:
            return  # it became shorter


@contextlib.contextmanager
def scratch_directory(near: Path) -> Iterator[Path]:
    """A temporary directory beside ``near``, on the same file system so that renames out of it are atomic.

    Scratch directories that killed processes left there are removed first.
    """
    near.parent.mkdir(parents=True, exist_ok=True)
    _sweep(near)
    with _making:
        if _ended.is_set():
            sys.exit()  # ends this thread; the rest of the process has already ended
        path, descriptor = _locked_directory(near)
        _in_use.add(path)
    try:
        # mkdtemp sets 0700 for any umask; the files that are built inside must not inherit either.
        yield path
    finally:
        remove_tree(path)
        _in_use.discard(path)
        os.close(descriptor)


def _locked_directory(near: Path) -> tuple[Path, int]:
    """A new directory, locked as long as this process lives: others can recognise a dead process's directory."""
    import tempfile  # like shutil below: loads the archive modules, which a verifier does not need

    while True:
        path = Path(tempfile.mkdtemp(prefix=f".{near.name}.", dir=near.parent))
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another process took it for a dead one's before it was locked
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path, descriptor
        os.close(descriptor)


@atexit.register
def _remove_scratch() -> None:
    """Remove the directories of threads that end with the process and never reach the end of their block."""
    with _making:
        _ended.set()
    # A thread that still works creates some of its files again until it finds the rest gone. On a busy machine the
    # removal takes seconds, and the files created in that time have to go, too.
    deadline = time.monotonic() + 10
    while (left := [path for path in list(_in_use) if path.exists()]) and time.monotonic() < deadline:
        for path in left:
            # Renamed first: the thread would add files to the directory while it is removed.
            gone = path.with_name(f"{path.name[:-8]}{secrets.token_hex(4)}")
            with contextlib.suppress(OSError):
                path.rename(gone)
                remove_tree(gone)


def _sweep(near: Path) -> None:
    for path in near.parent.glob(f".{glob.escape(near.name)}.????????"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_tree(path)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def short_name(directory: Path) -> Iterator[Path]:
    """Another name of ``directory``, some 20 bytes long, for all processes of this user while the context lasts.

    For UNIX sockets: their names have at most 107 bytes, and TMPDIR may be a long path.
    """
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory with its content, including read-only directories; files that cannot be removed stay."""
    import shutil

    for directory, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(directory, 0o700)  # noqa: PTH101
    shutil.rmtree(path, ignore_errors=True)


def write_atomic(path: Path, data: bytes | str, mode: int = 0o644) -> None:
    """Write ``path`` completely: a reader sees the old content or the new, never a part. An OSError names ``path``."""
    with _written(path, data, mode) as made:
        made.replace(path)


def write_durable(path: Path, data: bytes | str, mode: int = 0o600, *, new: bool = False) -> None:
    """Like :func:`write_atomic`, but return only when ``path`` is on the disk.

    With ``new`` nothing is replaced: FileExistsError if ``path`` already exists.
    """
    with _written(path, data, mode) as made:
        sync(made)
        if new:
            os.link(made, path)  # a rename would overwrite
        else:
            made.replace(path)
    sync(path.parent)


@contextlib.contextmanager
def _written(path: Path, data: bytes | str, mode: int) -> Iterator[Path]:
    """A new file beside ``path`` with its content and mode; the caller moves it to its place in one step."""
    try:
        with scratch_directory(path) as scratch:
            made = scratch / path.name
            descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(data.encode() if isinstance(data, str) else data)
            made.chmod(mode)
            yield made
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync(path: Path) -> None:
    """Write a file's content, or a directory's entries, to the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disks(paths: Iterable[str | Path]) -> dict[Path, bool]:
    """The mount points of the disks that ``paths`` are on, or would be, and whether each disk is full.

    A word that names no existing file counts as a file in the current directory, so a whole command line may be given.
    Mounts that are read-only or hold no data are left out.
    """
    found: dict[Path, bool] = {}
    for path in paths:
        place = Path(path).absolute()
        while not os.path.isdir(place):  # noqa: PTH112 (a name that is too long for a path is no error here)
            place = place.parent
        place = place.resolve()
        while not place.is_mount():
            place = place.parent
        room = os.statvfs(place)
        if room.f_flag & os.ST_RDONLY or not room.f_blocks:
            continue
        blocks = room.f_bfree if os.geteuid() == 0 else room.f_bavail
        found[place] = blocks * room.f_frsize < _NO_ROOM or bool(room.f_files and not room.f_ffree)
    return found


def cannot_write(path: Path, error: OSError) -> UserError:
    """The error for a ``path`` that cannot be written or read: the disk is full, or the file is another user's."""
    if error.errno not in (errno.EACCES, errno.EPERM):
        return UserError(f"{path}: cannot be written: {error.strerror}", f"see: df -h {shlex.quote(str(path.parent))}")
    place = path.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    owner, user = place.lstat().st_uid, os.geteuid()
    if owner == user:
        return UserError(f"{path}: {error.strerror}", f"see: ls -ld {shlex.quote(str(place))}")
    # A run as root leaves more than one such file in a checkout.
    here = Path.cwd()
    others = [one.name for one in here.iterdir() if one.lstat().st_uid != user] if place.is_relative_to(here) else []
    whom = _user(user) if _user(user) == str(user) else f"{_user(user)}:"  # with its group, if the user has a name
    remedy = shlex.join(["chown", "-R", whom, *(sorted(others) or [str(place)])])
    where = f"cd {shlex.quote(str(here))} && " if others else ""
    return UserError(
        f"{path}: {error.strerror}: {place} belongs to {_user(owner)}, and this is {_user(user)}",
        f"run as root: {where}{remedy}",
    )


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
