# SPDX-License-Identifier: Apache-2.0
"""Single pinned files in the artefact cache, by their digest alone: a file that an archive has dropped stays available.

Artefacts cannot do that: their keys contain the source of their maker, so each change of it asks for the files anew.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from sevsnp.packages.lock import Package
    from sevsnp.store.entries import Entry

KIND = "pinned file"
OUTPUT = "file"


class PinnedFiles:
    """The pinned files of the run's cache; ``say`` takes warnings. A failing cache never stops a build."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def open(self, package: "Package") -> BinaryIO:
        """The cached file of ``package``. Raises FileNotFoundError if there is none."""
        from sevsnp.store.cache import cache
        from sevsnp.store.local import DamagedError

        expected = _entry(package)
        if store := cache():
            try:
                with store.local.in_use():
                    if store.find(expected.key, self._say) == expected:
                        return store.local.check(*expected.blobs()).open("rb")
            except (OSError, DamagedError) as error:
                self._say(f"{package.deb}: not available from the artefact cache: {error}")
        raise FileNotFoundError(package.deb)

    def keep(self, files: "Mapping[Package, Path]") -> None:
        """Keep ``files`` in the cache, and push them to the shared one if the settings ask for that."""
        from sevsnp.store.cache import cache

        if store := cache():
            for package, path in files.items():
                store.keep(_entry(package), {OUTPUT: path}, self._say)


def _entry(package: "Package") -> "Entry":
    from sevsnp.store.entries import Blob, Entry, File, canonical

    key = hashlib.sha256(canonical([KIND, package.sha256, package.size])).hexdigest()
    return Entry(key, KIND, {OUTPUT: File(Blob(package.sha256, package.size), 0o644)})
