# SPDX-License-Identifier: Apache-2.0
"""A small result of setup_luks: a header that a key opens, an image with it, and both VM configs."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from sevsnp.images.luks2 import Luks2
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import Disk, File, VmConfig, render_vm_config
from sevsnp.volumes.directory import CONFIGS, DIGESTS, HEADER, Source
from tests.support.evidence import REFERENCE, make_launch
from tests.support.luks_volume import make_header

KEY = b"the volume's own key"
DATA = b"as setup_luks made it " * 400


def uuid_of(seed: int) -> str:
    """The UUID of the volume that ``seed`` makes."""
    return Luks2.parse(make_header(KEY, seed)).uuid


def make_source(directory: Path, seed: int = 1, **changes: Any) -> Source:
    """Write it to ``directory``; ``changes`` apply to the launch of both VM configs."""
    directory.mkdir(parents=True, exist_ok=True)
    header, image = make_header(KEY, seed), directory / "luks.img"
    image.write_bytes(header + DATA)
    digest = hashlib.sha256(header).hexdigest()
    for name, data in ((HEADER, header), (DIGESTS[0], f"{digest}\n".encode()), (DIGESTS[1], b"0" * 64 + b"\n")):
        (directory / name).write_bytes(data)
    for name, platform in zip(CONFIGS, ("snp", "emulated"), strict=True):
        cmdline = directory / f"cmdline.{platform}"
        cmdline.write_text(
            f"console=ttyS0 sevsnp.mode=luks sevsnp.luks=1:{len(header)}:{digest}:{'0' * 64} x={platform}"
        )
        launch = make_launch(
            directory,
            workflow="luks",
            platform=platform,
            disks=(Disk("luks", image, image.stat().st_size, sha256_file(image)),),
            cmdline=File(cmdline, sha256_file(cmdline)),
        )
        config = VmConfig(directory / name, dataclasses.replace(launch, **changes), REFERENCE)
        config.source.write_text(render_vm_config(config))
    return Source(directory, directory)
