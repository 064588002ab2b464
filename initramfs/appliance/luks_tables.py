# SPDX-License-Identifier: Apache-2.0
"""The job `luks_tables`: the device-mapper tables of a volume that exists, as the guest's kernel has them.

To open it replays its journal: the disk is to be one whose changes are thrown away.
"""

from collections.abc import Callable
from typing import Any

import linux
from appliance.luks import INTEGRITY, NAME, opened, table
from dm_tables import tables_digest

MODULES = ("luks",)


def run(job: "dict[str, Any]", secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    """Open the volume on the disk ``luks``; returns the digest of its tables, and the tables themselves."""
    (disk,) = linux.find_disks("luks")
    say(step="opening the volume")
    with opened(disk, secret):
        crypt, integrity = table(NAME), table(INTEGRITY)
    return {"tables": tables_digest(crypt, integrity), "crypt": crypt, "integrity": integrity}
