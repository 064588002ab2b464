# SPDX-License-Identifier: Apache-2.0
"""Fetches pinned packages: from the cache, then the mirror, then a snapshot. Every kept file matches the lock."""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol
from urllib.parse import quote

from sevsnp.errors import UserError
from sevsnp.packages.connections import Connections, DroppedError
from sevsnp.packages.download import Local, Meter, Progress, Remote, Source, alone, download
from sevsnp.packages.lock import REFRESH, Package
from sevsnp.packages.sources import Sources
from sevsnp.system.files import sha256_file
from sevsnp.system.logins import without_login

if TYPE_CHECKING:
    from sevsnp.packages.snapshots import Snapshots

PARALLEL = 4


class Kept(Protocol):
    """Another store for single packages, such as the shared artefact cache."""

    def open(self, package: Package) -> BinaryIO:
        """The stored file of ``package``. Raises FileNotFoundError if there is none."""
        ...

    def keep(self, files: Mapping[Package, Path]) -> None:
        """Keep these packages as long as the store keeps anything."""
        ...


def cached_path(package: Package, cache_dir: Path) -> Path:
    """The path of a package in the cache. It contains the digest: no name, version or archive can stand for another."""
    return cache_dir / "debs" / package.sha256 / package.deb


def _in_cache(package: Package, path: Path) -> bool:
    """Whether the cache has the package undamaged; a damaged file is removed, and will be fetched again."""
    try:
        if path.stat().st_size == package.size and sha256_file(path) == package.sha256:
            return True
    except FileNotFoundError:
        return False
    path.unlink()
    return False


def fetch(
    packages: Iterable[Package],
    *,
    cache_dir: Path,
    sources: Callable[[], Sources],
    snapshots: "Snapshots | None" = None,
    kept: Kept | None = None,
    progress: Progress | None = None,
) -> dict[Package, Path]:
    """Every package's file in the cache. Missing files are fetched, four at a time.

    ``sources`` is called only if something must be fetched: with a full cache there is no network access, and the
    host's apt is not asked. Packages that the mirror has dropped are taken from ``kept``, then from ``snapshots``. Each
    file's SHA-256 is checked on every call. Raises :class:`UserError` naming the package for a mismatch (the file is
    removed), for a version that no source has, and for network trouble.
    """
    # The largest file first: otherwise one thread may be alone with it at the end. Each file once, however many sets
    # have it.
    asked = tuple(packages)
    wanted = sorted({package.sha256: package for package in asked}.values(), key=lambda package: -package.size)
    meter = Meter(sum(package.size for package in wanted), len(wanted), progress)
    with _Run(cache_dir, sources, snapshots, kept, meter) as run, ThreadPoolExecutor(PARALLEL) as pool:
        futures: dict[Future[Path], Package] = {pool.submit(run.fetch, package): package for package in wanted}
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


class _Run:
    """One call of :func:`fetch`, with the state that its threads share."""

    def __init__(
        self,
        cache_dir: Path,
        sources: Callable[[], Sources],
        snapshots: "Snapshots | None",
        kept: Kept | None,
        meter: Meter,
    ) -> None:
        self._cache_dir, self._ask, self._meter = cache_dir, sources, meter
        self._snapshots, self._kept = snapshots, kept
        self._once = threading.Lock()
        self._known: tuple[Sources, Connections] | None = None

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self._known:
            self._known[1].close()

    def fetch(self, package: Package) -> Path:
        path = cached_path(package, self._cache_dir)
        if _in_cache(package, path):
            self._meter.add(package.size, files=1)
            return path
        with alone(path.parent, self._meter):
            # Another process may have fetched the file while this one waited.
            if _in_cache(package, path):
                self._meter.add(package.size)
            else:
                self._download(package, path)
            self._meter.add(0, files=1)
        return path

    def _download(self, package: Package, path: Path) -> None:
        with self._once:
            if self._known is None:
                found = self._ask()
                self._known = found, Connections(found.settings, PARALLEL)
        sources, connections = self._known
        if archive := sources.archive:
            tried = [str(archive.path)]
            places: list[Source] = [_opened(tried[0], archive, package)]
        else:
            tried = [sources.uri(package.archive)]
            places = [_source(package, tried[0], connections)]
        if self._kept:
            places.append(_opened("the artefact cache", self._kept, package))
        for place in places:
            with suppress(DroppedError):
                return download(package, place, path, self._meter)
        pinned = self._snapshots.pinned(package) if self._snapshots else ""
        dropped = f"{package.name} {package.version}{pinned}: the mirror dropped this version"
        bases = self._snapshots.bases(package, sources) if self._snapshots else []
        advice = f"{REFRESH}{self._snapshots.advice(sources) if self._snapshots else ''}"
        for base in bases:
            try:
                download(package, _source(package, base, connections), path, self._meter)
            except DroppedError:
                continue
            except UserError as error:
                raise UserError(f"{dropped}, and the snapshot mirror failed: {error.message}", advice) from error
            return self._snapshots.served.append(package) if self._snapshots else None
        tried = [without_login(one) for one in (*tried, *bases)]
        raise UserError(
            f"{dropped}, and {' and '.join(tried)} no longer {'have' if len(tried) > 1 else 'has'} it", advice
        )


class _Openable(Protocol):
    def open(self, package: Package) -> BinaryIO: ...


def _opened(where: str, place: _Openable, package: Package) -> Source:
    return Local(where, lambda: place.open(package))


def _source(package: Package, base: str, connections: Connections) -> Source:
    if base.startswith("file:"):
        file = Path(base.removeprefix("file:")) / package.filename
        return Local(str(file), lambda: file.open("rb"))
    # "+" must be encoded: some servers read it as a space.
    return Remote(f"{base}/{quote(package.filename)}", connections)
