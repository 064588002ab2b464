# SPDX-License-Identifier: Apache-2.0
"""A file's holes stay holes from the tar to ext4."""

import subprocess
from pathlib import Path

from sevsnp.archives.tar import read_tar
from sevsnp.images.filesystem import make_ext4

MIB = 1 << 20


def test_a_sparse_file_may_be_larger_than_its_filesystem(tools: Path, tmp_path: Path) -> None:
    root, tar, image = tmp_path / "root", tmp_path / "a.tar", tmp_path / "a.ext4"
    root.mkdir()
    with (root / "holes").open("wb") as stream:
        stream.seek(100 * MIB)
        stream.write(b"data")
        stream.truncate(200 * MIB)
    subprocess.run(["tar", "-C", str(root), "--format=pax", "--sparse", "-cf", str(tar), "."], check=True)
    make_ext4(tar, image, tools=tools, entries=list(read_tar(tar).values()))
    assert image.stat().st_size < 40 * MIB
    subprocess.run([str(tools / "debugfs"), "-R", f'dump /holes "{tmp_path}/out"', str(image)], check=True)
    assert (tmp_path / "out").read_bytes() == (root / "holes").read_bytes()
