# SPDX-License-Identifier: Apache-2.0
"""Pinned packages of a test's own list, from the user's cache or fetched into it."""

import os
from pathlib import Path

from sevsnp.packages.pipeline import checked_lock, locked_files
from sevsnp.packages.sets import PackageSet
from sevsnp.settings.resolved import resolve
from tests.conftest import PROJECT


def pinned_packages(lock_file: Path, asked: PackageSet) -> list[Path]:
    """The packages of ``asked`` as ``lock_file`` pins them."""
    lock = checked_lock(lock_file, [asked])
    settings = resolve({}, os.environ, PROJECT / "config.yaml")
    files = locked_files(
        lock,
        lock.packages(asked.name),
        cache_dir=settings.cache_dir(),
        mirror=settings.text("MIRROR"),
        snapshot=settings.text("SNAPSHOT_MIRROR"),
    )
    return list(files.values())
