# SPDX-License-Identifier: Apache-2.0
"""Which firmware a guest may start with: one that is known to start nothing but the three hashed files.

A known image is judged by its SHA-256; any other is looked into, and is accepted only if it can be read to its last
byte and no road for other code of the host is in it. Only the standard library: a host bundle has this too.
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sevsnp.errors import UserError
from sevsnp.firmware.known import ACCEPTED, REFUSED

if TYPE_CHECKING:
    from sevsnp.firmware.volumes import Leaf
    from sevsnp.vm_config.config import Launch

_OWN = "use the project's own firmware: leave FIRMWARE away"
REMEDY = "use the project's own firmware: leave FIRMWARE away; or say why this one is trusted: FIRMWARE_REASON=TEXT"
# Shown with every verdict about a guest that starts with another firmware for a reason of its owner's.
_RISK = "the firmware is not known to start nothing but the measured files; its owner's reason: {}"

# A file-path node of a device path (UEFI 2.10, section 10.3.5.4).
_NODE = re.compile(rb"\x04\x04..\\?\0?s\0h\0i\0m\0\0\0", re.DOTALL | re.IGNORECASE)
_SIGNATURE = b"PCIR"
# Its letters may be large or small: FAT does not tell them apart.
_DEFAULT = re.compile(re.escape("\\EFI\\BOOT\\BOOTX64.EFI".encode("utf-16-le")), re.IGNORECASE)
_MOST = 64 << 20  # what is read of a file; larger than any image that can be judged


def find_roads(image: bytes) -> tuple[str, ...]:
    """Why ``image`` may start other code of the host's, each reason in words; empty where it does not."""
    from sevsnp.firmware.volumes import Unreadable, leaves  # with lzma and uuid, for which a known one need not wait

    try:
        return tuple(road for leaf in leaves(image) for road in _roads_of(leaf))
    except Unreadable as error:
        return (f"cannot be judged: {error}",)


def _roads_of(leaf: "Leaf") -> list[str]:
    found = []
    if _NODE.search(leaf.data):
        found.append(f"it starts more than the three hashed files (a name in {leaf.place})")
    if _SIGNATURE in leaf.data:
        found.append(f"it starts more than the three hashed files (a signature in {leaf.place})")
    if _DEFAULT.search(leaf.data):
        found.append(f"it starts more than the three hashed files (a file name in {leaf.place})")
    return found


@lru_cache(maxsize=8)
def _judge(digest: str, path: str, reason: str) -> str:
    """Why the firmware is refused, or an empty string; ``path`` may be empty where there is no file to look into."""
    if digest in ACCEPTED:
        return ""
    if digest in REFUSED:
        return f"{REFUSED[digest]}: it starts code of the host's that nothing measures"
    if reason:
        return ""
    if not path:
        return "unknown, and its file is not here to be looked into"
    try:
        with Path(path).open("rb") as stream:
            image = stream.read(_MOST)
    except OSError as error:
        return f"unknown, and cannot be read: {error.strerror}"
    if hashlib.sha256(image).hexdigest() != digest:
        return "unknown, and its file is another one by now"
    return "; ".join(find_roads(image)[:1])


def problem(digest: str, path: Path, reason: str = "") -> str:
    """Why a guest must not start with the firmware of this SHA-256 (64 hex digits), or an empty string.

    ``path`` is its file, which need not be there for a known one; ``reason`` is the owner's, recorded in the VM config.
    """
    return _judge(digest, str(path) if path.is_file() else "", reason)


def residual_risks(digest: str, reason: str) -> tuple[str, ...]:
    """What remains open, in words, where a firmware is trusted for a ``reason`` only."""
    return (_RISK.format(reason),) if reason and digest not in ACCEPTED else ()


def check_firmware(digest: str, path: Path, reason: str = "") -> None:
    """Raises :class:`UserError`, one line and its remedy, for a firmware that a guest must not start with."""
    if found := problem(digest, path, reason):
        # No reason makes up for what is known.
        raise UserError(f"{path}: firmware refused: {found} (SHA-256 {digest})", _OWN if digest in REFUSED else REMEDY)


def check_launch_firmware(launch: "Launch") -> None:
    """:func:`check_firmware` for what a VM config or a host bundle's launch file names."""
    check_firmware(launch.firmware.sha256, launch.firmware.path, launch.firmware_reason)
