# SPDX-License-Identifier: Apache-2.0
"""Layers over layers: whiteouts, links, and the refusal of hostile layers."""

import tarfile
from pathlib import Path

import pytest

from sevsnp.archives.tar import Kind, read_tar
from sevsnp.containers.layers import Tree
from sevsnp.errors import UserError
from tests.support.container_images import directory, hard_link, member, symlink, tar_bytes

Members = list[tuple[tarfile.TarInfo, bytes]]
LOWER: Members = [
    directory("usr"),
    directory("usr/lib"),
    member("usr/lib/old", "old"),
    symlink("lib", "usr/lib"),
    directory("etc"),
    member("etc/conf", "lower"),
    directory("var"),
    directory("var/cache"),
    member("var/cache/a", "a"),
    directory("var/cache/deep"),
    member("var/cache/deep/b", "b"),
]


def joined(tmp_path: Path, *layers: Members) -> Tree:
    tree = Tree()
    for number, members in enumerate(layers, 1):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(tar_bytes(members))
        tree.apply(read_tar(path, tree.linked).values(), f"layer {number}")
    return tree


def content(tree: Tree, name: str) -> str:
    found = tree.entries[name].content
    assert found is not None, name
    return found.read().decode()


# The upper layer; what must be there with this content; what must not be there.
CASES: dict[str, tuple[Members, dict[str, str], tuple[str, ...]]] = {
    "a file is replaced": ([member("etc/conf", "upper")], {"etc/conf": "upper"}, ()),
    "a file is hidden": ([member("etc/.wh.conf")], {"usr/lib/old": "old"}, ("etc/conf", "etc/.wh.conf")),
    "a directory is hidden with its content": (
        [member("var/.wh.cache")],
        {},
        ("var/cache", "var/cache/a", "var/cache/deep/b"),
    ),
    "hidden, and made anew in the same layer": (
        [member("var/cache/new", "new"), member("var/.wh.cache")],
        {"var/cache/new": "new"},
        ("var/cache/a", "var/cache/deep"),
    ),
    "an opaque directory keeps what its own layer has": (
        [member("var/cache/new", "new"), member("var/cache/.wh..wh..opq")],
        {"var/cache/new": "new"},
        ("var/cache/a", "var/cache/deep/b", "var/cache/.wh..wh..opq"),
    ),
    "a directory over a directory keeps its content": ([directory("var/cache", 0o700)], {"var/cache/a": "a"}, ()),
    "a file in place of a directory": ([member("var/cache", "file")], {"var/cache": "file"}, ("var/cache/a",)),
    "a directory in place of a link": (
        [directory("lib"), member("lib/new", "new")],
        {"lib/new": "new", "usr/lib/old": "old"},
        ("usr/lib/new",),
    ),
    "through a link, as the engine's own unpacking": (
        [member("lib/new", "new")],
        {"usr/lib/new": "new", "usr/lib/old": "old"},
        ("lib/new",),
    ),
    "a whiteout through a link": ([member("lib/.wh.old")], {}, ("usr/lib/old",)),
    "a whiteout of what is not there": ([member("opt/.wh.none"), member("etc/.wh.none")], {"etc/conf": "lower"}, ()),
    "missing directories are made": ([member("srv/a/b", "b")], {"srv/a/b": "b"}, ()),
    "AUFS's own files": (
        [directory(".wh..wh.plnk"), member(".wh..wh.aufs", "x")],
        {},
        (".wh..wh.plnk", ".wh..wh.aufs"),
    ),
    "an absolute name lies in the root": ([member("/etc/conf", "upper")], {"etc/conf": "upper"}, ()),
    "an absolute link leads into the root": (
        [symlink("out", "/etc"), member("out/new", "new")],
        {"etc/new": "new"},
        ("out/new",),
    ),
    "a link above the root ends at the root": (
        [symlink("up", "../../../../etc"), member("up/new", "new")],
        {"etc/new": "new"},
        (),
    ),
    "a hard link to a file of the lower layer": ([hard_link("etc/same", "etc/conf")], {"etc/same": "lower"}, ()),
    "a hard link through a link of the lower layer": ([hard_link("same", "lib/old")], {"same": "old"}, ()),
    "a hard link to a file that its layer hides": (
        [hard_link("etc/same", "etc/conf"), member("etc/.wh.conf")],
        {"etc/same": "lower"},
        ("etc/conf",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_layer_over_another(tmp_path: Path, case: str) -> None:
    upper, there, gone = CASES[case]
    tree = joined(tmp_path, LOWER, upper)
    for name, text in there.items():
        assert content(tree, name) == text
    assert not tree.entries.keys() & set(gone)
    assert all(name == "" or name.rpartition("/")[0] in tree.entries for name in tree.entries)


def test_hard_links_over_layers_stay_one_file(tmp_path: Path) -> None:
    tree = joined(tmp_path, LOWER, [hard_link("etc/same", "etc/conf")])
    one, two = tree.entries["etc/conf"].content, tree.entries["etc/same"].content
    assert one and two and one.inode == two.inode


HOSTILE: dict[str, tuple[Members, str]] = {
    "..": ([member("etc/../../outside", "x")], "'..'"),
    "a whiteout of its parent": ([member("etc/.wh...")], "a whiteout of '..'"),
    "a whiteout of its directory": ([member("etc/.wh..")], "a whiteout of '.'"),
    "a whiteout of nothing": ([member("etc/.wh.")], "a whiteout of ''"),
    "below a file": ([member("etc/conf/below", "x")], "/etc/conf: found a file, expected a directory"),
    "a loop of links": ([symlink("a", "b"), symlink("b", "a"), member("a/x", "x")], "loop"),
    "a hard link out of the root": ([hard_link("x", "../../etc/passwd")], "'..'"),
    "a hard link to nothing": ([hard_link("x", "etc/none")], "expected a link to an earlier file"),
    "a hard link to a directory": ([hard_link("x", "etc")], "expected a link to an earlier file"),
    "the root is a link": ([symlink(".", "/etc")], "expected a directory as the root"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_layers(tmp_path: Path, case: str) -> None:
    upper, said = HOSTILE[case]
    with pytest.raises(UserError) as caught:
        joined(tmp_path, LOWER, upper)
    assert said in str(caught.value)


def test_control_a_plain_unpacker_leaves_its_directory(tmp_path: Path) -> None:
    """The same layers, unpacked into a directory without checks: a file appears outside, and one behind a link."""
    (tmp_path / "elsewhere").mkdir()
    layers = (
        HOSTILE[".."][0],
        [symlink("out", f"{tmp_path}/elsewhere"), member("out/new", "new")],
    )
    for number, members in enumerate(layers):
        path, root = tmp_path / f"{number}.tar", tmp_path / "root" / "deep"
        root.mkdir(parents=True, exist_ok=True)
        (root / "etc").mkdir(exist_ok=True)
        path.write_bytes(tar_bytes(members))
        with tarfile.open(path) as archive:
            archive.extractall(root, filter="fully_trusted")
    assert (tmp_path / "root" / "outside").exists() and (tmp_path / "elsewhere" / "new").exists()


def test_records_of_gigabytes_are_not_read_into_memory(tmp_path: Path) -> None:
    """The header claims 8 GiB of records; the file has a hole there."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, (8 << 30) - 512
    path = tmp_path / "layer.tar"
    with path.open("wb") as stream:
        stream.write(info.tobuf(tarfile.GNU_FORMAT))
        stream.truncate(9 << 30)
    with pytest.raises(UserError, match="bytes of extended records"):
        read_tar(path)


def test_device_nodes_and_attributes(tmp_path: Path) -> None:
    """A device node is an entry of the root, as in every tar; attributes that no image keeps are counted."""
    node = member("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    noted = member("etc/noted", "x", pax_headers={"SCHILY.xattr.user.x": "1"})
    tree = joined(tmp_path, LOWER, [node, noted])
    assert tree.entries["dev/null"].kind is Kind.CHARACTER and tree.entries["dev/null"].device == (1, 3)
    assert tree.lost == {"user.x": 1} and tree.entries["etc/noted"].attributes == ()
