# SPDX-License-Identifier: Apache-2.0
"""The job `luks_tables`: the device-mapper tables of an existing volume, as the guest's kernel has them.

Opening the volume replays its journal: the changes of the given disk must be thrown away afterwards.
"""

from collections.abc import Callable
from typing import Any

import linux
from appliance.luks import INTEGRITY, NAME, opened, table
from dm_tables import tables_digest

MODULES = ("luks",)


def run(job: "dict[str, Any]", secret: bytes, say: "Callable[..., None]") -> "dict[str, Any]":
    """Open the volume on the disk ``luks``. Returns the digest of its tables, and the tables themselves."""
    (disk,) = linux.find_disks("luks")
    say(step="opening the volume")
    with opened(disk, secret):
        crypt, integrity = table(NAME), table(INTEGRITY)
    return {"tables": tables_digest(crypt, integrity), "crypt": crypt, "integrity": integrity}
