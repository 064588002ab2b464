# SPDX-License-Identifier: Apache-2.0
"""The data disk of a verified guest: a directory for each disk, which stays; never another disk, never two guests."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.host.volume import on_copy
from sevsnp.images.data_disk import FILES, data_volumes, is_current_disk, make_data_disk
from sevsnp.images.luks import image_size
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record, write_record
from sevsnp.qemu.process import launch_disks
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import Launch
from sevsnp.volumes.data_disk import data_volume
from sevsnp.volumes.directory import left, volumes
from sevsnp.volumes.keys import volume_keys
from tests.support.data_disk import CONTENT, KEY, data_launch, make_data_files
from tests.support.written_volume import uuid_of


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    (tmp_path / "made").mkdir()
    return data_launch(tmp_path / "made")


def written(launch: Launch, data_dir: Path, text: bytes) -> Path:
    """Run as a guest that writes ``text`` behind the header; returns the disk."""
    with data_volume(launch, data_dir) as volume:
        assert volume is not None
        disk = on_copy(launch, volume).written
    assert disk is not None
    with disk.path.open("r+b") as stream:
        stream.seek(-len(CONTENT), 2)
        stream.write(text)
    return disk.path


def test_data_of_a_guest_stay_in_the_directory_of_the_disk(launch: Launch, tmp_path: Path) -> None:
    made = launch.written
    assert made is not None
    place = tmp_path / "data" / "volumes" / uuid_of(1)
    assert written(launch, tmp_path / "data", b"kept") == (place / "data.img").resolve()
    assert sorted(path.name for path in place.iterdir()) == sorted([*FILES, "lock"])
    assert place.stat().st_mode & 0o777 == 0o700
    # Another root with the same disk, as after an update.
    updated = data_launch(tmp_path / "made")
    (tmp_path / "made" / "verity-data").write_bytes(b"another root")
    assert b"kept" in written(updated_root(updated), tmp_path / "data", b"").read_bytes()
    assert b"kept" not in made.path.read_bytes()


def updated_root(launch: Launch) -> Launch:
    disks = tuple(disk._replace(size=disk.path.stat().st_size, sha256=sha256_file(disk.path)) for disk in launch.disks)
    return dataclasses.replace(launch, disks=disks)


def test_the_root_is_read_only_and_the_data_disk_is_not(launch: Launch) -> None:
    assert {disk.role: disk.read_only for disk in launch_disks(launch)} == {
        "verity-data": True, "verity-hash": True, "data": False,
    }  # fmt: skip


def test_the_root_is_compared_after_the_data_disk_was_written(launch: Launch, tmp_path: Path) -> None:
    written(launch, tmp_path / "data", b"kept")  # control: with the root as it was made
    (tmp_path / "made" / "verity-data").write_bytes(b"verity-dat4")
    with pytest.raises(UserError, match=r"found SHA-256 .* \(verity-data\)"):
        written(launch, tmp_path / "data", b"")


def test_without_a_data_disk_there_is_no_directory(launch: Launch, tmp_path: Path) -> None:
    plain = dataclasses.replace(launch, disks=launch.disks[:2])
    assert plain.written is None
    with data_volume(plain, tmp_path / "data") as volume:
        assert volume is None
    assert not (tmp_path / "data").exists()


def test_two_guests_never_have_one_disk(launch: Launch, tmp_path: Path) -> None:
    with data_volume(launch, tmp_path / "data"):
        with pytest.raises(UserError, match=rf"data disk {uuid_of(1)}: in use by process \d+ since"):
            written(launch, tmp_path / "data", b"")
        (tmp_path / "two").mkdir()
        written(data_launch(tmp_path / "two", 2), tmp_path / "data", b"")  # another disk's guest may run
    written(launch, tmp_path / "data", b"")  # control


def test_another_disk_in_place_of_the_data_disk_is_neither_used_nor_overwritten(launch: Launch, tmp_path: Path) -> None:
    disk = written(launch, tmp_path / "data", b"kept")
    (tmp_path / "two").mkdir()
    other = written(data_launch(tmp_path / "two", 2), tmp_path / "data", b"of another")
    genuine = disk.read_bytes()
    shutil.copyfile(other, disk)
    with pytest.raises(UserError, match=r"data\.img: the disk of another volume: its LUKS header is not the measured"):
        written(launch, tmp_path / "data", b"")
    assert b"of another" in disk.read_bytes()
    disk.write_bytes(genuine)
    written(launch, tmp_path / "data", b"")  # control


MADE = Record("made")


def known(tmp_path: Path, record: Record | None = MADE) -> dict[str, Any]:
    if record:
        write_record(tmp_path / "config", uuid_of(1), record)
        path = luks_key.key_path(tmp_path / "config", uuid_of(1))
        path.write_bytes(KEY)
        path.chmod(0o600)
    return {
        "config_dir": tmp_path / "config", "key_file": "", "platform": "emulated", "qemu": Path("qemu"),
        "probe_cache": tmp_path / "probe",
    }  # fmt: skip


def test_a_disk_is_made_once(tmp_path: Path) -> None:
    directory = tmp_path / "made"
    image = make_data_files(directory)
    with image.open("r+b") as stream:
        stream.truncate(image_size(16 << 20))
    assert is_current_disk(directory, 16 << 20, "", known(tmp_path))
    assert not is_current_disk(directory, 64 << 20, "", known(tmp_path)), "another size"
    # For a named disk the size is that of the disk.
    assert is_current_disk(directory, 64 << 20, uuid_of(1)[:8] + "-", known(tmp_path))
    assert not is_current_disk(directory, 16 << 20, "ffff", known(tmp_path))
    # A disk whose key an emulated guest has had is none for SEV-SNP.
    exposed = known(tmp_path, Record("made", exposed=True))
    assert is_current_disk(directory, 16 << 20, "", exposed)
    assert not is_current_disk(directory, 16 << 20, "", {**exposed, "platform": "snp"})
    for name in FILES:
        held = (directory / name).read_bytes()
        (directory / name).unlink()
        assert not is_current_disk(directory, 16 << 20, "", known(tmp_path)), name
        (directory / name).write_bytes(held)
    luks_key.forget(tmp_path / "config", uuid_of(1))
    assert not is_current_disk(directory, 16 << 20, "", known(tmp_path, None)), "without its record"


def take(tmp_path: Path, volume: str) -> None:
    nothing = tmp_path / "nothing"
    make_data_disk(
        size=16 << 20, volume=volume, data_dir=tmp_path / "data", directory=tmp_path / "build" / "data",
        kernel=nothing, initrd=nothing, tools=nothing, **known(tmp_path),
    )  # fmt: skip


def test_a_written_data_disk_is_used_again(launch: Launch, tmp_path: Path) -> None:
    disk = written(launch, tmp_path / "data", b"kept")
    none = rf"VOLUME=ffff: found 0 data disks whose UUID begins so, expected one; known: {uuid_of(1)}"
    with pytest.raises(UserError, match=none):
        take(tmp_path, "ffff")
    with data_volume(launch, tmp_path / "data"), pytest.raises(UserError, match="a guest writes to this data disk now"):
        take(tmp_path, uuid_of(1))
    assert not (tmp_path / "build" / "data").exists()
    for _ in range(2):  # also in the place of an earlier one
        take(tmp_path, uuid_of(1))
        assert [(tmp_path / "build" / "data" / name).read_bytes() for name in FILES] == [
            (disk.parent / name).read_bytes() for name in FILES
        ]
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["data"]


def test_the_key_belongs_to_the_data_disk_which_is_not_listed_as_a_volume(launch: Launch, tmp_path: Path) -> None:
    disk = written(launch, tmp_path / "data", b"kept")
    config_dir = known(tmp_path, Record("made", sent=True))["config_dir"]
    (key,) = volume_keys(config_dir, [], tmp_path / "data")
    assert key.belongs == (tmp_path / "data" / "volumes" / uuid_of(1),)
    assert volumes(tmp_path / "data") == [] and data_volumes(tmp_path / "data") == [disk.parent]
    (line,) = left(tmp_path / "data")
    assert line.endswith(f"make a guest with it: ./doitw setup_verity DATA_SIZE=16M VOLUME={uuid_of(1)}")
