# SPDX-License-Identifier: Apache-2.0
"""Packages that were built from source: put into build/snp-release and named in the manifest."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.packages.built import RECORD, add_built, read_built
from sevsnp.packages.release_archive import FIRMWARE, check_release
from sevsnp.packages.tree import MANIFEST
from sevsnp.system.files import sha256_file
from tests.support.debian_repository import build_deb
from tests.support.release_tree import PACKAGE, small_release

SETS = {
    "tools": [replace(PACKAGE, name="mtools"), replace(PACKAGE, name="qemu-system-x86")],
    "ovmf": [replace(PACKAGE, name="ovmf-amdsev"), replace(PACKAGE, name="ovmf-generic")],
    "kernel": [replace(PACKAGE, name="linux-image-1")],
}


def record(built: Path) -> None:
    files = sorted(path for path in built.rglob("*") if path.is_file() and path.name != RECORD)
    digests = {path.relative_to(built).as_posix(): sha256_file(path) for path in files}
    (built / RECORD).write_text(json.dumps({"pin": "stable", "files": digests}))


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """As packages_fetch leaves it."""
    place = tmp_path / "snp-built"
    for name in ("qemu/usr/bin/qemu-system-x86_64", "qemu/usr/share/qemu/new/a.bin", "ovmf/OVMF.fd"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(f"built {name}\n")
    (place / "qemu/usr/bin/qemu-system-x86_64").chmod(0o775)
    (place / "qemu/usr/bin/qemu-kvm").symlink_to("qemu-system-x86_64")
    for stage in ("guest-kernel", "host-kernel"):
        (place / stage).mkdir()
        build_deb(place / stage, f"linux-image-{stage}")
    record(place)
    return place


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small_release(tmp_path / "snp-release")


def names(tree: Path) -> dict[str, list[str]]:
    sets = json.loads((tree / MANIFEST).read_text())["sets"]
    return {name: [one["name"] for one in listed] for name, listed in sets.items()}


def test_everything_that_was_built_is_in_the_tree(tree: Path, built: Path) -> None:
    add_built(tree, built, SETS, read_built(built))
    program = tree / "usr/bin/qemu-system-x86_64"
    assert program.read_text() == "built qemu/usr/bin/qemu-system-x86_64\n"
    assert program.stat().st_mode & 0o777 == 0o755
    assert (tree / "usr/bin/qemu-kvm").readlink() == Path("qemu-system-x86_64")
    assert (tree / "usr/share/qemu/new/a.bin").stat().st_mode & 0o777 == 0o644
    assert (tree / FIRMWARE).read_text() == "built ovmf/OVMF.fd\n"
    assert [path.name.partition("_")[0] for path in (tree / "linux/guest").iterdir()] == ["linux-image-guest-kernel"]
    assert [path.name.partition("_")[0] for path in (tree / "linux/host").iterdir()] == ["linux-image-host-kernel"]
    assert names(tree) == {"kernel": [], "ovmf": ["ovmf-generic"], "tools": ["mtools"]}
    assert json.loads((tree / MANIFEST).read_text())["built"]["pin"] == "stable"
    check_release(tree, "it")  # complete, and sealed


def test_one_stage_replaces_only_its_own_files(tree: Path, built: Path) -> None:
    for stage in ("ovmf", "guest-kernel", "host-kernel"):
        shutil.rmtree(built / stage)
    record(built)
    before = json.loads((tree / MANIFEST).read_text())["tree"]
    firmware, kernels = (tree / FIRMWARE).read_bytes(), os.listdir(tree / "linux/guest")
    add_built(tree, built, SETS, read_built(built))
    assert (tree / FIRMWARE).read_bytes() == firmware and os.listdir(tree / "linux/guest") == kernels
    assert names(tree) == {
        "kernel": ["linux-image-1"], "ovmf": ["ovmf-amdsev", "ovmf-generic"], "tools": ["mtools"],
    }  # fmt: skip
    assert json.loads((tree / MANIFEST).read_text())["tree"] != before
    check_release(tree, "it")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda built: (built / RECORD).unlink(), "no such file, expected the result of a build from source"),
        (lambda built: (built / RECORD).write_text("{}"), "not the record of a build"),
        (lambda built: (built / RECORD).write_text("["), "not the record of a build"),
        (
            lambda built: (built / "ovmf/OVMF.fd").write_text("other"),
            r"ovmf/OVMF\.fd differs from what built",
        ),
        (lambda built: (built / "ovmf/OVMF.fd").unlink(), r"ovmf/OVMF\.fd differs from what built"),
        (lambda built: (built / "qemu/more").write_text(""), r"qemu/more differs from what built"),
        (lambda built: (built / "more").write_text(""), "found more, expected files of the stages qemu, "),
    ],
)
def test_a_fetched_tree_that_was_changed_is_refused(damage: Callable[[Path], object], said: str, built: Path) -> None:
    read_built(built)  # control
    damage(built)
    with pytest.raises(UserError, match=said) as found:
        read_built(built)
    assert "\n" not in found.value.message


def test_no_built_file_goes_through_a_link_out_of_the_tree(tree: Path, built: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tree / "usr/share/qemu").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="usr/share/qemu is a link out of the tree"):
        add_built(tree, built, SETS)
    assert os.listdir(tmp_path / "outside") == []
    (tree / "usr/share/qemu").unlink()  # control
    add_built(tree, built, SETS)
    (tree / "usr/share/qemu/new/a.bin").unlink()
    (tree / "usr/share/qemu/new/a.bin").mkdir()
    with pytest.raises(UserError, match=r"found a directory at usr/share/qemu/new/a\.bin"):
        add_built(tree, built, SETS)
