"""Fetch pinned packages: cache, then mirror, then snapshot; nothing is kept that does not match the lock."""

import hashlib
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO, cast
from urllib.parse import quote, urlsplit

from sevsnp.errors import UserError
from sevsnp.files import CHUNK, scratch_directory, sha256_file
from sevsnp.packages import hostapt
from sevsnp.packages.lock import REFRESH, SECURITY, Package
from sevsnp.packages.sources import Sources, beside, clean_uri

PARALLEL = 4
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 3

# Called with the bytes that are there and the bytes there will be, over all packages; from any thread, one at a time.
Progress = Callable[[int, int], None]


class _DroppedError(Exception):
    """The archive answers, and does not have the file."""


class MismatchError(UserError):
    """What came is not what the lock says. ``short``: it may only have been cut off on the way."""

    def __init__(self, message: str, *, short: bool) -> None:
        super().__init__(message, "try again; if it stays so, choose another MIRROR")
        self.short = short


class _StoppedError(Exception):
    """Another download failed, or the user interrupted: what is under way ends here."""


class _Meter:
    """Adds up what the threads fetch, and tells them when to stop."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._lock = threading.Lock()
        self._total = total
        self._done = 0
        self._progress = progress
        self.stopped = threading.Event()

    def add(self, count: int) -> None:
        if self.stopped.is_set():
            raise _StoppedError
        with self._lock:
            self._done += count
            if self._progress:
                self._progress(self._done, self._total)

    def wait(self, seconds: float) -> None:
        self.stopped.wait(seconds)


def cached_path(package: Package, cache_dir: Path) -> Path:
    """Where the cache keeps a package: by digest, so that no name, version or archive can stand for another."""
    return cache_dir / "debs" / package.sha256 / package.deb


def _open(uri: str, sources: Sources) -> BinaryIO:
    """A stream of what is at ``uri``. Raises :class:`_DroppedError` where there is nothing, ``OSError`` on trouble."""
    if uri.startswith("file:"):
        try:
            return Path(uri.removeprefix("file:")).open("rb")
        except FileNotFoundError:
            raise _DroppedError from None
    handlers: list[urllib.request.BaseHandler] = []
    # As apt does: its own setting first, and only without one the environment's http_proxy and no_proxy.
    if proxy := hostapt.find_proxy(dict(sources.settings), uri):
        handlers.append(urllib.request.ProxyHandler({} if proxy == hostapt.DIRECT else {urlsplit(uri).scheme: proxy}))
    try:
        request = urllib.request.Request(uri, headers={"User-Agent": "openend2e-sevsnp"})  # noqa: S310 (see clean_uri)
        return cast(BinaryIO, urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT))
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            raise _DroppedError from None
        raise


def _stream(source: BinaryIO, target: BinaryIO, package: Package, uri: str, meter: _Meter) -> None:
    """Copy at most the expected size, hashing on the way. Raises :class:`MismatchError`."""
    digest, size = hashlib.sha256(), 0
    try:
        # One byte more than expected is read at most: a mirror can not fill the disk.
        while piece := source.read(min(CHUNK, package.size + 1 - size)):
            size += len(piece)
            digest.update(piece)
            target.write(piece)
            meter.add(len(piece))
    except (OSError, HTTPException):
        meter.add(-size)
        raise
    if size != package.size or digest.hexdigest() != package.sha256:
        meter.add(-size)
        found = f"more than {package.size}" if size > package.size else str(size)
        raise MismatchError(
            f"{package.deb}: the download does not match the lock and was removed: found {found} bytes, "
            f"SHA-256 {digest.hexdigest()}; expected {package.size} bytes, SHA-256 {package.sha256} ({uri})",
            short=size < package.size,
        )


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A name for a new file beside ``target``: another run may fetch the same package into the same cache."""
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(scratch_directory(target))
        except OSError as error:
            raise UserError(f"{target.parent}: can not be written: {error.strerror}", "set CACHE_DIR") from error
        yield scratch / target.name


def _download(package: Package, uri: str, target: Path, sources: Sources, meter: _Meter) -> None:
    """Fetch ``uri`` to ``target``, which appears whole and checked or not at all."""
    for attempt in range(1, ATTEMPTS + 1):
        with _beside(target) as new:
            try:
                with new.open("wb") as stream, _open(uri, sources) as source:
                    _stream(source, stream, package, uri, meter)
                new.chmod(0o644)  # the umask would make it vary otherwise
                new.replace(target)
                return
            except MismatchError as error:
                if not error.short or attempt == ATTEMPTS:
                    raise
            except (OSError, HTTPException) as error:
                # A mirror that answers badly may answer well a moment later; one that says no will say no again.
                final = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if final or attempt == ATTEMPTS:
                    raise UserError(
                        f"{package.deb}: can not be fetched from {uri}: {error}",
                        "check the network, the proxy settings or MIRROR",
                    ) from error
        meter.wait(attempt)


def _snapshot_uris(package: Package, snapshot: str) -> list[str]:
    """Where a snapshot mirror may have a package: as given, or (for security updates) beside it."""
    base = clean_uri(snapshot, "SNAPSHOT_MIRROR")
    return [beside(base), base] if package.archive == SECURITY else [base]


def _in_cache(package: Package, path: Path) -> bool:
    """Whether the cache has the package undamaged; a damaged entry is removed, to be fetched again."""
    try:
        if path.stat().st_size == package.size and sha256_file(path) == package.sha256:
            return True
    except FileNotFoundError:
        return False
    path.unlink()
    return False


def _fetch_one(package: Package, cache_dir: Path, sources: Callable[[], Sources], snapshot: str, meter: _Meter) -> Path:
    path = cached_path(package, cache_dir)
    if _in_cache(package, path):
        meter.add(package.size)
        return path
    found = sources()
    bases = [found.uri(package.archive), *(_snapshot_uris(package, snapshot) if snapshot else [])]
    for base in bases:
        # "+" must be encoded: some servers read it as a space.
        uri = f"{base}/{package.filename if base.startswith('file:') else quote(package.filename)}"
        try:
            _download(package, uri, path, found, meter)
            return path
        except _DroppedError:
            continue
    raise UserError(
        f"{package.name} {package.version}: the mirror dropped this version, and {' and '.join(bases)} "
        f"{'have' if len(bases) > 1 else 'has'} it no longer",
        f"{REFRESH}{'' if snapshot else ', or set SNAPSHOT_MIRROR'}",
    )


def fetch(
    packages: Iterable[Package],
    *,
    cache_dir: Path,
    sources: Callable[[], Sources],
    snapshot: str = "",
    progress: Progress | None = None,
) -> dict[Package, Path]:
    """Every package's file in the cache, fetched where it is not there yet, four at a time.

    ``sources`` is asked only if something must be fetched: with a full cache there is no network access and no look at
    the host's apt. Each file's SHA-256 is checked on every call. Raises :class:`UserError` naming the package for a
    mismatch (which is removed), a version that neither mirror nor ``snapshot`` has, and network trouble.
    """
    # The longest first, so that no thread is left alone with it at the end; each file once, whatever sets it is in.
    asked = tuple(packages)
    wanted = sorted({package.sha256: package for package in asked}.values(), key=lambda package: -package.size)
    meter = _Meter(sum(package.size for package in wanted), progress)
    once = threading.Lock()
    known: list[Sources] = []

    def ask() -> Sources:
        with once:
            if not known:
                known.append(sources())
            return known[0]

    with ThreadPoolExecutor(PARALLEL) as pool:
        futures: dict[Future[Path], Package] = {
            pool.submit(_fetch_one, package, cache_dir, ask, snapshot, meter): package for package in wanted
        }
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failures = [error for future in done if (error := future.exception())]
        finally:
            meter.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
    if failures:
        raise failures[0]
    files = {package.sha256: future.result() for future, package in futures.items()}
    return {package: files[package.sha256] for package in asked}
