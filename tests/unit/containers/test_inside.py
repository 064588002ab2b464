# SPDX-License-Identifier: Apache-2.0
"""Archives that contain a disk image or a root: the disk image is unpacked unchanged."""

import gzip
import lzma
import subprocess
import tarfile
from pathlib import Path

import pytest

from sevsnp.archives.tar import read_tar
from sevsnp.archives.ustar import member as ustar_member
from sevsnp.archives.ustar import sparse
from sevsnp.containers.inside import unpack_disk, unpack_tar
from sevsnp.errors import UserError
from tests.support.container_images import directory, member, tar_bytes

DISK = bytes(510) + b"\x55\xaa" + b"content" + bytes(4 << 20)
ARCHIVES = {
    "ova": tar_bytes([member("m.ovf", "<Envelope/>"), member("m-disk1.vmdk", DISK), member("m.mf", "")]),
    "ova with a gzip disk": tar_bytes([member("m.ovf", "<Envelope/>"), member("m.vmdk.gz", gzip.compress(DISK))]),
    "gce": gzip.compress(tar_bytes([member("disk.raw", DISK)], tarfile.GNU_FORMAT)),
    "tar.xz": lzma.compress(tar_bytes([member("disk.raw", DISK)])),
    "raw.xz": lzma.compress(DISK),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_the_disk_image_in_an_archive_is_unpacked(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "image").write_bytes(ARCHIVES[kind])
    unpack_disk(image=tmp_path / "image", output=tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == DISK
    assert (tmp_path / "disk").stat().st_blocks * 512 < len(DISK) // 4  # holes
    assert f"IMAGE={tmp_path / 'image'}: " in capsys.readouterr().out


def test_a_sparse_member(tmp_path: Path) -> None:
    """As GCE's instructions make it: tar --format=oldgnu -Sczf."""
    (tmp_path / "disk.raw").write_bytes(DISK)
    subprocess.run(["tar", "--format=oldgnu", "-Sczf", "image", "disk.raw"], cwd=tmp_path, check=True)
    unpack_disk(image=tmp_path / "image", output=tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == DISK


@pytest.mark.parametrize(("more", "taken"), [(0, True), (1, False)])
def test_the_size_of_a_sparse_disk_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int, taken: bool
) -> None:
    """A header of 2 KiB can claim a disk of any size. Control: a disk of the largest size."""
    monkeypatch.setattr("sevsnp.containers.inside.LARGEST", 1 << 20)
    size = (1 << 20) + more
    records, table = sparse(b"disk.raw", size, [(0, 512), (size, 0)])
    data = table + bytes(512)
    header = ustar_member(b"disk.raw", b"0", mode=0o644, uid=0, gid=0, size=len(data), mtime=0, before=records)
    (tmp_path / "image").write_bytes(header + data + bytes(1024))
    if taken:
        unpack_disk(image=tmp_path / "image", output=tmp_path / "disk")
        assert (tmp_path / "disk").stat().st_size == size
        return
    with pytest.raises(UserError, match="a disk image of 1048577 bytes, expected at most 1048576"):
        unpack_disk(image=tmp_path / "image", output=tmp_path / "disk")
    assert not (tmp_path / "disk").exists()


def test_an_archive_with_several_disk_images_or_none_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "my image"
    image.write_bytes(tar_bytes([member("m.ovf"), member("a.vmdk", DISK), member("b.vmdk", DISK)]))
    with pytest.raises(UserError, match=r"several disk images in this archive: a\.vmdk, b\.vmdk"):
        unpack_disk(image=image, output=tmp_path / "disk")
    image.write_bytes(tar_bytes([member("m.ovf"), member("readme")]))
    with pytest.raises(UserError, match=r"no disk image in this archive, found: m\.ovf, readme"):
        unpack_disk(image=image, output=tmp_path / "disk")
    assert not (tmp_path / "disk").exists()


def test_a_compressed_tar(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(gzip.compress(tar_bytes([directory("etc"), member("etc/conf", "text")])))
    unpack_tar(image=tmp_path / "image", output=tmp_path / "root.tar")
    found = read_tar(tmp_path / "root.tar")["etc/conf"].content
    assert found and found.read() == b"text"
