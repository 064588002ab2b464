"""The keys: what there is, and what is needed no more."""

from pathlib import Path

from tasks.graph import UNLISTED, Task, command
from tasks.luks import DISKS
from tasks.project import E2E, settings


def task_keys() -> Task:
    """List the keys, and what each volume key belongs to; see also keys_prune"""
    values = settings()
    listed = command(
        "sevsnp.volume_keys:list_keys",
        config_dir=values.config_dir(),
        key_dirs=[E2E],
        disks=DISKS,
        data_dir=values.data_dir(),
    )
    return {**listed, "meta": UNLISTED}


def task_keys_prune() -> Task:
    """Remove volume keys that belong to nothing and that no guest ever had"""
    values = settings()
    pruned = command(
        "sevsnp.volume_keys:prune_keys",
        alone=True,
        config_dir=values.config_dir(),
        checkout=Path.cwd(),
        disks=DISKS,
        data_dir=values.data_dir(),
    )
    return {**pruned, "meta": UNLISTED}
