# SPDX-License-Identifier: Apache-2.0
"""PACKAGES_SOURCE: the archive of a release is found, resumed and checked; built packages are put into the tree."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sevsnp.errors import UserError
from sevsnp.packages import release_file
from sevsnp.packages.built import make_packages_with_built
from sevsnp.packages.pack_release import pack_release
from sevsnp.packages.release_archive import FIRMWARE, unpack_release
from sevsnp.packages.release_file import find_release
from sevsnp.packages.release_steps import make_packages_from_release
from sevsnp.packages.sets import read_set, read_sets
from sevsnp.packages.tree import MANIFEST
from sevsnp.packages.tree_digest import tree_digest
from tests.conftest import Built
from tests.pipeline.test_packages import archive, lock_sets, no_proxy
from tests.support.debian_repository import Repository, listing
from tests.support.mirror_server import Mirror
from tests.support.release_tree import archive_of, members_of, small_release, written

__all__ = ["archive", "no_proxy"]
NAME = "/v1/snp%20release.tar.gz"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("packed")
    return written(folder / "a.tar.gz", archive_of(members_of(small_release(folder / "tree"))))


@pytest.fixture
def server(packed: tuple[Path, str]) -> Iterator[Mirror]:
    with Mirror(files={"/v1/snp release.tar.gz": packed[0].read_bytes()}) as started:
        yield started


def said(place: str, sha256: str, cache: Path) -> str:
    with pytest.raises(UserError) as found:
        find_release(place, sha256, cache)
    assert "\n" not in found.value.message and "MIRROR" not in str(found.value)
    return found.value.message


def test_a_file_is_accepted_only_with_the_expected_digest(packed: tuple[Path, str], tmp_path: Path) -> None:
    path, digest = packed
    assert find_release(str(path), digest, tmp_path / "cache") == path
    assert not (tmp_path / "cache").exists()
    other = "0" * 64
    assert said(str(path), other, tmp_path) == f"{path}: found SHA-256 {digest}, expected PACKAGES_SHA256={other}"
    assert said(f"{path}x", digest, tmp_path) == f"PACKAGES_RELEASE={path}x: no such file"
    assert "PACKAGES_RELEASE is empty, expected the path or URL" in said("", digest, tmp_path)
    assert "PACKAGES_SHA256 is empty, expected the SHA-256" in said(str(path), "", tmp_path)
    assert "expected a path, or a URL that begins with http" in said("ftp://host/a.tar.gz", digest, tmp_path)


def test_a_download_is_kept_and_not_repeated(server: Mirror, packed: tuple[Path, str], tmp_path: Path) -> None:
    path, digest = packed
    found = find_release(f"{server.uri}{NAME}", digest, tmp_path)
    assert found.read_bytes() == path.read_bytes()
    assert os.listdir(found.parent) == ["content"]
    server.files.clear()
    assert find_release(f"{server.uri}{NAME}", digest, tmp_path) == found
    found.write_bytes(b"damaged")
    assert "the server does not have this file" in said(f"{server.uri}{NAME}", digest, tmp_path)
    assert os.listdir(found.parent) == []


def test_an_interrupted_download_is_resumed(server: Mirror, packed: tuple[Path, str], tmp_path: Path) -> None:
    data, digest = packed[0].read_bytes(), packed[1]
    part = tmp_path / "files" / digest / "content.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(data[:1000])  # as a killed run leaves it
    server.moved["/latest"] = NAME
    assert find_release(f"{server.uri}/latest", digest, tmp_path).read_bytes() == data
    assert "bytes=1000-" in server.ranged
    assert os.listdir(part.parent) == ["content"]


def test_a_network_failure_keeps_the_partial_file_for_the_next_run(
    server: Mirror, packed: tuple[Path, str], tmp_path: Path
) -> None:
    data, digest = packed[0].read_bytes(), packed[1]
    server.breaks = [0, 700]  # the first answer is only asked for its size
    found = said(f"{server.uri}{NAME}", digest, tmp_path)
    assert found.startswith("PACKAGES_RELEASE=http://127.0.0.1") and "cannot be fetched: " in found
    part = tmp_path / "files" / digest / "content.part"
    assert part.read_bytes() == data[:700]
    assert find_release(f"{server.uri}{NAME}", digest, tmp_path).read_bytes() == data
    assert server.ranged[-1] == "bytes=700-"


def test_a_file_with_another_digest_is_refused_and_removed(
    server: Mirror, packed: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "0" * 64
    found = said(f"{server.uri}{NAME}", other, tmp_path)
    assert found == f"PACKAGES_RELEASE={server.uri}{NAME}: found SHA-256 {packed[1]}, expected {other}; removed"
    assert os.listdir(tmp_path / "files" / other) == []
    monkeypatch.setattr(release_file, "LARGEST", 100)
    assert "found the size" in said(f"{server.uri}{NAME}", packed[1], tmp_path)
    assert "cannot be fetched: Connection refused" in said("http://127.0.0.1:9/a.tar.gz", packed[1], tmp_path)


def test_the_tree_comes_from_the_archive_and_the_rest_from_the_lock(
    archive: tuple[Repository, Repository], packed: tuple[Path, str], tmp_path: Path
) -> None:
    """No file has the digests that this lock gives for the tools, so a fetch of that set would fail."""
    texts = {
        "tools": {"tools": {"suite": "trixie", "packages": ["tool"]}},
        "initramfs": {"suite": "trixie", "packages": ["scripts"]},
        "guest": {"suite": "trixie", "packages": ["tool"]},
        "appliance": {"suite": "trixie", "packages": ["scripts"]},
    }
    lists = {name: tmp_path / f"{name}.yaml" for name in texts}
    for name, text in texts.items():
        lists[name].write_text(yaml.safe_dump(text))
    lock, build = tmp_path / "packages.lock", tmp_path / "build"
    sets = [*read_sets(lists["tools"]), *(read_set(path, name) for name, path in lists.items() if name != "tools")]
    lock_sets(archive, lock, *sets)
    before, _, tools = lock.read_text().partition("[sets.tools]")
    wrong = 'sha256 = "' + 64 * "0" + '"'
    lock.write_text(f"{before}[sets.tools]{re.sub('sha256 = .*', wrong, tools)}")

    def make(sha256: str) -> None:
        make_packages_from_release(
            lock=lock, tools=lists["tools"], initramfs=lists["initramfs"], guest=lists["guest"],
            appliance=lists["appliance"], cache_dir=str(tmp_path / "cache"), mirror=archive[0].uri, snapshot="off",
            release=build / "snp-release", initramfs_debs=build / "debs/initramfs", guest_debs=build / "debs/guest",
            appliance_debs=build / "debs/appliance", place=str(packed[0]), sha256=sha256,
        )  # fmt: skip

    with pytest.raises(UserError, match="expected PACKAGES_SHA256"):
        make("0" * 64)
    assert not build.exists()
    make(packed[1])
    assert listing(build / "snp-release") == listing(packed[0].parent / "tree")
    assert len(list(build.glob("debs/guest/tool_*.deb"))) == 1
    assert sorted(path.name for path in (build / "debs").iterdir()) == ["appliance", "guest", "initramfs"]


def test_built_packages_are_put_into_the_tree_of_the_lock(
    archive: tuple[Repository, Repository], tmp_path: Path
) -> None:
    lists = {name: tmp_path / f"{name}.yaml" for name in ("tools", "initramfs", "guest", "appliance")}
    alone = {"suite": "trixie", "dependencies": False}
    tools = {
        "tools": {"suite": "trixie", "packages": ["tool"]},
        "ovmf": {**alone, "packages": ["unwanted"]},
        "kernel": {**alone, "packages": ["linux-image-amd64"]},
    }
    lists["tools"].write_text(yaml.safe_dump(tools))
    for name in ("initramfs", "guest", "appliance"):
        lists[name].write_text(yaml.safe_dump({"suite": "trixie", "packages": ["scripts"]}))
    lock, built, build = tmp_path / "packages.lock", tmp_path / "snp-built", tmp_path / "build"
    sets = [*read_sets(lists["tools"]), *(read_set(path, name) for name, path in lists.items() if name != "tools")]
    lock_sets(archive, lock, *sets)

    def make() -> None:
        make_packages_with_built(
            lock=lock, tools=lists["tools"], initramfs=lists["initramfs"], guest=lists["guest"],
            appliance=lists["appliance"], cache_dir=str(tmp_path / "cache"), mirror=archive[0].uri, snapshot="off",
            release=build / "snp-release", initramfs_debs=build / "debs/initramfs", guest_debs=build / "debs/guest",
            appliance_debs=build / "debs/appliance", built=built,
        )  # fmt: skip

    with pytest.raises(UserError, match="expected the result of a build from source"):
        make()
    assert not build.exists()
    (built / "ovmf").mkdir(parents=True)
    _, digest = written(built / "ovmf/OVMF.fd", b"a firmware")
    (built / "built.json").write_text(json.dumps({"files": {"ovmf/OVMF.fd": digest}}))
    make()
    release = build / "snp-release"
    assert (release / FIRMWARE).read_bytes() == b"a firmware"
    assert (release / "usr/bin/tool").is_file()
    manifest = json.loads((release / MANIFEST).read_text())
    assert manifest["built"] == {"files": {"ovmf/OVMF.fd": digest}}
    assert manifest["tree"] == tree_digest(release, MANIFEST)
    assert sorted(os.listdir(build)) == ["debs", "snp-release"]


@pytest.mark.full  # packs 300 MB
def test_packing_and_unpacking_gives_the_same_tree(built: Built, tmp_path: Path) -> None:
    release, archive = built.build / "snp-release", tmp_path / "snp-release.tar.gz"
    pack_release(release=release, python=release / "bin/python3", output=archive)
    digest = archive.with_name(f"{archive.name}.sha256").read_text().split()[0]
    unpack_release(archive=archive, sha256=digest, output=tmp_path / "tree")
    assert tree_digest(tmp_path / "tree", "") == tree_digest(release, "")
