# SPDX-License-Identifier: Apache-2.0
"""How long a program may take that reads or writes an image: settings allow images of terabytes."""

from sevsnp.system.command import DEFAULT_TIMEOUT

# Bytes per second: encryption in an emulated guest on a slow disk, and as much again.
SLOWEST = 2 << 20


def seconds_for(size: int, least: float = DEFAULT_TIMEOUT) -> float:
    """The time limit in seconds for work on ``size`` bytes: ``least``, and more for each byte."""
    return least + size / SLOWEST
