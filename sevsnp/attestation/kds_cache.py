# SPDX-License-Identifier: Apache-2.0
"""The cache for certificates from AMD's service: a directory of the user's own, with only complete files."""

import contextlib
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from sevsnp.errors import UserError

_MAX_FILE = 1 << 20
# Seconds for which a failed question is not asked again. So a service that is down costs its time-out once, and not
# once in each verification.
FORGET = 900.0
# What this process remembers, by the cache's directory, the service and the object: the time, and the problem.
_failed: dict[tuple[Path, str, str], tuple[float, str]] = {}


def default_directory() -> Path:
    """The user's cache directory (XDG)."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "openend2e-sevsnp" / "kds"


@dataclass(frozen=True, eq=False)
class Cache:
    """Files by name in ``directory`` (0700). If the cache cannot be written, requests take longer but still succeed."""

    directory: Path

    def find(self, name: str) -> tuple[bytes, float]:
        """The content of the file ``name``, empty if there is no such file, and its age in seconds."""
        try:
            self._mine()
            path = self.directory / name
            with path.open("rb") as stream:
                return stream.read(_MAX_FILE), max(0.0, time.time() - path.stat().st_mtime)
        except OSError:
            return b"", 0.0

    def keep(self, name: str, data: bytes) -> None:
        """Write ``data`` to the file ``name`` atomically."""
        from sevsnp.system.files import write_atomic

        with contextlib.suppress(OSError):
            self._mine()
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self.directory / name, data, mode=0o600)

    def _mine(self) -> None:
        """Refuse a directory that belongs to another user, or that other users can write to."""
        try:
            status = self.directory.stat()
        except FileNotFoundError:
            return
        if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
            raise UserError(
                f"{self.directory}: others can write to the certificate cache",
                f"run: chmod 700 {quote(str(self.directory))}",
            )


@dataclass(frozen=True, eq=False)
class Failures:
    """Questions to the service at ``base`` that failed, for objects that no policy demands.

    They are remembered in this process, and in the cache for other processes.
    """

    cache: Cache
    base: str

    def remember(self, name: str, problem: str) -> None:
        """The service did not give the object ``name``; ``problem`` says why, in one line."""
        _failed[self._key(name)] = time.monotonic(), problem
        self.cache.keep(f"{name}.failed", f"{self.base}\n{problem}\n".encode())

    def recall(self, name: str) -> str:
        """Why the service is not asked for the object ``name`` now; empty if it may be asked."""
        since, problem = _failed.get(self._key(name), (0.0, ""))
        if problem and time.monotonic() - since < FORGET:
            return f"{problem} (not asked again for {_minutes()})"
        data, age = self.cache.find(f"{name}.failed")
        base, _, rest = data.decode(errors="replace").partition("\n")
        problem = "".join(rest.splitlines()[:1])[:500]
        return f"{problem} (not asked again for {_minutes()})" if problem and base == self.base and age < FORGET else ""

    def _key(self, name: str) -> tuple[Path, str, str]:
        return self.cache.directory, self.base, name


def _minutes() -> str:
    return f"{FORGET / 60:.0f} minutes after a failure"
