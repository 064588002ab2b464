# SPDX-License-Identifier: Apache-2.0
"""What one run knows of digests and caches: set up once, opened when first needed."""

import atexit
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from sevsnp.store.digests import Index, is_private

OFF = "off"


@dataclass(frozen=True)
class Options:
    """The settings of the artefact cache: its directory, ``off`` or where the shared one is, and its limit in bytes.

    ``signing`` is the private key that signs what is pushed, ``accepted`` the public key that must have signed what is
    taken from the shared cache.
    """

    directory: Path
    shared: str = ""
    push: bool = False
    limit: int = 20 << 30
    signing: Path | None = None
    accepted: Path | None = None


_options: list[Options] = []


def configure(options: Options) -> None:
    """Say where things are kept, before anything else of this module is called."""
    _options[:] = [options]


def options() -> Options:
    return _options[0]


@functools.cache
def index() -> Index:
    """The digest index. It goes without its database where that cannot be used, which only costs time."""
    place = options().directory if _options else None
    # Whoever else may write there would decide what has changed.
    usable = place is not None and (is_private(place) if place.exists() else True)
    found = Index(place / "digests.db" if place and usable else None)
    atexit.register(found.close)
    return found


@functools.cache
def started_ns() -> int:
    """When this process started, in nanoseconds of the wall clock, at most 30 ms too late.

    No module of the project is loaded that soon: what has not changed since is what was loaded.
    """
    # proc(5): field 22 of stat, in clock ticks since boot; the fields before it begin after the name in parentheses.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time_ns() - int(age * 1e9) + 20_000_000
