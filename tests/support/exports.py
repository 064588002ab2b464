# SPDX-License-Identifier: Apache-2.0
"""VM configs for exports: complete and consistent ones with small files, which no machine boots."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from sevsnp.launchers.guest import Guest, read_guest
from sevsnp.measurement.id_block import Identity, make_identity
from sevsnp.measurement.launch_digest import launch_digest_of
from sevsnp.measurement.signed_config import block_of, with_identity
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import Disk, File, VmConfig, render_vm_config
from tests.support.evidence import REFERENCE, make_launch
from tests.unit.measurement.test_id_block import AUTHOR_KEY, ID_KEY

NAME = "vm-config-verity.toml"
VOLUME_HEADER = b"this volume".ljust(8192, b"h")


def make_config(directory: Path, **changes: Any) -> VmConfig:
    """A VM config of the integrity workflow in ``directory``, which is created, with ``changes`` to its launch."""
    directory.mkdir(parents=True, exist_ok=True)
    disks = []
    for role, size in (("verity-data", 8192), ("verity-hash", 4096)):
        path = directory / f"{role}.img"
        path.write_bytes(role.encode().ljust(size, b"."))
        disks.append(Disk(role, path, size, hashlib.sha256(path.read_bytes()).hexdigest()))
    values = {"platform": "snp", "disks": tuple(disks), "host_data": bytes(range(32)), **changes}
    launch = make_launch(directory, **values)
    reference = dataclasses.replace(REFERENCE, launch_digest=launch_digest_of(launch))
    return written(VmConfig(directory / NAME, launch, reference))


def make_volume(directory: Path) -> tuple[VmConfig, Path]:
    """A VM config of the encrypted workflow in the directory of a volume below ``directory``, and the path of its disk.

    The disk itself does not exist yet.
    """
    place = directory / "volumes" / "0b2b8d5e-4a1f-4c39-9a52-6a4b3c1d2e3f"
    place.mkdir(parents=True)
    image, line = directory / "image", place / "line"
    image.write_bytes(VOLUME_HEADER + bytes(8192))
    line.write_text(f"sevsnp.luks=1:8192:{hashlib.sha256(VOLUME_HEADER).hexdigest()}:{'0' * 64}")
    disks = (Disk("luks", image, 16384, sha256_file(image)),)
    config = make_config(place, workflow="luks", disks=disks, cmdline=File(line, sha256_file(line)))
    return config, place / "luks.img"


def written(config: VmConfig) -> VmConfig:
    config.source.write_text(render_vm_config(config))
    return config


def sign(config: VmConfig, *, author: bool = True) -> tuple[VmConfig, Identity]:
    """The VM config with an ID block of its own guest, written beside its files."""
    identity = make_identity(block_of(config), ID_KEY, AUTHOR_KEY if author else None)
    return written(with_identity(config, identity, config.source.parent)), identity


def guest_of(config: VmConfig, **changes: Any) -> Guest:
    values: dict[str, Any] = {"asked": {}, "name": "", "memory": 512 << 20, "files": "", "launcher": "a launcher"}
    return read_guest(vm_config=config.source, **{**values, **changes})
