# SPDX-License-Identifier: Apache-2.0
"""The digest index and the cache settings of one run: set up once, opened at the first use."""

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
    """The settings of the artefact cache: directory, ``off`` or address of the shared cache, limit in bytes.

    ``signing`` is the private key that signs pushed entries. ``accepted`` is the public key that must have signed
    entries from the shared cache.
    """

    directory: Path
    shared: str = ""
    push: bool = False
    limit: int = 20 << 30
    signing: Path | None = None
    accepted: Path | None = None


_options: list[Options] = []


def configure(options: Options) -> None:
    """Set the options, before any other function of this module is called."""
    _options[:] = [options]


def options() -> Options:
    return _options[0]


@functools.cache
def index() -> Index:
    """The digest index. If its database cannot be used, it works in memory, which only costs time."""
    place = options().directory if _options else None
    # Other users with write access could hide a change.
    usable = place is not None and (is_private(place) if place.exists() else True)
    found = Index(place / "digests.db" if place and usable else None)
    atexit.register(found.close)
    return found


@functools.cache
def started_ns() -> int:
    """When this process started, in nanoseconds of the wall clock, at most 30 ms too late.

    No project module is loaded within that time: a source that has not changed since then is the one that was loaded.
    """
    # proc(5): field 22 of stat, in clock ticks since boot; the fields before it begin after the name in parentheses.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time_ns() - int(age * 1e9) + 20_000_000
