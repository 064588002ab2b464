# SPDX-License-Identifier: Apache-2.0
"""The address of a shared cache, ``oci://host[:port]/repository``, and the ways in which the cache can fail."""

import ipaddress
import re
from dataclasses import dataclass

from sevsnp.errors import UserError
from sevsnp.system.logins import without_login

# Repository names as the OCI distribution specification defines them; hosts as names or addresses, always in lower
# case.
_REFERENCE = re.compile(
    r"oci://(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"/(?P<repository>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
)
_LONGEST = 255
_WORDS = 200


class Unavailable(Exception):
    """The registry cannot be used now: it is unreachable, too slow, refuses us, or does not speak its protocol."""


class Refused(Unavailable):
    """The registry answers and refuses this request; it may accept another one."""


class Tampered(Exception):
    """Received data does not match its digest or size."""


@dataclass(frozen=True)
class Reference:
    """A repository. ``scheme`` is https, or http for a loopback host; ``host`` contains ``:port`` if one was given."""

    scheme: str
    host: str
    repository: str

    @property
    def base(self) -> str:
        """The base URL of the repository's manifests and blobs."""
        return f"{self.scheme}://{self.host}/v2/{self.repository}"

    @property
    def logins(self) -> tuple[str, ...]:
        """The names under which `docker login` keeps a login for it."""
        return (self.host,)

    def __str__(self) -> str:
        return f"oci://{self.host}/{self.repository}"


def parse_reference(text: str) -> Reference:
    """Read ``oci://host[:port]/repository``: https, and http for loopback hosts only.

    Raises :class:`UserError` for anything else: user names, tags, digests, upper case.
    """
    match = _REFERENCE.fullmatch(text)
    if not match or len(match["repository"]) > _LONGEST or not _is_host(match["host"]) or not _is_port(match["port"]):
        raise UserError(
            f"cache: found {clean(without_login(text))!r}, expected oci://host/repository or oci://host:port/repository",
            "lower case, without tag, digest or user name; logins are taken from ~/.docker/config.json",
        )
    host = match["host"] if match["port"] is None else f"{match['host']}:{match['port']}"
    return Reference("http" if is_loopback(match["host"]) else "https", host, match["repository"])


def is_loopback(host: str) -> bool:
    """Whether ``host`` (without port) is this machine: 127.0.0.0/8, ::1 or localhost; no other spelling counts."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return address in _LOOPBACK if address.version == 4 else address == ipaddress.IPv6Address("::1")


_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")


def clean(text: str, longest: int = _WORDS) -> str:
    """Foreign text for one of our messages: one line, printable, and short."""
    printable = "".join(character if character.isprintable() else " " for character in text[: 8 * longest])
    words = " ".join(printable.split())
    return words if len(words) <= longest else f"{words[: longest - 1]}…"


def _is_host(host: str) -> bool:
    if not host.startswith("["):
        return ".." not in host and ".-" not in host and "-." not in host
    try:
        return ipaddress.ip_address(host[1:-1]).version == 6
    except ValueError:
        return False


def _is_port(port: str | None) -> bool:
    return port is None or 0 < int(port) < 1 << 16
