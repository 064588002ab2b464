# SPDX-License-Identifier: Apache-2.0
"""adopt_luks and update_luks before a process is started: the inputs they refuse. tests/pipeline tests their work."""

import fcntl
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.images.luks2 import Luks2
from sevsnp.keys import luks_key
from sevsnp.keys.luks_key import Record, read_record
from sevsnp.volumes.boot import _check_unused, _key, adopt_volume, check_tables, update_volume
from sevsnp.volumes.directory import Source, Volume
from tests.support.written_volume import KEY, make_source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return make_source(tmp_path / "away")


@pytest.fixture
def disk(source: Source) -> Path:
    return source.directory / "luks.img"


def adopt(tmp_path: Path, image: Path | None) -> None:
    named: dict[str, Any] = {"boot": {}, "appliance": {}, "key_file": ""}
    adopt_volume(
        image=image, directory=tmp_path / "none", data_dir=tmp_path / "data", config_dir=tmp_path / "config", **named
    )


def test_disks_that_are_not_made_by_this_project_are_refused(tmp_path: Path, source: Source, disk: Path) -> None:
    with pytest.raises(UserError, match="IMAGE: not set"):
        adopt(tmp_path, None)
    with pytest.raises(UserError, match="no such file"):
        adopt(tmp_path, tmp_path / "none")
    with pytest.raises(UserError, match="kernel: not a LUKS2 header"):
        adopt(tmp_path, source.directory / "kernel")
    with pytest.raises(UserError, match="neither its key nor its record is in"):
        adopt(tmp_path, disk)
    Volume.of(tmp_path / "data", source.uuid).make(source)
    with pytest.raises(UserError, match="has a directory, and nothing in it was changed"):
        adopt(tmp_path, disk)


def test_the_key_must_open_the_disk_and_is_recorded(
    tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    luks, config_dir, key_file = Luks2.read(disk), tmp_path / "config", tmp_path / "key"
    key_file.write_bytes(b"another key")
    key_file.chmod(0o600)
    with pytest.raises(UserError, match="this key does not open"):
        _key(luks, disk, config_dir, str(key_file))
    assert luks_key.known_volumes(config_dir) == []
    key_file.write_bytes(KEY)
    assert _key(luks, disk, config_dir, str(key_file)).data == KEY
    assert read_record(config_dir, luks.uuid) == Record("given", sent=True)
    assert "how often it was booted is not known" in capsys.readouterr().out
    luks_key.update_record(config_dir, luks.uuid, generation=5)
    assert _key(luks, disk, config_dir, str(key_file)).data == KEY and capsys.readouterr().out == ""
    assert read_record(config_dir, luks.uuid).generation == 5, "what is known of it counts"
    with pytest.raises(UserError, match="made with a key of your own, and none is given"):
        _key(luks, disk, config_dir, "")


def test_a_disk_that_a_guest_runs_on(disk: Path) -> None:
    _check_unused(disk)  # control
    descriptor = os.open(disk, os.O_RDWR)
    try:
        # As QEMU does for a disk that it writes to: a shared lock on a byte for each right (block/file-posix.c).
        fcntl.fcntl(descriptor, 37, struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 101, 1, 0))
        with pytest.raises(UserError, match="a guest runs on it"):
            _check_unused(disk)
    finally:
        os.close(descriptor)
    _check_unused(disk)


# As the appliance has said them.
CRYPT = (
    f"0 534008 crypt capi:authenc(hmac(sha256),xts(aes))-random {'0' * 192} 0 253:0 0 2 integrity:48:aead "
    "sector_size:4096\n"
)
INTEGRITY = (
    "0 534008 integrity 254:0 2048 48 J 7 block_size:4096 journal_sectors:4224 interleave_sectors:32768 "
    "buffer_sectors:128 journal_watermark:50 commit_time:10000 fix_padding\n"
)


def test_our_own_device_mapper_tables_are_accepted(disk: Path) -> None:
    check_tables(disk, CRYPT, INTEGRITY)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("capi:authenc(hmac(sha256),xts(aes))-random", "cipher_null-ecb"),
        ("xts(aes)", "ecb(aes)"),
        (" integrity:48:aead", ""),
        ("sector_size:4096", "sector_size:512"),
        ("253:0 0 2", "253:0 8 2"),
        ("0 253:0", "8 253:0"),
        ("2048 48 J", "2048 48 D"),
        ("2048 48 J", "2048 48 R"),
        ("2048 48 J", "4096 48 J"),
        ("2048 48 J", "2048 32 J"),
        ("J 7 ", "J 8 allow_discards "),
        ("fix_padding", "recalculate"),
        ("interleave_sectors:32768", "interleave_sectors:1"),
        ("\n", "\n0 8 linear 7:0 0\n"),
    ],
)
def test_other_tables(disk: Path, old: str, new: str) -> None:
    assert old in CRYPT + INTEGRITY
    with pytest.raises(UserError, match="table is not made by this project"):
        check_tables(disk, CRYPT.replace(old, new), INTEGRITY.replace(old, new))


def test_update_luks_is_refused_before_a_guest_has_run(tmp_path: Path, source: Source) -> None:
    with pytest.raises(UserError, match="no guest has run on it") as refused:
        update_volume(
            directory=source.directory, configs=source.configs, data_dir=tmp_path / "data", volume="", boot={}
        )
    assert refused.value.hint == "run: ./doitw setup_luks"
    volume = Volume.of(tmp_path / "data", source.uuid)
    volume.make(source)
    with volume.locked(), pytest.raises(UserError, match="in use by process"):
        update_volume(
            directory=source.directory, configs=source.configs, data_dir=tmp_path / "data", volume="", boot={}
        )
