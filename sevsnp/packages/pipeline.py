# SPDX-License-Identifier: Apache-2.0
"""The functions that the tasks call: refresh the lock, bring its packages into build/, or pack them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.packages import KEYRING
from sevsnp.packages.changes import describe
from sevsnp.packages.download import Progress
from sevsnp.packages.fetch import Kept, fetch
from sevsnp.packages.lock import Lock, LockedSet, Package, dump_lock, read_lock
from sevsnp.packages.repin import repin
from sevsnp.packages.resolve import Note, resolve
from sevsnp.packages.sets import PackageSet, read_set, read_sets
from sevsnp.packages.snapshots import Snapshots
from sevsnp.packages.sources import Sources, find_keyring, find_sources
from sevsnp.packages.tree import export_debs, make_release
from sevsnp.system.files import write_atomic

TOOLS, FIRMWARE, KERNEL = "tools", "ovmf", "kernel"


def project_sets(*, tools: Path, **lists: Path) -> tuple[PackageSet, ...]:
    """Every set of the project: those of tasks/packages.yaml, and one list each for initramfs, guest and appliance."""
    return (*read_sets(tools), *(read_set(path, name) for name, path in lists.items()))


def checked_lock(path: Path, sets: Iterable[PackageSet]) -> Lock:
    """The lock. Raises :class:`UserError` if it is older than the lists."""
    lock = read_lock(path)
    lock.check(sets)
    return lock


def refresh_lock(
    *,
    sets: Iterable[PackageSet],
    mirror: str,
    output: Path,
    only: str = "",
    cache_dir: Path | None = None,
    snapshot: str = "",
    note: Note = print,
) -> None:
    """Resolve ``sets`` anew, write ``output`` completely or not at all, and print the changes.

    ``only`` names a single package to pin anew, together with its dependencies; the files of the other locked packages
    are then fetched into ``cache_dir``. ``mirror`` is the MIRROR setting. Uses the network. Raises :class:`UserError`.
    """
    sources = find_sources(mirror)
    if sources.archive:
        raise UserError(
            f"MIRROR={mirror}: found an archive of pinned packages, expected a mirror, which has newer ones",
            "give the URI of a Debian mirror, or leave MIRROR empty",
        )
    note(f"packages from {sources.main} ({sources.origin})")
    packages_lock(
        sets=sets, sources=sources, output=output, only=only, cache_dir=cache_dir, snapshot=snapshot, note=note
    )


def packages_lock(
    *,
    sets: Iterable[PackageSet],
    sources: Sources,
    output: Path,
    only: str = "",
    cache_dir: Path | None = None,
    snapshot: str = "",
    keyring: Path = KEYRING,
    note: Note = print,
) -> None:
    """Like :func:`refresh_lock`, but from known ``sources``, which ``keyring`` must have signed."""
    find_keyring(keyring)
    asked = tuple(sets)
    if only:
        lock = read_lock(output)
        before = lock.sets

        def files(wanted: Sequence[Package]) -> Mapping[Package, Path]:
            assert cache_dir is not None
            return locked_files(lock, wanted, cache_dir=cache_dir, snapshot=snapshot, sources=lambda: sources)

        locked = repin(only, lock=lock, sets=asked, sources=sources, files=files, keyring=keyring, note=note)
        Lock(output, locked).check(asked)
    else:
        before = _sets(output)
        locked = resolve(sets=asked, sources=sources, keyring=keyring, note=note)
    write_atomic(output, dump_lock(locked))
    for line in describe(before, locked):
        note(line)


def _sets(path: Path) -> Mapping[str, LockedSet]:
    """The sets of the present lock; none if there is no lock, or if it is not valid any more."""
    try:
        return read_lock(path).sets
    except UserError:
        return {}


def locked_files(
    lock: Lock,
    packages: Iterable[Package],
    *,
    cache_dir: Path,
    mirror: str = "",
    snapshot: str = "",
    progress: Progress | None = None,
    sources: Callable[[], Sources] | None = None,
    kept: Kept | None = None,
    note: Note | None = None,
) -> dict[Package, Path]:
    """The files of ``packages``, which ``lock`` pins; missing files are fetched into ``cache_dir``.

    ``mirror`` and ``snapshot`` are the settings MIRROR and SNAPSHOT_MIRROR. ``note`` is told once how many packages the
    mirror has dropped. Raises :class:`UserError`.
    """
    snapshots = Snapshots(snapshot, lock)
    files = fetch(
        packages,
        cache_dir=cache_dir,
        sources=sources or (lambda: find_sources(mirror)),
        snapshots=snapshots,
        kept=kept,
        progress=progress,
    )
    if snapshots.served and note:
        note(f"{len(snapshots.served)} of them, which the mirror dropped, from the snapshot mirror")
    return files


def packages(
    *,
    lock: Path,
    sets: Iterable[PackageSet],
    release: Path | None,
    debs: Mapping[str, Path],
    cache_dir: Path,
    mirror: str = "",
    snapshot: str = "",
    progress: Progress | None = None,
    sources: Callable[[], Sources] | None = None,
    kept: Kept | None = None,
    note: Note | None = None,
) -> None:
    """Fetch every locked package; build ``release`` (build/snp-release) and one directory for each set in ``debs``.

    With ``release`` None, that tree has another source: then only the sets in ``debs`` are fetched.
    ``debs`` maps ``initramfs``, ``guest`` and ``appliance`` to their directories (build/debs/SET). ``mirror`` and
    ``snapshot`` are the settings MIRROR and SNAPSHOT_MIRROR; only packages that the cache lacks need the network. The
    firmware, which the archive drops first, is also stored in ``kept``. Raises :class:`UserError` before anything is
    replaced.
    """
    pinned = checked_lock(lock, sets)
    unpacked = (TOOLS, FIRMWARE, KERNEL) if release else ()
    wanted = {name: pinned.packages(name) for name in (*unpacked, *debs)}
    files = locked_files(
        pinned,
        [package for listed in wanted.values() for package in listed],
        cache_dir=cache_dir,
        mirror=mirror,
        snapshot=snapshot,
        progress=progress,
        sources=sources,
        kept=kept,
        note=note,
    )

    def of(name: str) -> dict[Package, Path]:
        return {package: files[package] for package in wanted[name]}

    if release:
        if kept:
            kept.keep(of(FIRMWARE))
        make_release(tools=of(TOOLS), firmware=of(FIRMWARE), kernels=of(KERNEL), output=release)
    for name, output in debs.items():
        export_debs(name=name, debs=of(name), output=output)
