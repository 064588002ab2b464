# SPDX-License-Identifier: Apache-2.0
"""Downloads one pinned file from an archive, with retries and resumption. The file is kept only if it matches the lock.

The bytes received so far are in NAME.part beside the target, even if this process is killed. The next download asks for
the rest, from any archive. The SHA-256 of the whole file decides in the end; nothing else about it is trusted.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from urllib3.exceptions import HTTPError

from sevsnp.errors import UserError
from sevsnp.packages.connections import Connections, DroppedError, StatusError
from sevsnp.packages.lock import Package
from sevsnp.system.files import CHUNK
from sevsnp.system.logins import without_login

ATTEMPTS = 4

# Called with the bytes and files that are there, each with its total; from any thread, but never from two at once.
Progress = Callable[[int, int, int, int], None]
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class MismatchError(UserError):
    """The received file does not match the lock; ``found`` is its SHA-256 (64 hex digits)."""

    def __init__(self, message: str, found: str) -> None:
        super().__init__(message, "try again; if it fails again, choose another MIRROR")
        self.found = found


class UnreachableError(UserError):
    """A server did not send the file."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "check the network, the proxy settings or MIRROR")


class StoppedError(Exception):
    """Another download failed or the user interrupted: the running downloads end."""


class Meter:
    """Adds up what the threads fetch, and tells the threads when to stop."""

    def __init__(self, size: int, files: int, progress: Progress | None) -> None:
        self._lock = threading.Lock()
        self._size, self._files = size, files
        self._had, self._done = 0, 0
        self._progress = progress
        self.stopped = threading.Event()

    def add(self, count: int, files: int = 0) -> None:
        """Count bytes and files; a negative count is always possible. Raises :class:`StoppedError`."""
        if count >= 0 and self.stopped.is_set():
            raise StoppedError
        with self._lock:
            self._had += count
            self._done += files
            if self._progress:
                self._progress(self._had, self._size, self._done, self._files)

    def wait(self, seconds: float) -> None:
        self.stopped.wait(seconds)


class Source(Protocol):
    """The place of a file: its name for messages, and a method to get the missing rest of ``part`` from it."""

    where: str

    def receive(self, part: "Part") -> bool:
        """Add the missing rest of ``part``, or all of it from its start; return True for the latter.

        Raises :class:`DroppedError`, :class:`StatusError`, HTTPError or OSError.
        """
        ...


class Part:
    """The beginning of a file, with its digest; at most one byte longer than the package's size."""

    def __init__(self, package: Package, target: Path, meter: Meter) -> None:
        self.package, self._target, self._meter = package, target, meter
        self._path = target.with_name(f"{target.name}.part")
        self.size, self._digest = 0, hashlib.sha256()
        # The server's name for this version of the file: it sends the rest only of the same version.
        self.version = ""
        self._kept = False

    def __enter__(self) -> "Part":
        with self._writable():
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._stream: BinaryIO = os.fdopen(os.open(self._path, flags, 0o600), "r+b", buffering=0)
            while piece := self._stream.read(CHUNK):
                self._count(piece)
                if self.size > self.package.size:
                    self.restart()
                    break
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if not self._kept:
            self._meter.add(-self.size)
            if self.size == 0:
                self._path.unlink(missing_ok=True)

    def _count(self, piece: bytes) -> None:
        self.size += len(piece)
        self._digest.update(piece)
        self._meter.add(len(piece))

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self._path.parent}: cannot be written: {error.strerror}", "set CACHE_DIR") from error

    def take(self, read: Callable[[int], bytes]) -> None:
        """Append what ``read(limit)`` returns, until it returns nothing; at most one byte more than expected."""
        while piece := read(min(CHUNK, self.package.size + 1 - self.size)):
            with self._writable():
                self._stream.write(piece)
            self._count(piece)

    def restart(self) -> None:
        """Discard the bytes received so far."""
        with self._writable():
            self._stream.seek(0)
            self._stream.truncate()
        had, self.size, self._digest, self.version = self.size, 0, hashlib.sha256(), ""
        self._meter.add(-had)

    def matches(self) -> bool:
        return self.size == self.package.size and self._digest.hexdigest() == self.package.sha256

    def keep(self) -> None:
        """Move the file, which is complete and checked, to its place."""
        with self._writable():
            self._path.chmod(0o644)  # independent of the umask
            self._path.replace(self._target)
        self._kept = True

    def mismatch(self, where: str) -> MismatchError:
        expected = self.package.size
        size = f"more than {expected}" if self.size > expected else str(self.size)
        found = self._digest.hexdigest()
        return MismatchError(
            f"{self.package.deb}: the download does not match the lock and was removed: found {size} bytes, "
            f"SHA-256 {found}; expected {expected} bytes, SHA-256 {self.package.sha256} ({where})",
            found,
        )


class Remote:
    """A file on a server."""

    def __init__(self, uri: str, connections: Connections) -> None:
        self.where, self._uri, self._connections = without_login(uri), uri, connections

    def receive(self, part: Part) -> bool:
        headers = {}
        if part.size:
            headers["Range"] = f"bytes={part.size}-"
            if part.version:
                headers["If-Range"] = part.version
        with self._connections.get(self._uri, headers) as response:
            if response.status != 200:
                said = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if not said or int(said[1]) != part.size or said[2] not in ("*", str(part.package.size)):
                    part.restart()  # this is the rest of another file
                    return False
            elif part.size:
                part.restart()
            fresh = part.size == 0
            tag = response.headers.get("ETag", "")
            # Files that differ in some bytes may have the same weak tag.
            part.version = tag if tag.startswith('"') else response.headers.get("Last-Modified", "")
            part.take(response.read1)
            return fresh


class Local:
    """A file on this machine; ``open`` raises FileNotFoundError if it is missing."""

    def __init__(self, where: str, open_file: Callable[[], BinaryIO]) -> None:
        self.where, self._open = where, open_file

    def receive(self, part: Part) -> bool:
        try:
            stream = self._open()
        except FileNotFoundError:
            raise DroppedError from None
        with stream:
            part.restart()
            part.take(stream.read)
        return True


@contextmanager
def alone(directory: Path, meter: Meter) -> Iterator[None]:
    """Be the only process that downloads into ``directory``, which is created if it is missing."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror}", "set CACHE_DIR") from error
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            meter.wait(0.1)
            meter.add(0)  # raises if this run has ended
        yield
    finally:
        os.close(descriptor)


def download(package: Package, source: Source, target: Path, meter: Meter) -> None:
    """Fetch ``package`` to ``target``, which appears complete and checked, or not at all.

    After network trouble the received bytes stay for the next download; a mismatch is removed. Raises
    :class:`DroppedError` if the source does not have the package, and :class:`UserError`.
    """
    with Part(package, target, meter) as part:
        for attempt in range(1, ATTEMPTS + 1):
            if part.matches():  # also true for a file that was complete when its process was killed
                break
            if part.size >= package.size:
                part.restart()
            try:
                fresh = source.receive(part)
            except (HTTPError, OSError, StatusError) as error:
                # After a bad answer a mirror may answer well a moment later; a refusal stays a refusal.
                if attempt == ATTEMPTS or (isinstance(error, StatusError) and error.final):
                    raise UnreachableError(
                        f"{package.deb}: cannot be fetched from {source.where}: {words_of(error)}"
                    ) from error
            else:
                if part.matches():
                    break
                # The transfer may have been cut off; or a good end may have been appended to a bad beginning.
                if attempt == ATTEMPTS or (fresh and part.size >= package.size):
                    mismatch = part.mismatch(source.where)
                    part.restart()
                    raise mismatch
            meter.wait(attempt)
            meter.add(0)
        part.keep()


def words_of(error: BaseException) -> str:
    """The system's words about network trouble, without the library's own names around them."""
    inner = error
    while isinstance(inner, Exception):
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__  # type: ignore[assignment]
    return str(error)
