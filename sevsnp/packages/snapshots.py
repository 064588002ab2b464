# SPDX-License-Identifier: Apache-2.0
"""Finds pinned versions that the mirror has dropped: a snapshot mirror has every version that was ever published.

SNAPSHOT_MIRROR names one. Without this setting, the address is searched for on this machine: apt 3 has the addresses of
Debian's snapshots among its settings, and Debian's container images have them as comments in the list of sources. If
the machine's own apt is older, Debian's current apt package is read. Downloads from a snapshot are checked like any
other download.
"""

import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.packages import KEYRING, hostapt
from sevsnp.packages.deb import open_content
from sevsnp.packages.fetch import fetch
from sevsnp.packages.lock import DEBIAN, SECURITY, Lock, Package
from sevsnp.packages.resolve import PrivateApt
from sevsnp.packages.sources import Sources, beside, clean_uri, find_keyring
from sevsnp.system.command import temporary_directory

OFF = "off"
# The placeholder for the time of a snapshot in apt's own settings.
TIME = "@SNAPSHOTID@"
_BUILT_IN = re.compile(rb"https?://[\w.:/-]+/debian/@SNAPSHOTID@")


class Snapshots:
    """The snapshot mirror for the packages in ``lock``; ``setting`` is SNAPSHOT_MIRROR. The first use looks it up."""

    def __init__(self, setting: str, lock: Lock, keyring: Path = KEYRING) -> None:
        self._setting = setting if setting in ("", OFF) else clean_uri(setting, "SNAPSHOT_MIRROR")
        self._lock, self._keyring = lock, keyring
        self._looking = threading.Lock()
        self._known: Mapping[str, tuple[str, ...]] | None = None
        # The packages that the mirror had dropped and that came from a snapshot.
        self.served: list[Package] = []

    def bases(self, package: Package, sources: Sources) -> list[str]:
        """Where ``package`` may be, as URIs that end before its path; empty if no snapshot mirror is known."""
        with self._looking:
            if self._known is None:
                self._known = self._find(sources)
        times = _times(self._lock.dates(package))
        found = []
        for base in self._known.get(package.archive, ()):
            found += [base.replace(TIME, time) for time in times] if TIME in base else [base]
        return found

    def pinned(self, package: Package) -> str:
        """The date at which ``package`` was pinned, to follow its version in a message."""
        dates = self._lock.dates(package)
        return f" (pinned {dates[-1][:10]})" if dates else ""

    def advice(self, sources: Sources) -> str:
        """Another hint for a version that no source has; empty if the user has set a snapshot mirror."""
        if self._setting or sources.archive:
            return ""
        return f', or name a snapshot mirror in config.yaml: snapshot_mirror: "https://HOST/archive/debian/{TIME}"'

    def _find(self, sources: Sources) -> Mapping[str, tuple[str, ...]]:
        if self._setting == OFF:
            return {}
        if self._setting:
            return {DEBIAN: (self._setting,), SECURITY: (beside(self._setting), self._setting)}
        if sources.archive or sources.main.startswith("file:"):
            return {}  # a user with a local mirror wants no other
        main, security = hostapt.find_snapshots(dict(sources.settings))
        main = main or self._built_in(sources)
        if not main:
            return {}
        origin = "apt's snapshots"
        return {DEBIAN: (clean_uri(main, origin),), SECURITY: (clean_uri(security or beside(main), origin),)}

    def _built_in(self, sources: Sources) -> str:
        """The main archive's snapshots that the current apt of the locked suite has built in; empty if it has none."""
        suites = sorted({locked.suite for locked in self._lock.sets.values() if locked.security})
        with suppress(UserError), temporary_directory("sevsnp-apt.") as root:
            root.chmod(0o755)  # apt drops root's rights to fetch, and still needs access
            apt = PrivateApt.make(root, sources, find_keyring(self._keyring), suites[-1], security=False)
            names = [name for name in apt.cache("pkgnames", "libapt-pkg").split() if re.search(r"pkg[0-9.]+$", name)]
            packages = apt.parse_uris(apt.get("download", "--print-uris", *names))
            for file in fetch(packages, cache_dir=root / "debs", sources=lambda: sources).values():
                with open_content(file) as tar:
                    for member in tar:
                        content = tar.extractfile(member) if member.isreg() else None
                        if content and (found := _BUILT_IN.search(content.read())):
                            return found[0].decode()
        return ""


def _times(dates: tuple[str, ...]) -> list[str]:
    """The times of the snapshots to ask: first a day after each of ``dates``, then the dates themselves.

    Snapshots are made a few times a day, and a superseded package leaves the archive days later: the later snapshot has
    what the archive had at the date. A time between two snapshots stands for the earlier one.
    """
    known = [datetime.fromisoformat(date) for date in dates]
    return [f"{date + days:%Y%m%dT%H%M%SZ}" for days in (timedelta(1), timedelta(0)) for date in known]
