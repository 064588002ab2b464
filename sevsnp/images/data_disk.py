# SPDX-License-Identifier: Apache-2.0
"""Makes the encrypted data disk of a verified guest: an empty file system in a LUKS2 image with integrity.

It is made once, and not anew after a change of code, kernel or root: the guest's data are on a copy of it, and the
copy belongs to its header.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.images.luks import FileSystem, Outputs, choose_key, encrypt, image_size
from sevsnp.images.luks2 import Luks2
from sevsnp.images.luks_current import is_current, is_for_snp
from sevsnp.qemu.appliance import Appliance
from sevsnp.system.copying import copy_file
from sevsnp.system.files import scratch_directory
from sevsnp.system.locks import is_locked

IMAGE, HEADER, HEADER_DIGEST, TABLES_DIGEST = "data.img", "header.bin", "header.sha256", "tables.sha256"
FILES = (IMAGE, HEADER, HEADER_DIGEST, TABLES_DIGEST)


def make_data_disk(
    *,
    size: int,
    volume: str,
    kernel: Path,
    initrd: Path,
    tools: Path,
    qemu: Path,
    probe_cache: Path,
    config_dir: Path,
    key_file: str,
    data_dir: Path,
    platform: str,
    directory: Path,
) -> None:
    """Make ``directory`` with the image of a data disk, whose file system has ``size`` bytes, and what identifies it.

    The key is as for :func:`sevsnp.images.luks.make_luks_image`. With ``volume``, how the UUID of a data disk in
    ``data_dir`` begins, the directory is made of that disk, whose files and key stay. Raises UserError.
    """
    place = directory / IMAGE
    directory.parent.mkdir(parents=True, exist_ok=True)
    with scratch_directory(directory) as scratch:
        new = scratch / directory.name
        new.mkdir()
        if volume:
            found = find_volume(data_dir, volume)
            if is_locked(found / "lock"):
                raise UserError(f"{found}: a guest writes to this data disk now", "end that guest first")
            for name in FILES:
                copy_file(found / name, new / name, 0o600)
            print(f"  data disk {found.name}, which stays in {found}")
        else:
            encrypt(
                FileSystem(Path("data disk"), (), size, label="data"),
                Appliance(qemu.resolve(), kernel, initrd, probe_cache),
                choose_key(
                    key_file, place, config_dir, data_dir, is_for_snp(platform, qemu, probe_cache), "setup_verity"
                ),
                tools=tools,
                config_dir=config_dir,
                place=place,
                outputs=Outputs(*(new / name for name in FILES)),
            )
        if directory.exists():
            directory.rename(scratch / "old")
        new.rename(directory)
    own = Luks2.read(directory / HEADER).uuid
    for other in data_volumes(data_dir):
        if other.name != own:
            again = f"take it again: ./doitw setup_verity DATA_SIZE=16M VOLUME={other.name}"
            print(f"  data disk {other.name} stays as it is; {again}")


def find_volume(data_dir: Path, wanted: str) -> Path:
    """The directory of the one data disk whose UUID begins with ``wanted``. Raises UserError for none or several."""
    found = [path for path in data_volumes(data_dir) if path.name.startswith(wanted)]
    if len(found) != 1:
        known = ", ".join(path.name for path in data_volumes(data_dir)) or "none"
        raise UserError(
            f"VOLUME={wanted}: found {len(found)} data disks whose UUID begins so, expected one; known: {known}"
        )
    return found[0]


def data_volumes(data_dir: Path) -> list[Path]:
    """The directories of the data disks that guests have written to, by UUID."""
    return [path.parent for path in sorted((data_dir / "volumes").glob(f"*-*/{IMAGE}"))]


def is_current_disk(directory: Path, size: int, volume: str, known: Mapping[str, Any]) -> bool:
    """Whether the data disk in ``directory`` is that of the settings, and its key can be used.

    ``known`` are further parameters of :func:`sevsnp.images.luks_current.is_current`.
    """
    if not all((directory / name).is_file() for name in FILES):
        return False
    try:
        uuid = Luks2.read(directory / HEADER).uuid
    except UserError:
        return False
    wanted = uuid.startswith(volume) if volume else (directory / IMAGE).stat().st_size == image_size(size)
    return wanted and is_current(directory / HEADER, **known)
