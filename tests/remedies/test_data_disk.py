# SPDX-License-Identifier: Apache-2.0
"""Hints about the data disk of a verified guest."""

import contextlib
from functools import partial
from pathlib import Path

import pytest

from sevsnp.e2e.run import check_no_data
from sevsnp.vm_config.config import Launch, VmConfig
from sevsnp.volumes.data_disk import data_volume
from sevsnp.volumes.directory import left
from tests.support.data_disk import data_launch
from tests.support.evidence import REFERENCE, make_launch
from tests.support.table import Told, remedies
from tests.unit.volumes.test_data_disk import take, written


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    (tmp_path / "made").mkdir()
    return data_launch(tmp_path / "made")


@remedies("sevsnp.volumes.data_disk", "end that guest first")
def test_a_disk_in_use(told: Told, launch: Launch, tmp_path: Path) -> None:
    with contextlib.ExitStack() as guest:
        guest.enter_context(data_volume(launch, tmp_path / "data"))
        told.mended(partial(written, launch, tmp_path / "data", b""), guest.close)


@remedies("sevsnp.images.data_disk", "take it again: ./doitw setup_verity DATA_SIZE=16M VOLUME={}")
def test_a_disk_that_was_replaced(
    told: Told, launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(launch, tmp_path / "data", b"kept")
    (tmp_path / "two").mkdir()
    other = written(data_launch(tmp_path / "two", 2), tmp_path / "data", b"of another")
    take(tmp_path, other.parent.name)
    take(tmp_path, told.read(capsys.readouterr().out).rpartition("VOLUME=")[2])
    assert b"kept" in (tmp_path / "build" / "data" / "data.img").read_bytes()


@remedies("sevsnp.images.data_disk", "end that guest first")
@remedies(
    "sevsnp.volumes.directory",
    "{}: data disk, {} MiB, written {}; make a guest with it: ./doitw setup_verity DATA_SIZE=16M VOLUME={}",
)
def test_a_disk_that_a_guest_has_written_to(told: Told, launch: Launch, tmp_path: Path) -> None:
    written(launch, tmp_path / "data", b"kept")
    line = told.read("\n".join(left(tmp_path / "data")))
    volume = line.rpartition("VOLUME=")[2]
    with contextlib.ExitStack() as guest:
        guest.enter_context(data_volume(launch, tmp_path / "data"))
        told.mended(lambda: take(tmp_path, volume), guest.close)
    assert b"kept" in (tmp_path / "build" / "data" / "data.img").read_bytes()


@remedies("sevsnp.e2e.run", "run it for a guest without one: ./doitw e2e DATA_SIZE=0")
def test_e2e_for_a_guest_with_a_data_disk(told: Told, launch: Launch, tmp_path: Path) -> None:
    plain = make_launch(tmp_path / "made", workflow="verity")
    told.instead(
        lambda: check_no_data(VmConfig(tmp_path / "vm-config.toml", launch, REFERENCE)),
        lambda: check_no_data(VmConfig(tmp_path / "vm-config.toml", plain, REFERENCE)),
    )
