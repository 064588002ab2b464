# SPDX-License-Identifier: Apache-2.0
"""The package steps of the pipeline, as tasks call them: files in, files out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.packages.archive import write_archive
from sevsnp.packages.download import Progress
from sevsnp.packages.fetch import Kept
from sevsnp.packages.kernel import unpack_kernel
from sevsnp.packages.lock import REFRESH, Package, read_lock
from sevsnp.packages.pipeline import checked_lock, locked_files, packages, project_sets, refresh_lock
from sevsnp.packages.sets import read_sets
from sevsnp.packages.tree import export_debs, export_files
from sevsnp.system import progress
from sevsnp.system.files import scratch_directory, write_atomic

# The set of tasks/packages.yaml, and that of sources.lock, from which FIRMWARE=source is built.
COMPILER, EDK2 = "compiler", "edk2"


@dataclass(frozen=True)
class Pinned:
    """What every step that makes the trees of the task `packages` is given, whatever its release tree is made of.

    ``lock`` pins the packages of the four lists ``tools`` (several sets), ``initramfs``, ``guest`` and ``appliance``.
    The last three have a directory of package files each. ``cache_dir``, ``mirror`` and ``snapshot`` are the settings
    CACHE_DIR, MIRROR and SNAPSHOT_MIRROR.
    """

    lock: Path
    tools: Path
    initramfs: Path
    guest: Path
    appliance: Path
    initramfs_debs: Path
    guest_debs: Path
    appliance_debs: Path
    cache_dir: str
    mirror: str
    snapshot: str
    kept: Kept | None = None

    def write(self, release: Path | None) -> None:
        """Fetch what ``lock`` pins; write the package directories, and unless it is None the tree ``release``.

        Raises :class:`UserError` before anything is replaced.
        """
        with fetching() as fetched:
            packages(
                lock=self.lock,
                sets=project_sets(
                    tools=self.tools, initramfs=self.initramfs, guest=self.guest, appliance=self.appliance
                ),
                release=release,
                debs={"initramfs": self.initramfs_debs, "guest": self.guest_debs, "appliance": self.appliance_debs},
                cache_dir=Path(self.cache_dir),
                mirror=self.mirror,
                snapshot=self.snapshot,
                progress=fetched,
                kept=self.kept,
                note=progress.remark,
            )


def make_packages(*, release: Path, **given: Any) -> None:
    """Fetch all packages that the lock pins; write the ``release`` tree and the package directories.

    ``given`` are the fields of :class:`Pinned`.
    """
    Pinned(**given).write(release)


@contextmanager
def fetching(what: str = "fetching packages") -> Iterator[Progress]:
    """Show the bytes and files of all downloads."""
    with progress.amount(what) as shown:

        def at(size: int, sizes: int, files: int, of: int) -> None:
            shown.at(size, sizes)
            shown.what = f"{what}, {files} of {of}"

        yield at


def update_lock(
    *,
    tools: Path,
    initramfs: Path,
    guest: Path,
    appliance: Path,
    mirror: str,
    output: Path,
    cache_dir: str,
    snapshot: str,
    only: str = "",
) -> None:
    """Resolve the four lists anew, or only ``only`` and its dependencies; write ``output``, print the changes."""
    sets = project_sets(tools=tools, initramfs=initramfs, guest=guest, appliance=appliance)
    refresh_lock(sets=sets, mirror=mirror, output=output, only=only, cache_dir=Path(cache_dir), snapshot=snapshot)


def make_compiler(
    *,
    lock: Path,
    tools: Path,
    cache_dir: str,
    mirror: str,
    snapshot: str,
    debs: Path,
    kept: Kept | None = None,
) -> None:
    """Fetch the compiler's packages into ``debs``: those that ``lock`` pins for the list ``tools``.

    Raises :class:`UserError`.
    """
    compiler = [asked for asked in read_sets(tools) if asked.name == COMPILER]
    wanted = checked_lock(lock, compiler).packages(COMPILER)
    with fetching() as fetched:
        files = locked_files(
            read_lock(lock),
            wanted,
            cache_dir=Path(cache_dir),
            mirror=mirror,
            snapshot=snapshot,
            progress=fetched,
            kept=kept,
            note=progress.remark,
        )
    export_debs(name=COMPILER, debs=files, output=debs)


def make_edk2(
    *, source_lock: Path, cache_dir: str, mirror: str, snapshot: str, sources: Path, kept: Kept | None = None
) -> None:
    """Fetch edk2's source, which ``source_lock`` pins, into ``sources``. Raises :class:`UserError`."""
    with fetching() as fetched:
        archives = _source_files(source_lock, cache_dir, mirror, snapshot, fetched, kept)
    export_files(name=EDK2, files=archives, output=sources)


def _source_files(
    path: Path, cache_dir: str, mirror: str, snapshot: str, fetched: Progress, kept: Kept | None
) -> dict[Package, Path]:
    """edk2's source archives. Other remedies than for packages: no task pins them anew."""
    try:
        lock = read_lock(path)
        wanted = lock.packages(EDK2)
    except UserError as error:
        raise UserError(error.message, f"restore it: git checkout {path}") from error
    try:
        files = locked_files(
            lock, wanted, cache_dir=Path(cache_dir), mirror=mirror, snapshot=snapshot, progress=fetched, kept=kept
        )
    except UserError as error:
        if REFRESH not in error.hint:
            raise
        raise UserError(
            error.message,
            "do not set FIRMWARE=source, or name a snapshot mirror in config.yaml: "
            'snapshot_mirror: "https://HOST/archive/debian/@SNAPSHOTID@"',
        ) from error
    if kept:
        kept.keep(files)
    return files


def pack_sources(*, locks: Sequence[Path], cache_dir: str, mirror: str, snapshot: str, output: Path) -> None:
    """Put every file that ``locks`` pin into the tar ``output``; write its SHA-256 beside it, for sha256sum -c."""
    files: dict[Package, Path] = {}
    for path in locks:
        lock = read_lock(path)
        wanted = [package for locked in lock.sets.values() for package in locked.packages]
        with fetching() as fetched:
            files |= locked_files(
                lock, wanted, cache_dir=Path(cache_dir), mirror=mirror, snapshot=snapshot, progress=fetched
            )
    size = sum({package.sha256: package.size for package in files}.values())
    with progress.amount("packing", size) as packed, scratch_directory(output) as scratch:
        new = scratch / output.name
        digest = write_archive(files, new, packed)
        new.chmod(0o644)
        new.replace(output)
    write_atomic(output.with_name(f"{output.name}.sha256"), f"{digest}  {output.name}\n")
    print(f"{output}: {len({*files.values()})} packages, SHA-256 {digest}")
    print(f"to take packages from it: ./doitw e2e MIRROR={output}")


def make_kernel(*, release: Path, output: Path, deb: Path | None = None) -> None:
    """Unpack ``deb``, or the one kernel package of the release tree."""
    if deb is None:
        found = sorted((release / "linux" / "guest").glob("linux-image-*.deb"))
        if len(found) != 1:
            raise UserError(f"{release}/linux/guest: found {len(found)} linux-image packages, expected one")
        deb = found[0]
    unpack_kernel(deb=deb, output=output)
