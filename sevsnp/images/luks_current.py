# SPDX-License-Identifier: Apache-2.0
"""Whether the volume that setup_luks made still serves, or a new one has to be made: asked whenever it is needed."""

from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.images.luks2 import Luks2, opens
from sevsnp.keys import luks_key


def is_current(
    header: Path, config_dir: Path, key_file: str | None, *, platform: str, qemu: Path, probe_cache: Path
) -> bool:
    """Whether the volume with ``header`` can be opened from here: its record is here, and its key is, or is given.

    A key that was given for this run must be its own (``key_file`` None: none counts). One that an emulated guest has
    had is no key for SEV-SNP, where ``platform`` says that this is what it is for. True where there is no volume, and
    for what the task itself says better.
    """
    if not header.exists():
        return True
    try:
        luks = Luks2.read(header)
        record = luks_key.read_record(config_dir, luks.uuid)
        if record.exposed and is_for_snp(platform, qemu, probe_cache):
            return False
        key = luks_key.given(key_file) if key_file is not None else None
        if key is None:
            return record.key == "given" or luks_key.key_path(config_dir, luks.uuid).exists()
        return opens(luks.data, key.data)
    except UserError:
        return False


def is_for_snp(platform: str, qemu: Path, probe_cache: Path) -> bool:
    """Whether guests are for SEV-SNP: said so, or left open on a host that is known to have it. Nothing is booted."""
    if platform != "auto":
        return platform == "snp"
    from sevsnp.qemu.platforms import snp_is_known

    return snp_is_known(qemu, probe_cache)
