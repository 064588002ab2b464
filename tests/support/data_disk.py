# SPDX-License-Identifier: Apache-2.0
"""A small result of setup_verity with a data disk: the disk's files, and the launch of a guest that has it."""

import hashlib
from pathlib import Path

from sevsnp.images.data_disk import FILES
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import Disk, File, Launch
from tests.support.evidence import make_launch
from tests.support.luks_volume import make_header

KEY = b"the volume's own key"
CONTENT = b"an empty file system " * 400


def make_data_files(directory: Path, seed: int = 1) -> Path:
    """The files of the data disk ``seed`` in ``directory``; returns its image."""
    directory.mkdir(parents=True, exist_ok=True)
    header = make_header(KEY, seed)
    digest = hashlib.sha256(header).hexdigest().encode()
    for name, data in zip(FILES, (header + CONTENT, header, digest, b"0" * 64), strict=True):
        (directory / name).write_bytes(data)
    return directory / FILES[0]


def data_launch(directory: Path, seed: int = 1) -> Launch:
    """The launch of a verified guest with the data disk ``seed``, whose files are in ``directory``/data."""
    image = make_data_files(directory / "data", seed)
    roots = []
    for role in ("verity-data", "verity-hash"):
        (directory / role).write_bytes(role.encode())
        roots.append(directory / role)
    header = image.with_name(FILES[1]).read_bytes()
    cmdline = directory / "line"
    word = f"sevsnp.data=1:{len(header)}:{hashlib.sha256(header).hexdigest()}:{'0' * 64}:/srv"
    cmdline.write_text(f"console=ttyS0 sevsnp.mode=verity {word}")
    disks = tuple(
        Disk(role, path, path.stat().st_size, sha256_file(path))
        for role, path in zip(("verity-data", "verity-hash", "data"), (*roots, image), strict=True)
    )
    return make_launch(directory, workflow="verity", disks=disks, cmdline=File(cmdline, sha256_file(cmdline)))
