# SPDX-License-Identifier: Apache-2.0
"""Fetches a file that the user names by URL and SHA-256: resumed like a package, and kept only if it matches."""

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from urllib3.exceptions import HTTPError

from sevsnp.errors import UserError
from sevsnp.packages import hostapt
from sevsnp.packages.connections import Connections, DroppedError, StatusError
from sevsnp.packages.download import Meter, MismatchError, Progress, Remote, alone, download
from sevsnp.packages.lock import Package
from sevsnp.system.files import sha256_file

MOST = 64 << 30
_NETWORK = "check the network, the proxy settings and the address"


def fetch_by_digest(uri: str, sha256: str, *, cache_dir: Path, progress: Progress | None = None) -> Path:
    """The file at ``uri`` (http or https) in the cache, whose SHA-256 is ``sha256`` (lower-case hex).

    A file that is there already is checked again, and needs no network. Raises UserError for another scheme, a server
    that does not say how long the file is, network trouble, and a file with another digest, which is removed.
    """
    shown = hidden(uri)
    if urlsplit(uri).scheme not in ("http", "https"):
        raise UserError(f"{shown}: expected an address that begins with http:// or https://")
    name = PurePosixPath(unquote(urlsplit(uri).path)).name or "file"
    target = cache_dir / "files" / sha256 / re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:200].lstrip(".")
    if target.is_file() and sha256_file(target) == sha256:
        return target
    connections = Connections(hostapt.configuration(), 1)
    try:
        size = _size(uri, connections)
        file = Package(name, "", "", "", name, size, sha256)
        meter = Meter(size, 1, progress)
        with alone(target.parent, meter):
            download(file, Remote(uri, connections), target, meter)
    except MismatchError:
        raise UserError(
            f"{shown}: not the file with SHA-256 {sha256}: what came was removed", "give the digest that its maker says"
        ) from None
    except DroppedError:
        raise UserError(f"{shown}: the server has no such file", _NETWORK) from None
    except (HTTPError, OSError, StatusError) as error:
        raise UserError(f"{shown}: cannot be fetched: {error}".replace(uri, shown), _NETWORK) from error
    except UserError as error:
        raise UserError(error.message.replace(uri, shown), _NETWORK) from error
    finally:
        connections.close()
    return target


def hidden(uri: str) -> str:
    """The address without a login, for messages."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _size(uri: str, connections: Connections) -> int:
    """The file's length in bytes. Its content is not read here."""
    with connections.get(uri, {}) as response:
        said = response.headers.get("Content-Length", "")
    if not re.fullmatch("[0-9]{1,12}", said) or not 0 < int(said) <= MOST:
        raise UserError(f"{hidden(uri)}: found the length {said or 'unknown'}, expected 1 byte to {MOST >> 30} GiB")
    return int(said)
