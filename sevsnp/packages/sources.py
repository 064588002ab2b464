# SPDX-License-Identifier: Apache-2.0
"""Finds the sources of Debian packages: the MIRROR setting, else the host's own apt, else mmdebstrap's defaults."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.packages import KEYRING, hostapt
from sevsnp.packages.archive import Archive
from sevsnp.packages.lock import SECURITY
from sevsnp.system.command import run, temporary_directory
from sevsnp.system.command_failed import CommandFailed
from sevsnp.system.logins import without_login

_SCHEMES = ("http", "https", "file", "copy")


@dataclass(frozen=True)
class Sources:
    """The archives to use: ``main`` and ``security`` are URIs without a slash at their end; ``security`` may be empty.

    ``origin`` describes where they were found; ``settings`` are the host's apt settings, for its proxies. ``archive``
    replaces all of them: it is a file with the pinned packages.
    """

    main: str
    security: str
    origin: str
    settings: Mapping[str, str] = field(default_factory=dict)
    archive: Archive | None = None

    def uri(self, archive: str) -> str:
        """The URI of ``debian`` or ``debian-security``.

        If no security archive is known, the one beside the main archive is guessed. Its packages are checked against
        the lock like any other, so a wrong guess only causes an error.
        """
        if archive == SECURITY:
            return self.security or beside(self.main)
        return self.main


def beside(uri: str) -> str:
    """The security archive beside a main one, in the layout of mirrors and snapshots (…/debian-security)."""
    found = re.sub(r"/debian(?=/|$)(?!.*/debian(?:/|$))", "/debian-security", uri)
    return found if found != uri else f"{uri}-security"


def clean_uri(uri: str, where: str) -> str:
    """``uri`` in one spelling: no slash at its end, ``file:/path`` for local ones.

    Raises :class:`UserError` naming ``where`` for an unsupported scheme.
    """
    scheme, colon, rest = uri.partition(":")
    if not colon or scheme not in _SCHEMES or not rest.startswith("/" if scheme in ("file", "copy") else "//"):
        found = without_login(uri)
        raise UserError(
            f"{where}: found {found!r}, expected a URI that begins with http://, https:// or file:/{_or_file(where)}"
        )
    if scheme in ("file", "copy"):
        return f"file:/{rest.lstrip('/')}".rstrip("/")
    return uri.rstrip("/")


def _or_file(where: str) -> str:
    return ", or a file that ./doitw pack_sources made" if where == "MIRROR" else ""


def find_keyring(path: Path = KEYRING) -> Path:
    """The keys of Debian's archives. Raises :class:`UserError` naming the apt package that contains them."""
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, expected the keys of the Debian archive",
            "run: apt-get install debian-archive-keyring",
        )
    return path


def _from_host() -> tuple[str, str]:
    usable = tuple(source for source in hostapt.read_sources() if source.uri.partition(":")[0] in _SCHEMES)
    return hostapt.find_debian(usable)


def ask_mmdebstrap(suite: str) -> tuple[str, str]:
    """The archives that mmdebstrap uses by default for a Debian suite. Needs no network and no privilege.

    mmdebstrap writes its sources.list before anything else, so a setup hook can copy it and stop the run there;
    chrootless mode needs neither root nor user namespaces. Raises :class:`UserError` if there is no list.
    """
    with temporary_directory("sevsnp-sources.") as scratch:
        single, deb822 = scratch / "list", scratch / "sources"
        # The form that mmdebstrap writes depends on its version.
        hook = (
            f'cat "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*.list > {shlex.quote(str(single))}; '
            f'cat "$1"/etc/apt/sources.list.d/*.sources > {shlex.quote(str(deb822))}; exit 1'
        )
        failure: CommandFailed | None = None
        try:
            run(
                [
                    "mmdebstrap",
                    "--mode=chrootless",
                    "--variant=custom",
                    "--format=tar",
                    f"--setup-hook={hook}",
                    suite,
                    "/dev/null",
                ],
                timeout=60,
                hint="run: apt-get install mmdebstrap, or set MIRROR",
            )
        except CommandFailed as error:  # the hook's own exit code, if all went well
            failure = error
        sources = (
            *(hostapt.parse_one_line(single.read_text()) if single.exists() else ()),
            *(hostapt.parse_deb822(deb822.read_text()) if deb822.exists() else ()),
        )
    main = next((source.uri for source in sources if source.suite == suite), "")
    security = next((source.uri for source in sources if source.suite == f"{suite}-security"), "")
    if not main:
        raise UserError(
            "mmdebstrap names no mirror for Debian", "set MIRROR to the URI of a Debian mirror"
        ) from failure
    return main, security


def find_sources(mirror: str = "", suite: str = "trixie") -> Sources:
    """The archives to fetch from.

    ``mirror`` is the MIRROR setting: the URI of a Debian mirror and, after a space, the URI of its security archive; or
    a file that pack_sources made. Raises :class:`UserError` for an unsupported URI, or if no source is found.
    """
    if mirror and (file := Path(mirror).expanduser()).is_file():
        return Sources(main="", security="", origin="MIRROR", archive=Archive(file))
    settings = hostapt.configuration()
    if mirror:
        words = mirror.split()
        if len(words) > 2:
            raise UserError(f"MIRROR: found {len(words)} URIs, expected one, or two: main and security")
        main, security = (*words, "")[:2]
        origin = "MIRROR"
    else:
        main, security = _from_host()
        origin = "the host's apt configuration"
        if not main:
            main, security = ask_mmdebstrap(suite)
            origin = "mmdebstrap's defaults"
    return Sources(
        main=clean_uri(main, origin),
        security=clean_uri(security, origin) if security else "",
        origin=origin,
        settings=settings,
    )
