# SPDX-License-Identifier: Apache-2.0
"""The keys: list them, and remove those that are no longer needed."""

from pathlib import Path

from tasks.graph import Task, command
from tasks.luks import DISKS
from tasks.project import E2E, settings


def task_keys() -> Task:
    """List the keys, and what each volume key belongs to; see also keys_prune

    Shows your ssh key, the owner's certificate, and for each disk key whether it was made here or given, how often its
    volume was booted, whether an emulated guest has had it, and where its volume is.

    Next: ./doitw keys_prune
    """
    values = settings()
    return command(
        "sevsnp.volumes.keys:list_keys",
        config_dir=values.config_dir(),
        key_dirs=[E2E],
        disks=DISKS,
        data_dir=values.data_dir(),
    )


def task_keys_prune() -> Task:
    """Remove volume keys that belong to nothing and that no guest ever had

    What a guest has had may open a disk that lies somewhere else: such a key is named, and you decide.

    Next: ./doitw keys
    """
    values = settings()
    return command(
        "sevsnp.volumes.keys:prune_keys",
        alone=True,
        config_dir=values.config_dir(),
        checkout=Path.cwd(),
        disks=DISKS,
        data_dir=values.data_dir(),
    )
