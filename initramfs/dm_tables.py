# SPDX-License-Identifier: Apache-2.0
"""The active device-mapper tables of an encrypted root as one digest: what is measured and what the guest compares.

A table says all of what the kernel does with a disk: cipher, integrity, sizes, offsets, optional parameters. The
appliance takes the digest when it has written the image, init when it has opened it, before anything is mounted.
"""

import hashlib
import re

# dmsetup shows devices as major:minor words, which depend on the order in which the kernel found them.
_NUMBER = re.compile(r"[0-9]+:[0-9]+")


def canonical(table: str) -> str:
    """What ``dmsetup table NAME`` printed, with ``dev`` for each device number: one line with a newline at its end.

    Keys are not in it: dmsetup shows zeros in their place unless told otherwise. Raises ValueError for anything but
    one line, since a mapping of several targets is none of ours.
    """
    lines = table.splitlines()
    if len(lines) != 1 or not lines[0].strip():
        raise ValueError(f"found {len(lines)} lines, expected one target")
    return " ".join("dev" if _NUMBER.fullmatch(word) else word for word in lines[0].split()) + "\n"


def tables_digest(crypt: str, integrity: str) -> str:
    """SHA-256, as 64 lower-case hex digits, of the canonical tables of the crypt and of the integrity mapping."""
    return hashlib.sha256((canonical(crypt) + canonical(integrity)).encode("ascii")).hexdigest()
