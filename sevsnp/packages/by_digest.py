# SPDX-License-Identifier: Apache-2.0
"""Fetches a file that the user names by URL and SHA-256: resumed like a package, and kept only if it matches."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from urllib3.exceptions import HTTPError

from sevsnp.errors import UserError
from sevsnp.packages import download as downloading
from sevsnp.packages import hostapt
from sevsnp.packages.connections import Connections, DroppedError, StatusError
from sevsnp.packages.download import Meter, MismatchError, Progress, Remote, UnreachableError, alone, words_of
from sevsnp.packages.lock import Package
from sevsnp.system.files import sha256_file
from sevsnp.system.logins import without_login

# Bytes.
LARGEST = 64 << 30
DIGEST = "give the URL of the right file, and the SHA-256 that its publisher states"


def fetch_by_digest(
    setting: str, uri: str, sha256: str, *, cache_dir: Path, progress: Progress | None = None, largest: int = LARGEST
) -> Path:
    """The file at ``uri`` (http or https) in the cache, whose SHA-256 is ``sha256`` (lower-case hex).

    ``setting`` is the name of the setting that has the URL. A file that is there already is checked again, and needs
    no network. Raises UserError for another scheme, for a server that does not say how long the file is, for more than
    ``largest`` bytes, for network trouble, and for a file with another digest, which is removed.
    """
    shown = f"{setting}={without_login(uri)}"
    if urlsplit(uri).scheme not in ("http", "https"):
        raise UserError(f"{shown}: expected a path, or a URL that begins with http:// or https://")
    # The name in the URL is the server's; it plays no part in a path.
    target = cache_dir / "files" / sha256 / "content"
    with alone(target.parent, Meter(0, 1, None)):
        if target.is_file() and sha256_file(target) == sha256:
            return target
        target.unlink(missing_ok=True)
        connections = Connections(hostapt.configuration(), 1)
        try:
            size = _size(uri, connections)
            if not 0 < size <= largest:
                raise UserError(f"{shown}: found the size {size or 'unknown'}, expected at most {largest} bytes")
            file = Package(setting, "", "", "", target.name, size, sha256)
            downloading.download(file, Remote(uri, connections), target, Meter(size, 1, progress))
        except DroppedError:
            raise UserError(f"{shown}: the server does not have this file", DIGEST) from None
        except MismatchError as error:
            raise UserError(f"{shown}: found SHA-256 {error.found}, expected {sha256}; removed", DIGEST) from error
        except (HTTPError, OSError, StatusError, UnreachableError) as error:
            reason = words_of(error.__cause__ or error)
            raise UserError(
                f"{shown}: cannot be fetched: {reason}", f"check the network, the proxy settings or {setting}"
            ) from error
        finally:
            connections.close()
    return target


def _size(uri: str, connections: Connections) -> int:
    """The file's size in bytes, as the server states it; 0 if it states none. A wrong one makes the download fail."""
    waiting = Meter(0, 1, None)
    for attempt in range(1, downloading.ATTEMPTS + 1):
        try:
            # Not HEAD: an address that a server has signed is often valid for GET alone. The body is not read.
            with connections.get(uri, {}) as response:
                text = response.headers.get("Content-Length", "")
            return int(text) if re.fullmatch("[0-9]{1,18}", text) else 0
        except (HTTPError, OSError, StatusError) as error:
            if attempt == downloading.ATTEMPTS or (isinstance(error, StatusError) and error.final):
                raise
        waiting.wait(attempt)
    raise AssertionError("the last attempt ends above")
