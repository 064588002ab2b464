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
from sevsnp.vm_config.config import Disk, VmConfig, render_vm_config
from tests.support.evidence import REFERENCE, make_launch
from tests.unit.measurement.test_id_block import AUTHOR_KEY, ID_KEY

NAME = "vm-config-verity.toml"


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
