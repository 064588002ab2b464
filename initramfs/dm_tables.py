# SPDX-License-Identifier: Apache-2.0
"""The digest of an encrypted root's active device-mapper tables; it is measured, and the guest compares it.

A table defines everything that the kernel does with a disk: cipher, integrity, sizes, offsets, optional parameters. The
appliance computes the digest after it has written the image. init computes it after it has opened the image, before it
mounts anything.
"""

import hashlib
import re

# dmsetup shows devices as major:minor words; these depend on the order in which the kernel found the devices.
_NUMBER = re.compile(r"[0-9]+:[0-9]+")


def canonical(table: str) -> str:
    """The output of ``dmsetup table NAME``, with ``dev`` for each device number: one line with a newline at its end.

    It contains no keys: by default, dmsetup shows zeros in their place. Raises ValueError for anything but one line,
    because our mappings have only one target.
    """
    lines = table.splitlines()
    if len(lines) != 1 or not lines[0].strip():
        raise ValueError(f"found {len(lines)} lines, expected one target")
    return " ".join("dev" if _NUMBER.fullmatch(word) else word for word in lines[0].split()) + "\n"


def tables_digest(crypt: str, integrity: str) -> str:
    """SHA-256 (64 lower-case hex digits) of the canonical tables of the crypt mapping and the integrity mapping."""
    return hashlib.sha256((canonical(crypt) + canonical(integrity)).encode("ascii")).hexdigest()
