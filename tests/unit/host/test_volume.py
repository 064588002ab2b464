# SPDX-License-Identifier: Apache-2.0
"""The disk of a guest of the encrypted workflow: copied once from the image, kept, and never another volume's."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.host.volume import measured_header, on_copy
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import Disk, File, Launch
from tests.support.evidence import make_launch

HEADER_SIZE = 8192


def launch_of(directory: Path, header: bytes, **changes: Any) -> Launch:
    directory.mkdir(exist_ok=True)
    image = directory / "image.img"
    image.write_bytes(header.ljust(HEADER_SIZE, b"h") + b"data" * 4096)
    word = f"sevsnp.luks=1:{HEADER_SIZE}:{hashlib.sha256(header.ljust(HEADER_SIZE, b'h')).hexdigest()}:{'0' * 64}"
    cmdline = directory / "line"
    cmdline.write_text(f"console=ttyS0 sevsnp.mode=luks {word} sevsnp.rootfs=ext4")
    disk = Disk("luks", image, image.stat().st_size, sha256_file(image))
    launch = make_launch(directory, workflow="luks", disks=(disk,), cmdline=File(cmdline, sha256_file(cmdline)))
    return dataclasses.replace(launch, **changes)


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    return launch_of(tmp_path / "made", b"this volume")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


def test_the_guest_writes_to_a_copy_of_the_image_that_is_kept(launch: Launch, state: Path) -> None:
    first = on_copy(launch, state)
    (disk,) = first.disks
    assert disk.path == (state / "luks.img").resolve() and disk.role == "luks"
    assert disk.path.read_bytes() == launch.disks[0].path.read_bytes()
    assert disk.path.stat().st_mode & 0o777 == 0o600
    with disk.path.open("r+b") as stream:
        stream.seek(HEADER_SIZE + 100)
        stream.write(b"what the guest wrote")
    assert on_copy(launch, state) == first
    assert b"what the guest wrote" in disk.path.read_bytes()
    assert b"what the guest wrote" not in launch.disks[0].path.read_bytes()
    assert [path.name for path in state.iterdir()] == ["luks.img"]


def test_another_volume_s_disk_is_neither_used_nor_overwritten(launch: Launch, state: Path, tmp_path: Path) -> None:
    other = launch_of(tmp_path / "other", b"another volume")
    on_copy(other, state)
    before = (state / "luks.img").read_bytes()
    with pytest.raises(UserError, match=r"luks\.img: the disk of another volume") as refused:
        on_copy(launch, state)
    assert f"rm {state / 'luks.img'}" in refused.value.hint
    assert (state / "luks.img").read_bytes() == before
    on_copy(other, state)  # control


def test_a_disk_of_another_size_is_refused(launch: Launch, state: Path) -> None:
    on_copy(launch, state)
    with (state / "luks.img").open("r+b") as stream:
        stream.truncate(HEADER_SIZE + 10)
    with pytest.raises(UserError, match=r"found 8202 bytes, expected \d+"):
        on_copy(launch, state)


@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_disk_that_is_a_directory_or_a_link_is_refused(launch: Launch, state: Path, kind: str) -> None:
    if kind == "directory":
        (state / "luks.img").mkdir()
    else:
        (state / "luks.img").symlink_to(launch.disks[0].path)
    with pytest.raises(UserError, match="expected a disk image"):
        on_copy(launch, state)


def test_a_changed_image_is_not_copied(launch: Launch, state: Path) -> None:
    with launch.disks[0].path.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"X")
    with pytest.raises(UserError, match=r"found SHA-256 .* \(luks\)"):
        on_copy(launch, state)
    assert list(state.iterdir()) == []


def test_the_other_files_are_checked_every_time(launch: Launch, state: Path) -> None:
    on_copy(launch, state)
    launch.kernel.path.write_bytes(b"another kernel")
    with pytest.raises(UserError, match=r"\(kernel\)"):
        on_copy(launch, state)


def test_a_config_without_a_disk_is_refused(launch: Launch, state: Path) -> None:
    with pytest.raises(UserError, match="expected one, with the role luks"):
        on_copy(dataclasses.replace(launch, disks=()), state)


@pytest.mark.parametrize("line", ["", "sevsnp.luks=1:1:x", "xsevsnp.luks=1:8192:" + "0" * 64 + ":"])
def test_a_command_line_without_sevsnp_luks_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"has no word sevsnp\.luks"):
        measured_header(line)
