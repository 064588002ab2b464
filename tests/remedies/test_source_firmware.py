# SPDX-License-Identifier: Apache-2.0
"""Hints about the firmware from source: its source, its compiler, and its result."""

import shutil
from pathlib import Path

import pytest

from sevsnp.firmware.source import TOOLS, build_firmware
from tests.conftest import Built
from tests.remedies.test_launch import replace
from tests.support.table import Told, remedies
from tests.unit.packages.test_compiler import fetched, mirror

__all__ = ["mirror"]
GIT = "git -c user.name=a -c user.email=a@b"


@remedies(
    "sevsnp.packages.steps",
    "do not set FIRMWARE=source, or name a snapshot mirror in config.yaml: "
    'snapshot_mirror: "https://HOST/archive/debian/@SNAPSHOTID@"',
)
def test_a_mirror_without_the_source(told: Told, mirror: Path) -> None:
    snapshot = mirror.parent / "archive/debian/20260131T120000Z"
    snapshot.mkdir(parents=True)
    (mirror / "edk2_1.orig.tar.xz").rename(snapshot / "edk2_1.orig.tar.xz")
    told.instead(lambda: fetched(mirror), lambda: fetched(mirror, f"file:{mirror.parent}/archive/debian/@SNAPSHOTID@"))


@remedies("sevsnp.packages.steps", "restore it: git checkout {}")
def test_a_damaged_lock_of_sources(told: Told, mirror: Path) -> None:
    assert told.shell(f"git init -q . && git add sources.lock && {GIT} commit -qm x").returncode == 0
    (mirror.parent / "sources.lock").write_text("damaged")
    told.mends(lambda: fetched(mirror))


@remedies("sevsnp.firmware.source", "run: apt-get install {}")
def test_a_missing_compiler(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an apt-get that installs the program of the package by that name, and a script that needs none."""
    bare, script = tmp_path / "bin", tmp_path / "script"
    bare.mkdir()
    for name in ("bash", *TOOLS):
        (bare / name).symlink_to("/bin/sh" if name == "bash" else "/bin/true")
    (bare / "iasl").unlink()
    (bare / "apt-get").write_text(f'#!/bin/sh\n[ "$*" = "install acpica-tools" ] && ln -s /bin/true "{bare}/iasl"\n')
    (bare / "apt-get").chmod(0o755)
    script.write_text("exit 0\n")
    told.variables["PATH"] = f"{bare}:{told.variables['PATH']}"
    monkeypatch.setenv("PATH", str(bare))
    told.mends(lambda: build_firmware(tree=tmp_path, script=script, work=tmp_path / "w", output=tmp_path / "o"))


@pytest.mark.full  # builds the firmware twice
@remedies("sevsnp.firmware.source", "restore them: git checkout packages.lock sources.lock templates")
def test_a_firmware_with_another_result(told: Told, checkout: Built) -> None:
    assert told.shell("git init -q . && git add -f packages.lock sources.lock templates").returncode == 0
    assert told.shell(f"{GIT} commit -qm x").returncode == 0
    vendor = checkout.project / "templates/firmware/StartKernelDxe/StartKernel.c"
    replace(vendor, vendor.read_bytes().replace(b'L"openend2e-sevsnp"', b'L"another-vendor"'))
    told.mends(lambda: told.doitw("_firmware", "FIRMWARE=source"))
    shutil.rmtree(checkout.project / ".git")
    told.doitw("clean", "_firmware", "FIRMWARE=source")
