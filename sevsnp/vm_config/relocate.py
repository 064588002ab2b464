# SPDX-License-Identifier: Apache-2.0
"""Relocate a launch: its files are in another place, such as a host bundle or the directory of a volume."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sevsnp.vm_config.config import Disk, File, Launch

FILES = ("firmware", "kernel", "initrd", "cmdline", "id_block", "id_auth")


def files_of(launch: Launch) -> dict[str, File]:
    """The files of a launch except its disks, by their kind."""
    return {name: file for name in FILES if (file := getattr(launch, name))}


def relocated(launch: Launch, place: Callable[[File | Disk], Path]) -> Launch:
    """``launch`` with each file and disk at the path that ``place`` returns; the content must be the same."""
    files: dict[str, Any] = {name: file._replace(path=place(file)) for name, file in files_of(launch).items()}
    disks = tuple(disk._replace(path=place(disk)) for disk in launch.disks)
    return replace(launch, **files, disks=disks)
