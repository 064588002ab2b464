"""What the tasks call: refresh the lock, or bring everything it names into build/."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sevsnp.packages.fetch import Progress, fetch
from sevsnp.packages.lock import Lock, Package, read_lock
from sevsnp.packages.resolve import Note, packages_lock
from sevsnp.packages.sets import PackageSet, read_set, read_sets
from sevsnp.packages.sources import Sources, find_sources
from sevsnp.packages.tree import export_debs, make_release

TOOLS, FIRMWARE, KERNEL = "tools", "ovmf", "kernel"


def project_sets(*, tools: Path, **lists: Path) -> tuple[PackageSet, ...]:
    """Every set the project has: those of tasks/packages.yaml, and one list each of initramfs, guest and appliance."""
    return (*read_sets(tools), *(read_set(path, name) for name, path in lists.items()))


def checked_lock(path: Path, sets: Iterable[PackageSet]) -> Lock:
    """The lock, refused if it is older than the lists. Raises :class:`UserError`."""
    lock = read_lock(path)
    lock.check(sets)
    return lock


def refresh_lock(*, sets: Iterable[PackageSet], mirror: str, output: Path, note: Note = print) -> None:
    """`packages_lock` with the MIRROR setting as text. Uses the network. Raises :class:`UserError`."""
    asked = tuple(sets)
    sources = find_sources(mirror)
    note(f"packages from {sources.main} ({sources.origin})")
    packages_lock(sets=asked, sources=sources, output=output, note=note)


def packages(
    *,
    lock: Path,
    sets: Iterable[PackageSet],
    release: Path,
    debs: Mapping[str, Path],
    cache_dir: Path,
    mirror: str = "",
    snapshot: str = "",
    progress: Progress | None = None,
    sources: Callable[[], Sources] | None = None,
) -> None:
    """Fetch every locked package; build ``release`` (build/snp-release) and one directory for each set in ``debs``.

    ``debs`` maps ``initramfs``, ``guest`` and ``appliance`` to their directories (build/debs/SET). ``mirror`` and
    ``snapshot`` are the settings MIRROR and SNAPSHOT_MIRROR; the network is used only for what the cache lacks. Raises
    :class:`UserError` before anything is replaced.
    """
    pinned = checked_lock(lock, sets)
    wanted = {name: pinned.packages(name) for name in (TOOLS, FIRMWARE, KERNEL, *debs)}
    files = fetch(
        [package for listed in wanted.values() for package in listed],
        cache_dir=cache_dir,
        sources=sources or (lambda: find_sources(mirror)),
        snapshot=snapshot,
        progress=progress,
    )

    def of(name: str) -> dict[Package, Path]:
        return {package: files[package] for package in wanted[name]}

    make_release(tools=of(TOOLS), firmware=of(FIRMWARE), kernels=of(KERNEL), output=release)
    for name, output in debs.items():
        export_debs(name=name, debs=of(name), output=output)
