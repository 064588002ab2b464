# SPDX-License-Identifier: Apache-2.0
"""unpack_kernel: any good linux-image package, and one clear line for anything else."""

import io
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.packages.kernel import unpack_kernel
from tests.support.debian_repository import build_deb, deb_of

BZIMAGE = bytes(0x202) + b"HdrS" + bytes(100)
GOOD: dict[str, Any] = {
    "boot/vmlinuz-6.1.0-test": BZIMAGE,
    "boot/config-6.1.0-test": "CONFIG_X=y\n",
    "boot/System.map-6.1.0-test": "map",
    "usr/lib/modules/6.1.0-test/modules.builtin": "",
    "usr/lib/modules/6.1.0-test/modules.order": "kernel/a.ko\n",
    "usr/lib/modules/6.1.0-test/kernel/a.ko.xz": "module",
    "usr/lib/modules/6.1.0-test/build": Path("/usr/src/linux-headers"),
}
# As kernels built outside Debian have it, and with no System.map.
OLDER = {name.removeprefix("usr/"): content for name, content in GOOD.items() if "System" not in name}


@pytest.mark.parametrize("content", [GOOD, OLDER])
def test_a_kernel_package_taken_apart(tmp_path: Path, content: dict[str, Any]) -> None:
    deb = build_deb(tmp_path, "linux-image-6.1.0-test", content=content)
    before = os.umask(0o077)
    try:
        assert unpack_kernel(deb=deb, output=tmp_path / "out/kernel") == "6.1.0-test"
    finally:
        os.umask(before)
    out = tmp_path / "out/kernel"
    assert (out / "version").read_text() == "6.1.0-test\n"
    assert (out / "vmlinuz").read_bytes() == BZIMAGE
    assert (out / "config").read_text() == "CONFIG_X=y\n"
    assert (out / "System.map").exists() is (content is GOOD)
    modules = out / "lib/modules/6.1.0-test"
    assert (modules / "kernel/a.ko.xz").read_text() == "module"
    assert not (modules / "build").is_symlink()
    assert {path.stat().st_mode & 0o777 for path in out.rglob("*")} == {0o644, 0o755}
    assert os.listdir(tmp_path / "out") == ["kernel"]


def without(name: str) -> dict[str, Any]:
    return {path: content for path, content in GOOD.items() if name not in path}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (without("vmlinuz"), "found 0 files boot/vmlinuz-VERSION, expected one"),
        ({**GOOD, "boot/vmlinuz-6.2.0-test": BZIMAGE}, "found 2 files boot/vmlinuz-VERSION, expected one"),
        (without("modules"), "found modules for none, expected them for 6.1.0-test"),
        ({**GOOD, "usr/lib/modules/6.2.0/x": ""}, "found modules for 6.1.0-test, 6.2.0, expected"),
        ({**GOOD, "boot/vmlinuz-6.1.0-test": b"\x7fELF" + bytes(1000)}, "is not an x86 kernel image"),
        ({**GOOD, "boot/vmlinuz-6.1.0-test": b""}, "is not an x86 kernel image"),
        ({**GOOD, "boot/vmlinuz-6.1.0-test": Path("elsewhere")}, "boot/vmlinuz-6.1.0-test: expected a plain file"),
        (without("config"), "config is missing"),
        (without("modules.builtin"), "modules.builtin is missing"),
    ],
)
def test_an_odd_layout_is_refused(tmp_path: Path, content: dict[str, Any], said: str) -> None:
    deb = build_deb(tmp_path, "linux-image-6.1.0-test", content=content)
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        unpack_kernel(deb=deb, output=tmp_path / "out/kernel")
    assert str(deb) in caught.value.message
    assert "\n" not in caught.value.message
    assert os.listdir(tmp_path / "out") == []


def test_other_packages_are_refused(tmp_path: Path) -> None:
    tool = build_deb(tmp_path, "tool", content=GOOD)
    with pytest.raises(UserError, match="found the package tool, expected a linux-image package"):
        unpack_kernel(deb=tool, output=tmp_path / "kernel")
    foreign = build_deb(tmp_path, "linux-image-6.1.0-test", arch="arm64", content=GOOD)
    with pytest.raises(UserError, match="found architecture arm64, expected amd64"):
        unpack_kernel(deb=foreign, output=tmp_path / "kernel")


@pytest.mark.parametrize("kept", [0, 10, 200, -100])
def test_a_damaged_package_is_refused(tmp_path: Path, kept: int) -> None:
    deb = build_deb(
        tmp_path, "linux-image-6.1.0-test", content=GOOD | {"usr/lib/modules/6.1.0-test/r": os.urandom(9999)}
    )
    unpack_kernel(deb=deb, output=tmp_path / "good")
    deb.write_bytes(deb.read_bytes()[:kept])
    with pytest.raises(UserError, match=re.escape(str(deb))) as caught:
        unpack_kernel(deb=deb, output=tmp_path / "kernel")
    assert "\n" not in caught.value.message
    assert not (tmp_path / "kernel").exists()
    with pytest.raises(UserError, match="no such file"):
        unpack_kernel(deb=tmp_path / "absent.deb", output=tmp_path / "kernel")


def packed(path: Path, *more: tuple[str, bytes, str]) -> Path:
    """A kernel package at ``path`` with more entries: their name, type and link target."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in OLDER.items():
            if not isinstance(content, Path):
                info = tarfile.TarInfo(f"./{name}")
                text = content if isinstance(content, bytes) else content.encode()
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text))
        for name, kind, target in more:
            info = tarfile.TarInfo(f"./lib/modules/6.1.0-test/{name}")
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return deb_of(path, data.getvalue())


def test_a_hard_link_between_two_modules_is_unpacked(tmp_path: Path) -> None:
    """Controls: a target outside of the modules, and one that is missing."""
    module = "./lib/modules/6.1.0-test/kernel/a.ko.xz"
    unpack_kernel(deb=packed(tmp_path / "a.deb", ("b.ko.xz", tarfile.LNKTYPE, module)), output=tmp_path / "kernel")
    assert (tmp_path / "kernel/lib/modules/6.1.0-test/b.ko.xz").read_text() == "module"
    for target in ("./boot/vmlinuz-6.1.0-test", f"{module}x", f"../{module}"):
        with pytest.raises(UserError, match="unexpected path in the package"):
            deb = packed(tmp_path / "a.deb", ("b.ko.xz", tarfile.LNKTYPE, target))
            unpack_kernel(deb=deb, output=tmp_path / "other")


def test_an_entry_below_a_file_or_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    """Control: an entry below a directory."""
    regular, symbolic = tarfile.REGTYPE, tarfile.SYMTYPE
    unpack_kernel(deb=packed(tmp_path / "a.deb", ("a/b", regular, "")), output=tmp_path / "kernel")
    below_file = (("a", regular, ""), ("a/b", regular, ""))
    in_loop = (("a", symbolic, "b"), ("b", symbolic, "a"), ("a/c", regular, ""))
    for entries in (below_file, in_loop):
        with pytest.raises(UserError, match="unexpected path in the package"):
            unpack_kernel(deb=packed(tmp_path / "a.deb", *entries), output=tmp_path / "other")
