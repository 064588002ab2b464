# SPDX-License-Identifier: Apache-2.0
"""What was built takes the place of Debian's in build/snp-release, which stays a release that others can take."""

import json
from pathlib import Path

import pytest

from sevsnp.builds.release import check_built, overlay
from sevsnp.errors import UserError
from sevsnp.packages.release_archive import check_release
from sevsnp.packages.tree import GUEST_KERNELS
from sevsnp.system.files import sha256_file
from tests.support.debian_repository import as_package, build_deb
from tests.support.release_tree import small_release

FIRMWARE, QEMU = "ovmf/OVMF.fd", "qemu/usr/bin/qemu-system-x86_64"


def make_built(directory: Path, *stages: str) -> Path:
    """What packages_fetch writes, of small files."""
    for name in (FIRMWARE, QEMU):
        if name.split("/")[0] in stages:
            (directory / name).parent.mkdir(parents=True)
            (directory / name).write_text(f"built {name}")
    for stage in {"guest-kernel", "host-kernel"} & {*stages}:
        (directory / stage).mkdir(parents=True)
        build_deb(directory / stage, f"linux-image-6.1-snp-{stage[:5].strip('-')}")
    files = {
        path.relative_to(directory).as_posix(): sha256_file(path) for path in directory.rglob("*") if path.is_file()
    }
    (directory / "built.json").write_text(json.dumps({"files": files, "pin": "stable"}))
    return directory


def release(tmp_path: Path) -> Path:
    tree = small_release(tmp_path / "release")
    kernel = next((tree / GUEST_KERNELS).iterdir())
    manifest = json.loads((tree / "packages.json").read_text())
    entry = {**manifest["sets"]["tools"][0], "name": as_package(kernel).name}
    manifest["sets"]["kernel"] = [entry]
    (tree / "packages.json").write_text(json.dumps(manifest))
    return tree


def test_everything_is_replaced(tmp_path: Path) -> None:
    tree, built = release(tmp_path), make_built(tmp_path / "built", "ovmf", "qemu", "guest-kernel", "host-kernel")
    overlay(built, tree)
    assert (tree / "usr/share/ovmf/OVMF.amdsev.fd").read_text() == f"built {FIRMWARE}"
    assert (tree / "usr/bin/qemu-system-x86_64").read_text() == f"built {QEMU}"
    assert (tree / "usr/bin/qemu-system-x86_64").stat().st_mode & 0o777 == 0o755
    (guest,), (host,) = (list((tree / "linux" / name).iterdir()) for name in ("guest", "host"))
    assert "snp-guest" in guest.name and "snp-host" in host.name
    # It is still a release, whose manifest names the kernel that is there.
    (kernel,) = check_release(tree, "it")["kernel"]
    assert (kernel.name, kernel.sha256) == (as_package(guest).name, sha256_file(guest))
    assert json.loads((tree / "built.json").read_text())["pin"] == "stable"


def test_what_was_not_built_stays(tmp_path: Path) -> None:
    tree = release(tmp_path)
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file() and path.name != "packages.json"}
    overlay(make_built(tmp_path / "built", "ovmf"), tree)
    changed = {path.name for path, data in before.items() if path.read_bytes() != data}
    assert changed == {"OVMF.amdsev.fd"}
    check_release(tree, "it")


def test_what_is_not_as_it_was_built(tmp_path: Path) -> None:
    built = make_built(tmp_path / "built", "ovmf", "qemu")
    check_built(built)
    (built / FIRMWARE).write_text("another")
    with pytest.raises(UserError, match=r"OVMF\.fd: not as it was built: expected SHA-256"):
        check_built(built)
    (built / FIRMWARE).unlink()
    with pytest.raises(UserError, match=r"OVMF\.fd: not as it was built"):
        check_built(built)
    (built / "built.json").write_text("[]")
    with pytest.raises(UserError, match=r"built\.json: damaged"):
        check_built(built)
    with pytest.raises(UserError, match=r"built\.json: no such file"):
        check_built(tmp_path)


def test_two_kernels(tmp_path: Path) -> None:
    built = make_built(tmp_path / "built", "guest-kernel")
    build_deb(built / "guest-kernel", "linux-image-6.2")
    with pytest.raises(UserError, match="guest-kernel: found 2 linux-image packages, expected one"):
        overlay(built, release(tmp_path))
