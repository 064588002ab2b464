# SPDX-License-Identifier: Apache-2.0
"""One line of a verdict about a host."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "failed", "unknown", "note"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was found, what an SNP host needs, and how to mend it.

    ``unknown``: it could not be read; ``mend`` then says what shows it. ``note``: information, which never decides.
    ``because`` names the finding that this one follows from.
    """

    name: str
    status: Status
    found: str
    wanted: str = ""
    mend: str = ""
    because: str = ""
