# SPDX-License-Identifier: Apache-2.0
"""The plain guest from a cloud image: the content of its disk and of its seed, read by other tools."""

import hashlib
import json
from pathlib import Path

import pytest
import yaml

from sevsnp.errors import UserError
from sevsnp.images.cloud_guest import cloud_config, make_cloud_guest, make_seed
from sevsnp.images.guest import read_public_key
from sevsnp.system.command import run
from tests.conftest import PROJECT

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINBzpvfmPmdVMBlX3FkGbbIUOHRGBl0UHjVmNRqCrAQj of the user: #1"
TEMPLATE = PROJECT / "templates" / "cloud-config.yaml"
MIB = 1 << 20


def make(tmp_path: Path, tools: Path, *, sha256: str = "", size: int = 16 * MIB) -> tuple[Path, Path]:
    """The disk and the seed of a cloud guest whose image has some text at its second megabyte."""
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes(MIB - 512) + b"of the image" + bytes(7 * MIB - 12))
    key = tmp_path / "key.pub"
    key.write_text(f"{KEY}\n")
    disk, seed = tmp_path / "disk.qcow2", tmp_path / "seed.img"
    make_cloud_guest(
        image=image, sha256=sha256, size=size, user_data=TEMPLATE, authorized_key=key, tools=tools, output=disk,
        seed=seed,
    )  # fmt: skip
    return disk, seed


def virtual_size(disk: Path, tools: Path) -> int:
    return int(json.loads(run([tools / "qemu-img", "info", "--output=json", "-f", "qcow2", disk]))["virtual-size"])


def test_the_disk_has_the_image_and_grows(tmp_path: Path, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = ""
    for size, found in ((16 * MIB, 16 * MIB), (4 * MIB, 8 * MIB)):
        disk, _ = make(tmp_path, tools, sha256=digest, size=size)
        assert virtual_size(disk, tools) == found
        run([tools / "qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, tmp_path / "raw"])
        assert (tmp_path / "raw").read_bytes()[MIB : MIB + 12] == b"of the image"
        digest = hashlib.sha256((tmp_path / "image.raw").read_bytes()).hexdigest()
        assert ("the disk keeps its size" in capsys.readouterr().out) == (found > size)


def test_an_image_with_another_digest_is_refused(tmp_path: Path, tools: Path) -> None:
    """Control: the test above gives the right digest for its second disk."""
    with pytest.raises(UserError, match=r"image\.raw: found SHA-256 .*, expected 1{64}"):
        make(tmp_path, tools, sha256="1" * 64)
    assert not (tmp_path / "disk.qcow2").exists()


def test_the_seed_has_the_two_files_and_equal_bytes_each_time(tmp_path: Path, tools: Path) -> None:
    _, seed = make(tmp_path, tools)
    listed = run([tools / "mdir", "-b", "-i", seed, "::"], env={"MTOOLSRC": "/dev/null"}).decode().split()
    assert sorted(listed) == ["::/meta-data", "::/user-data"]
    text = {name: run([tools / "mtype", "-i", seed, f"::/{name}"]).decode() for name in ("user-data", "meta-data")}
    own = cloud_config(TEMPLATE, read_public_key(tmp_path / "key.pub"))
    assert text["user-data"] == own and own.startswith("#cloud-config\n") and KEY[:80] in own
    assert b"CIDATA" in seed.read_bytes()[:512]
    first = yaml.safe_load(text["meta-data"])["instance-id"]
    before = seed.read_bytes()
    make_seed(seed, own, tools)
    assert seed.read_bytes() == before
    make_seed(seed, own.replace("user", "other"), tools)
    assert seed.read_bytes() != before
    assert yaml.safe_load(run([tools / "mtype", "-i", seed, "::/meta-data"]))["instance-id"] != first
