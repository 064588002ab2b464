# SPDX-License-Identifier: Apache-2.0
"""Brings the sources of a build here, before it starts: the build itself has no network."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sevsnp.builds.git import pack_commit, resolve_commit
from sevsnp.builds.pins import FileSource, Source
from sevsnp.builds.stages import Stage
from sevsnp.errors import UserError
from sevsnp.packages.fetch import fetch
from sevsnp.packages.lock import REFRESH, Lock, LockedSet, Package
from sevsnp.packages.snapshots import Snapshots
from sevsnp.packages.sources import find_sources
from sevsnp.system import progress
from sevsnp.system.files import remove_tree, sha256_file
from sevsnp.system.locks import locked
from sevsnp.system.named import load_named
from sevsnp.system.template import find_template

SUITE = "trixie"


@dataclass(frozen=True)
class Fetched:
    """A source that is here: its version or commit, and its files by the name that the scripts know."""

    version: str
    files: Mapping[str, Path]
    digests: Mapping[str, str]

    def record(self) -> dict[str, Any]:
        return {"version": self.version, "sha256": dict(self.digests)}


def fetch_sources(
    wanted: Iterable[Source], *, file: Path, cache_dir: Path, mirror: str, snapshot: str, commit_date: str
) -> dict[str, Fetched]:
    """Fetch every source, from the cache where it has it; the SHA-256 of pinned files is checked each time.

    ``file`` has the pins; ``mirror`` and ``snapshot`` are the settings MIRROR and SNAPSHOT_MIRROR. Uses the network.
    Raises :class:`UserError`.
    """
    sources = tuple(wanted)
    files = _fetch_files([one for one in sources if isinstance(one, FileSource)], file, cache_dir, mirror, snapshot)
    found: dict[str, Fetched] = {}
    for source in sources:
        if isinstance(source, FileSource):
            names = {package.deb: files[package] for package in source.files}
            found[source.name] = Fetched(
                source.version, names, {package.deb: package.sha256 for package in source.files}
            )
            continue
        commit = resolve_commit(source, commit_date, datetime.now(UTC).date())
        path = cache_dir / "git" / commit / f"{source.name}.tar"
        with locked(path.with_suffix(".lock"), waiting=lambda: progress.step("waiting for another fetch")):
            if not path.exists():
                pack_commit(source, commit, path)
        name = path.name
        found[source.name] = Fetched(commit, {name: path}, {name: sha256_file(path)})
    return found


def _fetch_files(
    sources: Sequence[FileSource], file: Path, cache_dir: Path, mirror: str, snapshot: str
) -> dict[Package, Path]:
    pinned = [package for source in sources for package in source.files]
    # What the snapshots need to know of a lock: what was there, and when.
    sets = {
        source.name: LockedSet(SUITE, (source.date,), (), False, False, (), False, {}, source.files)
        for source in sources
    }
    with progress.amount("fetching sources") as shown:
        try:
            return fetch(
                pinned,
                cache_dir=cache_dir,
                sources=lambda: find_sources(mirror),
                snapshots=Snapshots(snapshot, Lock(file, sets)),
                progress=lambda size, sizes, *_: shown.at(size, sizes),
            )
        except UserError as error:
            if not error.hint.startswith(REFRESH):
                raise
            # packages_lock does not know of sources.
            advice = error.hint.removeprefix(REFRESH)
            raise UserError(error.message, f"pin versions in {file} that a mirror has{advice}") from None


def place_sources(stages: Sequence[Stage], fetched: Mapping[str, Fetched], directory: Path) -> None:
    """Put what each stage needs below ``directory``/STAGE, as its script expects it."""
    remove_tree(directory)
    for stage in stages:
        target = directory / stage.name
        files = directory / f"{stage.name}.files" if stage.prepare else target
        files.mkdir(parents=True)
        for source in stage.sources:
            for name, path in fetched[source].files.items():
                # Copies, not links: a script must not reach the cache.
                shutil.copyfile(path, files / name)
        if stage.prepare:
            progress.step(f"preparing the sources of {stage.name}")
            templates = {name: find_template(path) for name, path in stage.templates.items()}
            load_named(stage.prepare)(sources=files, output=target, **templates)
            remove_tree(files)


def needed(stages: Sequence[Stage], pins: Mapping[str, Source], file: Path) -> list[Source]:
    """The sources of ``stages``. Raises :class:`UserError` for one that the pins in ``file`` lack."""
    names = list(dict.fromkeys(name for stage in stages for name in stage.sources))
    for name in names:
        if name not in pins:
            raise UserError(f"{file}: found no source {name}, which {_user_of(name, stages)} needs")
    return [pins[name] for name in names]


def _user_of(name: str, stages: Sequence[Stage]) -> str:
    return next(stage.name for stage in stages if name in stage.sources)
