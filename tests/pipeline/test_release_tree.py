# SPDX-License-Identifier: Apache-2.0
"""build/snp-release: the same tree for every user, in every directory, and never half of it."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.packages.lock import Package
from sevsnp.packages.tree import export_debs, make_release
from sevsnp.packages.unpack import unpack_deb
from sevsnp.packages.wrappers import LOADER
from tests.support.debian_repository import as_package, build_deb, listing


def loader_set(folder: Path) -> dict[Package, Path]:
    """A stand-in for the tools: this machine's own loader and libraries behind the paths of a Debian tree."""
    library = {
        LOADER: b"#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done\n",
        "usr/lib/x86_64-linux-gnu/liba.so": Path("/usr/lib/x86_64-linux-gnu/libb.so"),
        "lib/x86_64-linux-gnu/libb.so": b"b",
        "usr/share/doc/libx/changelog": b"long",
        "usr/share/doc/libx/copyright": b"ours",
        "usr/share/man/man1/x.1": b"long",
    }
    tools = {"sbin/mke2fs": b"m", "usr/bin/qemu-system-x86_64": b"q", "usr/bin/python3": b"p", "etc/mke2fs.conf": b"c"}
    debs = [
        build_deb(folder, "libx", content=library | {"usr/bin/ld": b""}),
        build_deb(folder, "tools", content=tools),
    ]
    return {as_package(deb): deb for deb in debs}


def test_the_tree_is_the_same_under_any_umask(tmp_path: Path) -> None:
    debs = loader_set(tmp_path)
    kernel = build_deb(tmp_path, "linux-image-1")
    for name, mask in (("a", 0o022), ("b", 0o077), ("c", 0o000)):
        before = os.umask(mask)
        try:
            make_release(tools=debs, firmware={}, kernels={as_package(kernel): kernel}, output=tmp_path / name)
        finally:
            os.umask(before)
    a = tmp_path / "a"
    assert listing(a) == listing(tmp_path / "b") == listing(tmp_path / "c")
    assert (a / "lib").readlink() == Path("usr/lib")
    assert (a / "usr/sbin/mke2fs").is_file()
    assert (a / "usr/lib/x86_64-linux-gnu/liba.so").read_bytes() == b"b"
    assert (a / "usr/share/doc/libx/copyright").exists()
    assert not (a / "usr/share/doc/libx/changelog").exists()
    assert not (a / "usr/share/man").exists()
    assert (a / "linux/guest/linux-image-1_1.0_amd64.deb").read_bytes() == kernel.read_bytes()
    manifest = json.loads((a / "packages.json").read_text())["sets"]
    assert [package["name"] for package in manifest["tools"]] == ["libx", "tools"]


def test_wrappers_find_their_tree_in_any_directory(tmp_path: Path) -> None:
    debs = loader_set(tmp_path)
    make_release(tools=debs, firmware={}, kernels={}, output=tmp_path / "a")
    (tmp_path / "else where").mkdir()
    tree = (tmp_path / "a").rename(tmp_path / "else where/tree")
    loader = tree / LOADER
    loader.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(tree / "bin/qemu-system-x86_64")
    library = str(tree / "usr/lib/x86_64-linux-gnu")
    done = subprocess.run([link, "-M", "a b"], capture_output=True, text=True, check=True)
    qemu = [str(tree / "usr/bin/qemu-system-x86_64"), "-L", f"{tree}/usr/share/qemu", "-L", f"{tree}/usr/share/seabios"]
    assert done.stdout.splitlines() == ["--inhibit-cache", "--library-path", library, *qemu, "-M", "a b"]
    python = subprocess.run([tree / "bin/python3", "x"], capture_output=True, text=True, check=True)
    assert python.stdout.splitlines()[3:] == [
        "--argv0",
        f"{tree}/bin/python3",
        f"{tree}/usr/bin/python3",
        "-s",
        "-B",
        "x",
    ]
    assert sorted(os.listdir(tree / "bin")) == ["mke2fs", "python3", "qemu-system-x86_64"]
    loader.write_text("#!/bin/sh\nenv\n")
    environment = {**os.environ, "LD_LIBRARY_PATH": "/poison", "LD_PRELOAD": ""}
    done = subprocess.run([tree / "bin/mke2fs"], capture_output=True, text=True, check=True, env=environment)
    assert "LD_" not in done.stdout
    assert f"MKE2FS_CONFIG={tree}/etc/mke2fs.conf" in done.stdout.splitlines()


def test_a_failed_build_leaves_the_old_tree(tmp_path: Path) -> None:
    debs = loader_set(tmp_path)
    make_release(tools=debs, firmware={}, kernels={}, output=tmp_path / "out/tree")
    before = listing(tmp_path / "out/tree")
    broken = tmp_path / "broken_1.0_amd64.deb"
    broken.write_bytes(next(iter(debs.values())).read_bytes()[:-200])
    with pytest.raises(UserError, match=r"broken_1\.0_amd64\.deb"):
        make_release(tools={**debs, as_package(broken): broken}, firmware={}, kernels={}, output=tmp_path / "out/tree")
    assert listing(tmp_path / "out/tree") == before
    assert os.listdir(tmp_path / "out") == ["tree"]


def test_no_package_reaches_outside_its_tree(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    evil = build_deb(tmp_path, "evil", content={"usr/share/way": Path("../../../outside")})
    after = build_deb(tmp_path, "zz-after", content={"usr/share/way/file": "x"})
    tree = tmp_path / "tree"
    tree.mkdir()
    unpack_deb(evil, tree)
    with pytest.raises(UserError, match="expected a path below the root"):
        unpack_deb(after, tree)
    assert os.listdir(tmp_path / "outside") == []
    (tree / "usr/share/way").unlink()  # the control arm: without the link the same package is fine
    unpack_deb(after, tree)


def test_exported_debs_are_a_repository(tmp_path: Path) -> None:
    deb = build_deb(tmp_path, "lib+a", "1:2.0", fields="Depends: x\n")
    package = dataclasses.replace(as_package(deb), version="1:2.0")
    export_debs(name="guest", debs={package: deb}, output=tmp_path / "debs/guest")
    index = (tmp_path / "debs/guest/Packages").read_text()
    assert "Version: 1:2.0\n" in index
    assert f"Filename: ./{deb.name}\nSize: {package.size}\nSHA256: {package.sha256}\n" in index
    assert (tmp_path / "debs/guest" / deb.name).read_bytes() == deb.read_bytes()
