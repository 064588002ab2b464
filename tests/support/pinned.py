# SPDX-License-Identifier: Apache-2.0
"""Pinned packages that only tests need, from the user's cache or fetched into it.

A set is a list in tests/data with its lock beside it. `python -m tests.support.pinned NAME [MIRROR]` pins it anew.
"""

import os
import sys
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sevsnp.archives.tar import Entry, read_tar
from sevsnp.packages.pipeline import checked_lock, locked_files, refresh_lock
from sevsnp.packages.sets import PackageSet, read_set
from sevsnp.packages.unpack import unpack_deb
from sevsnp.settings.resolved import resolve
from sevsnp.system.command import run
from tests.conftest import PROJECT

DATA = PROJECT / "tests" / "data"


@dataclass(frozen=True)
class PinnedSet:
    """The packages that ``tests/data/NAME-packages.yaml`` names, as the lock pins them. None is installed."""

    name: str

    @property
    def list_file(self) -> Path:
        return DATA / f"{self.name}-packages.yaml"

    @property
    def lock_file(self) -> Path:
        return self.list_file.with_suffix(".lock")

    def asked(self) -> PackageSet:
        return read_set(self.list_file, self.name)

    def packages(self, without: Collection[str] = ()) -> list[Path]:
        """The packages' files, but for those named in ``without``."""
        lock = checked_lock(self.lock_file, [self.asked()])
        settings = resolve({}, os.environ, PROJECT / "config.yaml")
        files = locked_files(
            lock,
            [package for package in lock.packages(self.name) if package.name not in without],
            cache_dir=settings.cache_dir(),
            mirror=settings.text("MIRROR"),
            snapshot=settings.text("SNAPSHOT_MIRROR"),
        )
        return list(files.values())

    def unpack(self, root: Path) -> None:
        """Unpack all below ``root``."""
        for deb in self.packages():
            unpack_deb(deb, root)

    def entries(self, directory: Path) -> dict[str, Entry]:
        """The packages' files by path, for a root file system; no script of a package runs.

        ``directory``, which is made if it is absent, keeps the files' bytes.
        """
        entries: dict[str, Entry] = {}
        directory.mkdir(exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=directory))
        for deb in self.packages():
            tar = place / f"{deb.name}.tar"
            tar.write_bytes(run(["dpkg-deb", "--fsys-tarfile", deb]))
            entries |= read_tar(tar)
        entries.pop("", None)
        return entries

    def pin(self, mirror: str) -> None:
        """Write the lock anew."""
        refresh_lock(sets=[self.asked()], mirror=mirror, output=self.lock_file)


if __name__ == "__main__":
    PinnedSet(sys.argv[1]).pin("".join(sys.argv[2:3]))
