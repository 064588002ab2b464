# SPDX-License-Identifier: Apache-2.0
"""The user ids that an ordinary user may use in a user namespace: /etc/subuid and /etc/subgid."""

import os
import pwd
import re
from pathlib import Path

from sevsnp.errors import UserError

FILES = (Path("/etc/subuid"), Path("/etc/subgid"))


def check_subordinate_ids(number: int | None = None) -> None:
    """Raises UserError if the user (of this process, or with that number) has no such range; root needs none."""
    number = os.geteuid() if number is None else number
    if number == 0:
        return
    try:
        user = pwd.getpwuid(number).pw_name
    except KeyError:
        user = str(number)
    for file in FILES:
        lines = file.read_text().splitlines() if file.exists() else []
        if not any(line.split(":")[0] in (user, str(number)) for line in lines):
            raise UserError(
                f"{file}: no range of subordinate ids for {user}, expected one of 65536",
                f"run as root: usermod --add-subuids {free_ids()} --add-subgids {free_ids()} {user}",
            )


def free_ids() -> str:
    """A range of 65536 subordinate ids above all ranges in use. A range must not belong to two users."""
    text = "\n".join(file.read_text() for file in FILES if file.exists())
    ranges = re.findall(r"^[^:\n]+:([0-9]+):([0-9]+)$", text, re.MULTILINE)
    first = max([100000, *(int(start) + int(count) for start, count in ranges)])
    return f"{first}-{first + 65535}"
