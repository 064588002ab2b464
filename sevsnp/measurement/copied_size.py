# SPDX-License-Identifier: Apache-2.0
"""Checks that a verified guest's writable directories have the memory for what is copied at boot (WRITABLE=copy)."""

import json
from collections.abc import Mapping
from pathlib import Path

from sevsnp.errors import UserError

_MIB = 1 << 20


def check_copied_sizes(sizes: Path, tmpfs: Mapping[str, int]) -> None:
    """Raises UserError if a directory's content does not fit into its tmpfs; ``tmpfs`` has bytes by directory."""
    for name, size in json.loads(sizes.read_text()).items():
        if size > tmpfs[name]:
            setting = f"TMPFS_{name.upper()}"
            raise UserError(
                f"{setting}: found {-(-tmpfs[name] // _MIB)}M, but /{name} has {-(-size // _MIB)}M, which WRITABLE=copy"
                " puts there at each boot",
                f"take more: {setting}={-(-size * 5 // 4 // _MIB) + 16}M; or WRITABLE=overlay, which copies nothing",
            )
