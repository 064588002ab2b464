# SPDX-License-Identifier: Apache-2.0
"""Follows paths and symbolic links inside a root that is not the machine's own root.

Standard library only, and no other module: the appliance has this one file under its bare name.
"""

import errno
import os
from collections.abc import Callable

_LINKS = 40


def follow(path: str, target: "Callable[[str], str | None]", *, last: bool = True) -> str:
    """``path`` without symbolic links, relative to the root; a link in its last name is followed only if ``last``.

    ``target`` returns the target of the link at a path without links, or None if there is no link. Raises OSError for
    the symbolic links form a loop.
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
