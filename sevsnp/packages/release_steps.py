# SPDX-License-Identifier: Apache-2.0
"""The step `packages` with PACKAGES_SOURCE=release: build/snp-release from an archive, the rest from the lock."""

from pathlib import Path

from sevsnp.packages.fetch import Kept
from sevsnp.packages.pipeline import packages, project_sets
from sevsnp.packages.release_archive import unpack_release
from sevsnp.packages.release_file import find_release
from sevsnp.packages.steps import fetching
from sevsnp.system import progress


def make_packages_from_release(
    *,
    lock: Path,
    tools: Path,
    initramfs: Path,
    guest: Path,
    appliance: Path,
    cache_dir: str,
    mirror: str,
    snapshot: str,
    release: Path,
    initramfs_debs: Path,
    guest_debs: Path,
    appliance_debs: Path,
    place: str,
    sha256: str,
    kept: Kept | None = None,
) -> None:
    """Write ``release`` from the archive at ``place`` (a path or URL), and the package directories from ``lock``.

    ``sha256`` is the archive's digest (64 hex digits). Raises :class:`UserError` before anything is replaced.
    """
    with fetching("fetching the release") as fetched:
        archive = find_release(place, sha256, Path(cache_dir), fetched)
    with fetching("fetching packages") as fetched:
        packages(
            lock=lock,
            sets=project_sets(tools=tools, initramfs=initramfs, guest=guest, appliance=appliance),
            release=None,
            debs={"initramfs": initramfs_debs, "guest": guest_debs, "appliance": appliance_debs},
            cache_dir=Path(cache_dir),
            mirror=mirror,
            snapshot=snapshot,
            progress=fetched,
            kept=kept,
            note=progress.remark,
        )
    unpack_release(archive=archive, sha256=sha256, output=release)
