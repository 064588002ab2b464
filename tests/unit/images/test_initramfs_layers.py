# SPDX-License-Identifier: Apache-2.0
"""The layers of an initramfs, from stand-in packages and files: their contents, and how joined ones are unpacked."""

import os
import stat
import subprocess
from pathlib import Path

import pytest
import zstandard

from sevsnp.errors import UserError
from sevsnp.images.initramfs import join_layers, make_files_layer, make_modules_layer, make_packages_layer
from sevsnp.images.kernel_needs import NEEDED
from sevsnp.images.lists import layer_files, layer_sources, read_files_list, read_list
from tests.support.newc import Member, read_joined
from tests.unit.images.test_kernel_modules import RELEASE, tree

PLACE = "usr/lib/sevsnp/modules"


def members(layer: Path) -> dict[str, Member]:
    (archive,) = read_joined(layer.read_bytes())
    assert [m.name for m in archive] == sorted(m.name for m in archive)
    return {m.name: m for m in archive}


def package(tmp_path: Path, name: str, files: dict[str, str]) -> Path:
    """A package beside the manifest ``debs/packages.json``, which is returned."""
    root = tmp_path / name
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"
    )
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if content.startswith("->"):
            target.symlink_to(content[2:])
        elif content.startswith("=="):
            os.link(root / content[2:], target)
        else:
            target.write_text(content)
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())):
        folder.chmod(0o755)
    debs = tmp_path / "debs"
    debs.mkdir(exist_ok=True)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", root, debs / f"{name}.deb"], check=True, capture_output=True
    )
    (debs / "packages.json").write_text("{}")
    return debs / "packages.json"


def base_layer(tmp_path: Path, manifest: Path, lists: str = "") -> dict[str, Member]:
    files = tmp_path / "files.yaml"
    files.write_text(lists or "directories: []\n")
    make_packages_layer(manifest=manifest, files=files, output=tmp_path / "base.cpio.zst")
    assert not list(tmp_path.glob("*.spool"))
    return members(tmp_path / "base.cpio.zst")


def test_base_packages_land_on_the_merged_layout(tmp_path: Path) -> None:
    manifest = package(tmp_path, "one", {"bin/tool": "t", "lib/x/lib.so": "l", "usr/bin/alias": "->../../bin/tool"})
    package(tmp_path, "two", {"usr/sbin/daemon": "d", "usr/sbin/same": "==usr/sbin/daemon"})
    found = base_layer(tmp_path, manifest)
    assert {n: m.data for n, m in found.items() if stat.S_ISREG(m.mode)} == {
        "usr/bin/tool": b"t", "usr/lib/x/lib.so": b"l", "usr/sbin/daemon": b"d", "usr/sbin/same": b"d",
    }  # fmt: skip
    links = {n: m.data.decode() for n, m in found.items() if stat.S_ISLNK(m.mode)}
    assert links == {"usr/bin/alias": "../../bin/tool"} | {n: f"usr/{n}" for n in ("bin", "sbin", "lib", "lib64")}
    assert {m.mtime for m in found.values()} == {0}


def test_files_that_files_yaml_excludes_are_left_out(tmp_path: Path) -> None:
    manifest = package(tmp_path, "one", {"usr/share/doc/one": "d", "usr/bin/one": "1"})
    assert "usr/share/doc/one" in base_layer(tmp_path, manifest)
    found = base_layer(tmp_path, manifest, "exclude: ['usr/share/*']\n")
    assert "usr/bin/one" in found and "usr/share/doc/one" not in found


def test_a_listed_module_of_python_that_no_package_has_is_refused(tmp_path: Path) -> None:
    """By its name. Packages without Python's library need none: the appliance's own."""
    lists = "python: [os, 'json/*', nonsuch]\n"
    manifest = package(tmp_path, "one", {"usr/bin/one": "1"})
    assert "usr/bin/one" in base_layer(tmp_path, manifest, lists)
    package(tmp_path, "two", {"usr/lib/python3.13/os.py": "", "usr/lib/python3.13/json/tool.py": ""})
    with pytest.raises(UserError, match=r"files\.yaml: python: the packages have no such module: nonsuch$"):
        base_layer(tmp_path, manifest, lists)


def test_a_damaged_package_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    manifest = package(tmp_path, "one", {"usr/bin/one": "1" * 50_000})
    whole = (tmp_path / "debs/one.deb").read_bytes()
    (tmp_path / "debs/one.deb").write_bytes(whole[:-30])
    with pytest.raises(UserError, match=r"one\.deb"):
        base_layer(tmp_path, manifest)
    assert not list(tmp_path.glob("base*"))


def kernel(tmp_path: Path) -> Path:
    tree(tmp_path, {"a": "shared", "shared": "", "console": "shared,ring", "ring": ""})
    (tmp_path / "version").write_text(f"{RELEASE}\n")
    (tmp_path / "config").write_text("".join(f"CONFIG_{option}=y\n" for option, *_ in NEEDED))
    return tmp_path / "version"


def test_a_kernel_without_options_that_the_guest_needs_is_refused(tmp_path: Path) -> None:
    """By the option, and by the version that introduced it. Control: with the option the layer is made."""
    version, lists = kernel(tmp_path), tmp_path / "modules.yaml"
    lists.write_text("base: [a]\n")
    config = version.with_name("config")
    good = config.read_text()
    for line, words in (
        ("CONFIG_TSM_REPORTS=y\n", ("6.1.0-test is too old: expected 6.7 or newer", "CONFIG_TSM_REPORTS")),
        ("CONFIG_DM_CRYPT=y\n", ("was built without CONFIG_DM_CRYPT", "expected CONFIG_DM_CRYPT=y or =m")),
    ):
        config.write_text(good.replace(line, ""))
        with pytest.raises(UserError) as caught:
            make_modules_layer(version=version, modules=lists, lists=["base"], output=tmp_path / "o")
        assert all(word in str(caught.value) for word in words)
    config.write_text(good.replace("CONFIG_RD_ZSTD=y", "CONFIG_RD_ZSTD=m"))
    with pytest.raises(UserError, match="CONFIG_RD_ZSTD"):
        make_modules_layer(version=version, modules=lists, lists=["base"], output=tmp_path / "o")
    config.write_text(good)
    make_modules_layer(version=version, modules=lists, lists=["base"], output=tmp_path / "o")


def test_modules_layers_share_no_file_and_have_the_load_order(tmp_path: Path) -> None:
    version, lists = kernel(tmp_path), tmp_path / "modules.yaml"
    lists.write_text("base: [a]\nemulated: [console]\n")
    made = {}
    for layer in ("base", "emulated"):
        make_modules_layer(version=version, modules=lists, lists=[layer], output=tmp_path / layer)
        made[layer] = members(tmp_path / layer)
    assert made["base"][f"{PLACE}/base.list"].data == f"/{PLACE}/shared.ko\n/{PLACE}/a.ko\n".encode()
    assert made["emulated"][f"{PLACE}/emulated.list"].data == f"/{PLACE}/ring.ko\n/{PLACE}/console.ko\n".encode()
    images = {layer: {name for name in found if name.endswith(".ko")} for layer, found in made.items()}
    assert images["base"] == {f"{PLACE}/a.ko", f"{PLACE}/shared.ko"}
    assert images["emulated"] == {f"{PLACE}/ring.ko", f"{PLACE}/console.ko"}


def test_one_layer_may_have_several_module_lists(tmp_path: Path) -> None:
    version, lists = kernel(tmp_path), tmp_path / "modules.yaml"
    lists.write_text("base: [a]\nluks: [ring, shared]\nappliance: [console]\n")
    make_modules_layer(version=version, modules=lists, lists=["base", "luks"], output=tmp_path / "measured")
    found = members(tmp_path / "measured")
    assert found[f"{PLACE}/base.list"].data == f"/{PLACE}/shared.ko\n/{PLACE}/a.ko\n".encode()
    assert found[f"{PLACE}/luks.list"].data == f"/{PLACE}/ring.ko\n".encode()
    assert {f"{PLACE}/{name}.ko" for name in ("a", "shared", "ring")} < found.keys()
    # What the measured layer has is not packed again, but it is loaded: this list may be the only one beside the base.
    make_modules_layer(version=version, modules=lists, lists=["appliance"], output=tmp_path / "appliance")
    found = members(tmp_path / "appliance")
    assert found[f"{PLACE}/appliance.list"].data == f"/{PLACE}/ring.ko\n/{PLACE}/console.ko\n".encode()
    assert {name for name in found if name.endswith(".ko")} == {f"{PLACE}/console.ko"}


def files_yaml(tmp_path: Path, text: str) -> Path:
    (tmp_path / "initramfs").mkdir(exist_ok=True)
    (tmp_path / "initramfs/init").write_text("#!init\n")
    (tmp_path / "initramfs/files.yaml").write_text(text)
    return tmp_path / "initramfs/files.yaml"


def test_our_own_files_have_their_mode_and_path(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("e")
    files = files_yaml(
        tmp_path,
        'directories: [newroot]\ninit:\n  - { path: init, source: init, mode: "0755" }\n'
        "  - { path: usr/lib/e, source: ../elsewhere }\nemulated:\n  - { path: x, source: init }\n",
    )
    sources = layer_sources(files)["init"]
    assert sources == [tmp_path / "initramfs/init", tmp_path / "elsewhere"]
    # The mode of the source, which depends on a umask, must not reach the archive.
    (tmp_path / "initramfs/init").chmod(0o600)
    make_files_layer(files=files, sources=sources, layer="init", output=tmp_path / "o")
    shown = {n: (stat.filemode(m.mode), m.data) for n, m in members(tmp_path / "o").items()}
    assert shown["init"] == ("-rwxr-xr-x", b"#!init\n")
    assert shown["usr/lib/e"] == ("-rw-r--r--", b"e")
    assert shown["newroot"] == shown["usr/lib"] == ("drwxr-xr-x", b"")
    make_files_layer(files=files, sources=layer_sources(files)["emulated"], layer="emulated", output=tmp_path / "o")
    assert set(members(tmp_path / "o")) == {"x"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("init: [init]", "init: found 'init', expected path, source and perhaps mode"),
        ("init: [{path: a}]", "init: found {'path': 'a'}"),
        ("init: [{path: a, source: init, owner: 1}]", "init: found"),
        ("init: [{path: a, source: nonsuch}]", "init: nonsuch: no such file"),
        ("init: [{path: a, source: init, mode: '9'}]", "init: mode: found '9', expected octal digits"),
        ("init: [{path: a, source: init, mode: rwx}]", "init: mode: found 'rwx'"),
        ("init: [{path: a, source: init, mode: 0755}]", "init: mode: found 493"),
        ("init: [{path: [a], source: init}]", "init: path: found ['a']"),
        ("init: [{path: /a, source: init}]", "init: path: found '/a', expected one like usr/bin/tool"),
        ("init: [{path: a/../../b, source: init}]", "init: path: found 'a/../../b'"),
        ("init: [{path: a, source: 7}]", "init: source: found 7"),
        ("init: text", "init: found"),
        ("init: {path: a}", "init: found"),
        ("others: []", "unknown key 'others'"),
        ("- a", "found a list, expected the keys"),
        ("", "found a NoneType, expected the keys"),
        ("init: [", "files.yaml: "),
    ],
)
def test_bad_lists_of_files_are_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    files = files_yaml(tmp_path, text)
    with pytest.raises(UserError) as caught:
        layer_files(files, "init")
    assert "files.yaml: " in caught.value.message and words in caught.value.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: [a]\nemulated: [b]\nmore: []", "unknown key 'more'"),
        ("base: a\nemulated: []", "base: found 'a', expected a list"),
        ("base: [{a: b}]\nemulated: []", "base: found"),
        ("base: [a, 7]\nemulated: []", "base: found"),
        ("base: [a]\nemulated: [nonsuch]", "emulated: no module nonsuch"),
    ],
)
def test_bad_lists_of_modules_are_refused_by_name(tmp_path: Path, text: str, words: str) -> None:
    version, lists = kernel(tmp_path), tmp_path / "modules.yaml"
    lists.write_text(text)
    with pytest.raises(UserError) as caught:
        make_modules_layer(version=version, modules=lists, lists=["emulated"], output=tmp_path / "o")
    assert "modules.yaml: " in caught.value.message and words in caught.value.message
    assert not (tmp_path / "o").exists()


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_list(tmp_path / "none.yaml", "a")
    with pytest.raises(UserError, match=r"none\.yaml"):
        read_files_list(tmp_path / "none.yaml")


def test_joined_layers_are_unpacked_one_after_the_other(tmp_path: Path) -> None:
    layers = []
    for name, text in (("one", "1"), ("two", "22"), ("three", "333")):
        files = files_yaml(tmp_path, "init:\n  - { path: same, source: init }\n")
        (tmp_path / "initramfs/init").write_text(text * 77)
        make_files_layer(files=files, sources=layer_sources(files)["init"], layer="init", output=tmp_path / name)
        layers.append(tmp_path / name)
    assert len({layer.stat().st_size % 4 for layer in layers} - {0}) > 0  # or padding would not be shown
    join_layers(layers=layers, output=tmp_path / "joined")
    joined = (tmp_path / "joined").read_bytes()
    assert [archive[-1].data[:3] for archive in read_joined(joined)] == [b"111", b"222", b"333"]
    for layer in layers:  # each where the kernel looks: at a multiple of four
        assert joined.index(layer.read_bytes()) % 4 == 0
    with pytest.raises((AssertionError, zstandard.ZstdError)):
        read_joined(joined[: len(joined) // 2])
