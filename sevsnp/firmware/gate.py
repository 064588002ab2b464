# SPDX-License-Identifier: Apache-2.0
"""Decide with which firmware a guest may start: only with one that starts nothing but the three hashed files.

A known image is judged by its SHA-256. Any other image is inspected. It is accepted only if this module can read it
completely and finds no way in it to start other code of the host. The module needs only the standard library, because
a host bundle contains it too.
"""

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sevsnp.errors import UserError
from sevsnp.firmware.known import ACCEPTED, REFUSED
from sevsnp.system.regular import open_regular

if TYPE_CHECKING:
    from sevsnp.firmware.volumes import Leaf
    from sevsnp.vm_config.config import Launch

_OWN = "use the project's own firmware: do not set FIRMWARE"
REMEDY = "use the project's own firmware: do not set FIRMWARE; or say why this one is trusted: FIRMWARE_REASON=TEXT"
# Shown with every verdict about a guest whose owner gave a reason for another firmware.
_RISK = "no check shows that the firmware starts only the measured files; its owner's reason: {}"

# A file-path node of a device path (UEFI 2.10, section 10.3.5.4).
_NODE = re.compile(rb"\x04\x04..\\?\0?s\0h\0i\0m\0\0\0", re.DOTALL | re.IGNORECASE)
_SIGNATURE = b"PCIR"
# Upper and lower case are equal here, because FAT does not distinguish them.
_DEFAULT = re.compile(re.escape("\\EFI\\BOOT\\BOOTX64.EFI".encode("utf-16-le")), re.IGNORECASE)
_MOST = 64 << 20  # the bytes that are read from a file; more than any image that can be judged


def find_roads(image: bytes) -> tuple[str, ...]:
    """The reasons why ``image`` may start other code of the host, as text; empty if there is none."""
    from sevsnp.firmware.volumes import Unreadable, leaves  # loads lzma and uuid, which a known image does not need

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
    """Why the firmware is refused, or an empty string; ``path`` is empty if there is no file to inspect."""
    if digest in REFUSED:
        return f"{REFUSED[digest]}: it starts code of the host that is not measured"
    if reason:
        return ""
    if not path:
        return "unknown, and its file is not here to be inspected"
    try:
        with open_regular(Path(path)) as stream:
            image = stream.read(_MOST)
    except OSError as error:
        return f"unknown, and cannot be read: {error.strerror}"
    if hashlib.sha256(image).hexdigest() != digest:
        return "unknown, and its file has changed since"
    return "; ".join(find_roads(image)[:1])


def problem(digest: str, path: Path, reason: str = "") -> str:
    """Why a guest must not start with the firmware of this SHA-256 (64 hex digits), or an empty string.

    ``path`` is the firmware's file; it need not exist for a known firmware. ``reason`` is the owner's reason in the VM
    config.
    """
    if digest in ACCEPTED:
        return ""  # whatever its file is
    return _judge(digest, str(path) if path.is_file() else "", reason)


def residual_risks(digest: str, reason: str) -> tuple[str, ...]:
    """The residual risk, as text, of a firmware that is trusted only because of a ``reason``."""
    return (_RISK.format(reason),) if reason and digest not in ACCEPTED else ()


def check_firmware(digest: str, path: Path, reason: str = "") -> None:
    """Raises :class:`UserError`, one line and its remedy, for a firmware with which a guest must not start."""
    if found := problem(digest, path, reason):
        # No reason makes a firmware in REFUSED acceptable, so its remedy does not offer FIRMWARE_REASON.
        raise UserError(f"{path}: firmware refused: {found} (SHA-256 {digest})", _OWN if digest in REFUSED else REMEDY)


def check_launch_firmware(launch: "Launch") -> None:
    """:func:`check_firmware` for the firmware that a VM config or a host bundle's launch file names."""
    check_firmware(launch.firmware.sha256, launch.firmware.path, launch.firmware_reason)
