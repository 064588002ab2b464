# SPDX-License-Identifier: Apache-2.0
"""The step `packages` with PACKAGES_SOURCE=release: build/snp-release from an archive, the rest from the lock."""

from pathlib import Path
from typing import Any

from sevsnp.packages.release_archive import unpack_release
from sevsnp.packages.release_file import find_release
from sevsnp.packages.steps import Pinned, fetching


def make_packages_from_release(*, release: Path, place: str, sha256: str, **given: Any) -> None:
    """Write ``release`` from the archive at ``place`` (a path or URL), and the package directories from the lock.

    ``sha256`` is the archive's digest (64 hex digits); ``given`` are the fields of :class:`Pinned`. Raises
    :class:`UserError` before anything is replaced.
    """
    pinned = Pinned(**given)
    with fetching("fetching the release") as fetched:
        archive = find_release(place, sha256, Path(pinned.cache_dir), fetched)
    pinned.write(None)
    unpack_release(archive=archive, sha256=sha256, output=release)
