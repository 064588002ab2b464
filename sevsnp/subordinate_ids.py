"""The user ids that an ordinary user may give away in a user namespace: /etc/subuid and /etc/subgid."""

import os
import pwd
from pathlib import Path

from sevsnp.errors import UserError

FILES = (Path("/etc/subuid"), Path("/etc/subgid"))


def check_subordinate_ids() -> None:
    """Raises UserError where this user has no range of them; root needs none."""
    number = os.geteuid()
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
                f"as root, run: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
            )
