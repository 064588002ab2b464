# SPDX-License-Identifier: Apache-2.0
"""Finds the archive of a prebuilt build/snp-release: a file of this machine, or one that a server has.

Only the SHA-256 that the user gives decides whether it is the right one. Nothing in the archive is read before.
"""

import re
from pathlib import Path

from urllib3.exceptions import HTTPError

from sevsnp.errors import UserError
from sevsnp.packages import download as downloading
from sevsnp.packages import hostapt
from sevsnp.packages.connections import Connections, DroppedError, StatusError
from sevsnp.packages.download import Meter, MismatchError, Progress, Remote, UnreachableError, alone, words_of
from sevsnp.packages.lock import Package
from sevsnp.system.files import sha256_file

# Bytes. The archive of our own tree has 175 MB.
LARGEST = 4 << 30
GIVE = (
    "name an archive and its digest: "
    "./doitw packages PACKAGES_SOURCE=release PACKAGES_RELEASE=FILE PACKAGES_SHA256=DIGEST"
)
_NETWORK = "check the network, the proxy settings or PACKAGES_RELEASE"


def find_release(place: str, sha256: str, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The archive at ``place``, a path or an http(s) URL, whose SHA-256 is ``sha256`` (64 hex digits).

    A download is resumed, and kept in ``cache_dir``, where the next call finds it without a network. Raises
    :class:`UserError` if a setting is empty, the file is missing, or it has another digest.
    """
    for name, value, expected in (
        ("PACKAGES_RELEASE", place, "the path or URL of a snp-release.tar.gz"),
        ("PACKAGES_SHA256", sha256, "the SHA-256 of that archive"),
    ):
        if not value:
            raise UserError(f"PACKAGES_SOURCE=release: {name} is empty, expected {expected}", GIVE)
    if place.partition("://")[0].lower() in ("http", "https"):
        return _downloaded(place, sha256, cache_dir, progress)
    if "://" in place:
        raise UserError(
            f"PACKAGES_RELEASE={place}: expected a path, or a URL that begins with http:// or https://", GIVE
        )
    file = Path(place).expanduser()
    if not file.is_file():
        raise UserError(f"PACKAGES_RELEASE={place}: no such file", GIVE)
    if (found := sha256_file(file)) != sha256:
        raise _other(str(file), found, sha256)
    return file


def _other(where: str, found: str, expected: str) -> UserError:
    return UserError(f"{where}: found SHA-256 {found}, expected PACKAGES_SHA256={expected}", GIVE)


def _downloaded(url: str, sha256: str, cache_dir: Path, progress: Progress | None) -> Path:
    directory = cache_dir / "releases" / sha256
    # The name in the URL is the server's; it plays no part in a path.
    target = directory / "snp-release.tar.gz"
    with alone(directory, Meter(0, 1, None)):
        if target.is_file() and sha256_file(target) == sha256:
            return target
        target.unlink(missing_ok=True)
        connections = Connections(hostapt.configuration(), 1)
        try:
            size = _size(url, connections, Meter(0, 1, None))
            package = Package("snp-release", "", "amd64", "", target.name, size, sha256)
            downloading.download(package, Remote(url, connections), target, Meter(size, 1, progress))
        except DroppedError:
            raise UserError(f"PACKAGES_RELEASE={url}: the server does not have this file", GIVE) from None
        except MismatchError as error:
            raise _other(f"{url} (removed)", error.found, sha256) from None
        except UnreachableError as error:
            raise UserError(error.message, _NETWORK) from error
        finally:
            connections.close()
    return target


def _size(url: str, connections: Connections, meter: Meter) -> int:
    """The file's size in bytes, as the server states it. A wrong one only makes the download fail.

    Raises :class:`UserError`, and DroppedError if the server does not have the file.
    """
    text = ""
    for attempt in range(1, downloading.ATTEMPTS + 1):
        try:
            # Not HEAD: an address that a server has signed is often valid for GET alone. The body is not read.
            with connections.get(url, {}) as response:
                text = response.headers.get("Content-Length", "")
            break
        except (HTTPError, OSError, StatusError) as error:
            if attempt == downloading.ATTEMPTS or (isinstance(error, StatusError) and error.final):
                raise UserError(f"PACKAGES_RELEASE={url}: cannot be fetched: {words_of(error)}", _NETWORK) from error
        meter.wait(attempt)
    if not re.fullmatch("[0-9]{1,18}", text) or not 0 < int(text) <= LARGEST:
        raise UserError(f"PACKAGES_RELEASE={url}: found the size {text!a}, expected at most {LARGEST}", GIVE)
    return int(text)
