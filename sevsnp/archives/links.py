# SPDX-License-Identifier: Apache-2.0
"""Paths inside a root that is somewhere else, as one would follow them who has it as the root.

Standard library only, and no other module: the appliance has this one file under its bare name.
"""

import errno
import os
from collections.abc import Callable

_LINKS = 40


def follow(path: str, target: "Callable[[str], str | None]", *, last: bool = True) -> str:
    """``path`` without symbolic links, relative to the root; that of its last name is followed only if ``last``.

    ``target`` says where the link leads that a path without links is; None where it is none. Raises OSError for links
    that lead in a circle.
    """
    left = path.split("/")[::-1]
    place: list[str] = []
    links = 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            place = place[:-1]
            continue
        leads = target("/".join((*place, part))) if last or left else None
        if leads is None:
            place.append(part)
            continue
        links += 1
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        place = [] if leads.startswith("/") else place
        left += leads.split("/")[::-1]
    return "/".join(place)
