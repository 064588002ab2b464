# SPDX-License-Identifier: Apache-2.0
"""Hints about disks: a full disk, a replaced disk image, and two measurements at once."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sevsnp.bench.boot import bench_boot
from sevsnp.qemu.disk_record import format_of
from sevsnp.system.locks import locked
from tests.conftest import PROJECT
from tests.pipeline.test_full_disk import Namespace
from tests.support.table import Told, remedies

QCOW2 = b"QFI\xfb\x00\x00\x00\x03" + bytes(1 << 16)


@remedies("sevsnp.system.command_failed", "see: df -h {}")
@remedies("sevsnp.system.command", "set TMPDIR to a directory on another disk, or see: df -h {}")
@remedies("sevsnp.system.files", "see: df -h {}")
@remedies("sevsnp.volumes.directory", "make room there, or set DATA_DIR to another disk: df -h {}")
@remedies("sevsnp.qemu.appliance", "see: df -h {}")
@remedies("sevsnp.bench.boot", "see: df -h {}")
def test_a_full_disk(told: Told, namespace: Namespace, tmp_path: Path) -> None:
    place = tmp_path / "a full disk"
    namespace.mount(place, "size=8m,nr_inodes=8")
    job: list[str | Path] = [sys.executable, "-m", "tests.support.full_disk_job", place, tmp_path, *told.rows]
    done = subprocess.run(
        namespace.argv("env", "-C", PROJECT, *job), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told.seen |= set(done.stdout.splitlines())


@remedies("sevsnp.qemu.disk_record", "if it is another disk now, forget what it was: rm {}", "remove it: rm {}")
def test_a_replaced_disk_image(told: Told, tmp_path: Path) -> None:
    image, record = tmp_path / "my disk", tmp_path / "the record.json"
    image.write_bytes(QCOW2)
    format_of(image, record)
    image.write_bytes(bytes(1 << 16))
    told.mends(lambda: format_of(image, record))
    record.write_text("no record")
    told.mends(lambda: format_of(image, record))


@remedies("sevsnp.bench.boot", "wait until it has ended: two measurements at once slow each other")
def test_two_measurements(told: Told, tmp_path: Path) -> None:
    nonsuch = tmp_path / "nonsuch"
    given: dict[str, Any] = dict.fromkeys(inspect.signature(bench_boot).parameters, nonsuch)
    given |= {"results": tmp_path / "boot.json", "runs": 1, "memory": 1 << 33, "large": 1}
    with locked(tmp_path / "boot.lock"):
        told.hint(lambda: bench_boot(**given))
    with pytest.raises(FileNotFoundError, match="nonsuch"):  # past the lock, to the root that is not there
        bench_boot(**given)
