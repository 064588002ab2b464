# SPDX-License-Identifier: Apache-2.0
"""The data disk of a verified guest: its directory in DATA_DIR/volumes, beside those of encrypted roots.

DATA_DIR/volumes/UUID has the header and the digests that identify the disk, and data.img, which the first run copies
there and every guest writes to. The VM configs are not here: they belong to the verified root, which changes oftener.
"""

import contextlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.images.data_disk import FILES, HEADER, IMAGE
from sevsnp.images.luks2 import Luks2
from sevsnp.keys.luks_key import check_uuid
from sevsnp.qemu.process import check_files
from sevsnp.system.copying import copy_file
from sevsnp.system.files import scratch_directory, sync
from sevsnp.system.locks import held
from sevsnp.vm_config.config import Disk, Launch


def header_of(disk: Disk) -> Path:
    """The file with the disk's header: header.bin beside the image, else the image itself, which begins with it."""
    beside = disk.path.with_name(HEADER)
    return beside if beside.is_file() else disk.path


@contextlib.contextmanager
def data_volume(launch: Launch, data_dir: Path) -> Iterator[Path | None]:
    """Hold the directory of the launch's data disk, and make it if it is missing; None without a data disk.

    Raises UserError if another guest has the disk.
    """
    disk = launch.written
    if disk is None:
        yield None
        return
    header = header_of(disk)
    if not header.is_file():
        check_files(launch)
    path = data_dir / "volumes" / check_uuid(Luks2.read(header).uuid)
    _make(path, disk)
    with held(path / "lock", lambda holder: _taken(path, holder)) as note:
        note(f"process {os.getpid()} since {datetime.now(UTC):%F %T} UTC\n")
        yield path


def _make(path: Path, disk: Disk) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in FILES:
        source = disk.path.with_name(name)
        # The image itself is copied, and checked, when the guest starts.
        if name != IMAGE and source.is_file() and not (path / name).exists():
            with scratch_directory(path / name) as scratch:
                copy_file(source, scratch / name, 0o600)
                sync(scratch / name)
                (scratch / name).rename(path / name)
    sync(path)


def _taken(path: Path, holder: str) -> UserError:
    return UserError(
        f"data disk {path.name}: in use by {holder.strip() or 'another process'}; two guests would destroy it",
        "end that guest first",
    )
