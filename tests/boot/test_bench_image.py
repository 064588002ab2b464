# SPDX-License-Identifier: Apache-2.0
"""The benchmark of imports with the real appliance, and small images."""

import json
from pathlib import Path

import pytest

from sevsnp.bench.image import GIB, bench_image
from tests.conftest import Built

pytestmark = [pytest.mark.boot, pytest.mark.full]


def test_each_import_has_a_row_of_times_and_one_of_memory(built: Built, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    bench_image(
        qemu=built.qemu,
        kernel=built.build / "kernel" / "vmlinuz",
        initrd=built.build / "initramfs.appliance.cpio.zst",
        probe_cache=tmp_path / "platform.json",
        tools=built.tools,
        results=out / "image.json",
        rounds=1,
        files=2000,
        hole=20 * GIB,
    )
    rows = json.loads((out / "image.json").read_text())["measures"]
    assert [(row["name"].split(":")[-1].strip(), row["ratio"] > 0) for row in rows] == [
        ("time", True),
        ("memory", True),
    ] * 2
    # Nothing was written for the hole, and the appliance is most of the memory.
    assert all(row["bytes"][0] > 64 << 20 for row in rows if "bytes" in row)
    assert [path.name for path in out.iterdir()] == ["image.json"]
