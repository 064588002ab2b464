# SPDX-License-Identifier: Apache-2.0
"""The disk that a guest writes to, encrypted root or data disk: a copy of the image, kept from one run to the next.

The image that setup_luks or setup_verity made stays unchanged. A copy belongs to the LUKS header with which the guest
is measured. A copy of another volume in its place is refused and never overwritten, because its data exist nowhere
else.
"""

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from shlex import quote

from sevsnp.errors import UserError
from sevsnp.qemu.process import check_files
from sevsnp.system.copying import copy_file
from sevsnp.system.files import scratch_directory
from sevsnp.vm_config.cmdline import read_cmdline
from sevsnp.vm_config.config import Disk, Launch


def on_copy(launch: Launch, directory: Path) -> Launch:
    """``launch`` with its volume replaced by the copy in ``directory``; a missing copy is made.

    Raises :class:`UserError` for files that do not match the VM config, and for another volume's copy.
    """
    volume = launch.written
    if volume is None or (launch.workflow == "luks" and len(launch.disks) != 1):
        raise UserError("the VM config's disks: expected one, with the role luks", "./doitw setup_luks")
    copy = directory / f"{volume.role}.img"
    others = tuple(disk for disk in launch.disks if disk != volume)
    check_files(replace(launch, disks=others) if os.path.lexists(copy) else launch)
    if os.path.lexists(copy):
        _check(copy, volume, launch)
    else:
        print(f"copying {volume.path} to {copy}, which the guest writes to", flush=True)
        _make(copy, volume.path)
    return replace(launch, disks=(*others, volume._replace(path=copy.resolve())))


def measured_header(cmdline: str) -> tuple[int, str]:
    """The length of the LUKS header in bytes and its SHA-256 (hex), from the measured command line."""
    match = re.search(r"(?:^| )sevsnp\.(?:luks|data)=1:([1-9][0-9]{3,7}):([0-9a-f]{64}):", cmdline)
    if not match:
        raise UserError("the command line has no word sevsnp.luks=…", "make it again with: ./doitw setup_luks")
    return int(match[1]), match[2]


def _check(copy: Path, volume: Disk, launch: Launch) -> None:
    hint = f"move it away, or remove it with all that the guest wrote there: rm {quote(str(copy))}"
    size, wanted = measured_header(read_cmdline(launch.cmdline.path))
    if copy.is_symlink() or not copy.is_file():
        raise UserError(f"{copy}: expected a disk image", hint)
    with copy.open("rb") as stream:
        header = stream.read(size)
    if hashlib.sha256(header).hexdigest() != wanted:
        raise UserError(f"{copy}: the disk of another volume: its LUKS header is not the measured one", hint)
    if copy.stat().st_size != volume.size:
        raise UserError(f"{copy}: found {copy.stat().st_size} bytes, expected {volume.size}", hint)


def _make(copy: Path, image: Path) -> None:
    with scratch_directory(copy) as scratch:
        new = scratch / copy.name
        copy_file(image, new, 0o600)
        with new.open("rb+") as stream:
            os.fsync(stream.fileno())
        new.rename(copy)
