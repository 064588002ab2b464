# SPDX-License-Identifier: Apache-2.0
"""Finds the archive of a prebuilt build/snp-release: a file of this machine, or one that a server has.

Only the SHA-256 that the user gives decides whether it is the right one. Nothing in the archive is read before.
"""

from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.packages.by_digest import fetch_by_digest
from sevsnp.packages.download import Progress
from sevsnp.system.files import sha256_file

# Bytes. The archive of our own tree has 175 MB.
LARGEST = 4 << 30
GIVE = (
    "name an archive and its digest: "
    "./doitw packages PACKAGES_SOURCE=release PACKAGES_RELEASE=FILE PACKAGES_SHA256=DIGEST"
)


def find_release(place: str, sha256: str, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The archive at ``place``, a path or an http(s) URL, whose SHA-256 is ``sha256`` (64 hex digits).

    Raises :class:`UserError` if a setting is empty, the file is missing, or it has another digest.
    """
    for name, value, expected in (
        ("PACKAGES_RELEASE", place, "the path or URL of a snp-release.tar.gz"),
        ("PACKAGES_SHA256", sha256, "the SHA-256 of that archive"),
    ):
        if not value:
            raise UserError(f"PACKAGES_SOURCE=release: {name} is empty, expected {expected}", GIVE)
    if "://" in place:
        return fetch_by_digest(
            "PACKAGES_RELEASE", place, sha256, cache_dir=cache_dir, progress=progress, largest=LARGEST
        )
    file = Path(place).expanduser()
    if not file.is_file():
        raise UserError(f"PACKAGES_RELEASE={place}: no such file", GIVE)
    if (found := sha256_file(file)) != sha256:
        raise UserError(f"{file}: found SHA-256 {found}, expected PACKAGES_SHA256={sha256}", GIVE)
    return file
