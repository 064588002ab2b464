# SPDX-License-Identifier: Apache-2.0
"""Tests whether the volume that setup_luks made can still be used, or a new one must be made."""

from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.images.luks2 import Luks2, opens
from sevsnp.keys import luks_key


def is_current(
    header: Path, config_dir: Path, key_file: str | None, *, platform: str, qemu: Path, probe_cache: Path
) -> bool:
    """Whether the volume with ``header`` can be opened from here: its record exists, and its key exists or is given.

    A key given for this run must be the volume's own (``key_file`` None: no given key counts). A key that an emulated
    guest has received is not valid for SEV-SNP, if ``platform`` says that the volume is for SEV-SNP; nor is a made key
    that a confidential guest has received valid for emulation, if ``platform`` says that. True if there is no volume,
    and in cases that the task itself reports better.
    """
    if not header.exists():
        return True
    try:
        luks = Luks2.read(header)
        record = luks_key.read_record(config_dir, luks.uuid)
        if record.exposed and is_for_snp(platform, qemu, probe_cache):
            return False
        if platform == "emulated" and record.only_confidential:
            return False
        key = luks_key.given(key_file) if key_file is not None else None
        if key is None:
            return record.key == "given" or luks_key.key_path(config_dir, luks.uuid).exists()
        return opens(luks.data, key.data)
    except UserError:
        return False


def is_for_snp(platform: str, qemu: Path, probe_cache: Path) -> bool:
    """Whether guests are for SEV-SNP: by setting, or with auto on a host that is known to have it. Boots nothing."""
    if platform != "auto":
        return platform == "snp"
    from sevsnp.qemu.platforms import snp_is_known

    return snp_is_known(qemu, probe_cache)
