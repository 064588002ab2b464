# SPDX-License-Identifier: Apache-2.0
"""Kernel modules by name: their dependencies, their load order, and files that are not kernel modules."""

import lzma
import struct
from pathlib import Path

import pytest
import zstandard

from sevsnp.errors import UserError
from sevsnp.images.kernel_modules import ModuleTree, modinfo, read_module

RELEASE = "6.1.0-test"
SIGNATURE = b"~Module signature appended~\n"


def elf(info: dict[str, str], section: str = ".modinfo") -> bytes:
    """The smallest ELF64 file with the section: header, strings, names, and three section headers."""
    strings = b"".join(f"{key}={value}".encode() + b"\0" for key, value in info.items())
    names = f"\0{section}\0.shstrtab\0".encode()
    table = 64 + len(strings) + len(names)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)

    def entry(name: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", name, 1, 0, 0, offset, size, 0, 0, 1, 0)

    headers = entry(0, 0, 0) + entry(1, 64, len(strings)) + entry(2 + len(section), 64 + len(strings), len(names))
    return header + strings + names + headers


def tree(tmp_path: Path, modules: dict[str, str], builtin: str = "kernel/lib/crc-lib.ko\n") -> ModuleTree:
    """A kernel's modules, each with its ``depends=``; names with a suffix of their own are compressed."""
    directory = tmp_path / "lib" / "modules" / RELEASE
    (directory / "kernel").mkdir(parents=True)
    for name, depends in modules.items():
        image = elf({"license": "GPL", "depends": depends}) + SIGNATURE
        if name.endswith(".xz"):
            image = lzma.compress(image)
        elif name.endswith(".zst"):
            image = zstandard.ZstdCompressor().compress(image)
        (directory / "kernel" / (name if ".ko" in name else f"{name}.ko")).write_bytes(image)
    (directory / "modules.builtin").write_text(builtin)
    return ModuleTree(directory)


def test_modinfo() -> None:
    image = elf({"name": "ext4", "depends": "jbd2,mbcache", "parm": "a=b", "empty": ""})
    assert modinfo(image, Path("x.ko")) == {"name": "ext4", "depends": "jbd2,mbcache", "parm": "a=b", "empty": ""}


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\x7fELF\x02",
        b"\x7fELF\x01" + bytes(200),
        elf({"a": "b"}, section=".nothing"),
        elf({"a": "b"})[:100],
        elf({"a": "b"})[:0x3E] + b"\xff\xff" + elf({"a": "b"})[0x40:],
    ],
    ids=["empty", "short", "32 bit", "no section", "truncated", "names index"],
)
def test_a_file_that_is_not_a_kernel_module_is_refused_by_name(image: bytes) -> None:
    with pytest.raises(UserError, match=r"broken\.ko: not a kernel module"):
        modinfo(image, Path("broken.ko"))


def test_dependencies_load_first_and_once(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"top": "left,right", "left": "bottom", "right": "bottom", "bottom": "", "other": ""})
    assert list(modules.closure(["top", "bottom", "other"], "list")) == ["bottom", "left", "right", "top", "other"]


def test_the_order_of_the_list_is_the_order_of_loading(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"a": "", "b": "", "c": "a"})
    assert list(modules.closure(["b", "c"], "list")) == ["b", "a", "c"]


def test_dashes_and_underscores_are_one_name(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"dm-verity": "dm-bufio", "dm-bufio": ""})
    assert list(modules.closure(["dm_verity", "dm-verity"], "list")) == ["dm_bufio", "dm_verity"]


def test_built_in_modules_are_not_loaded(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"ext4": "crc_lib"})
    assert list(modules.closure(["ext4", "crc-lib"], "list")) == ["ext4"]


def test_compressed_modules_are_read(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"a.ko.xz": "b", "b.ko.zst": "", "c": ""})
    found = modules.closure(["a", "c"], "list")
    assert list(found) == ["b", "a", "c"]
    assert all(image.startswith(b"\x7fELF") for image in found.values())


@pytest.mark.parametrize("suffix", [".xz", ".zst"])
def test_damaged_compression_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"m.ko{suffix}").write_bytes(b"not compressed at all")
    with pytest.raises(UserError, match=r"m\.ko\.\w+: not a compressed kernel module"):
        read_module(tmp_path / f"m.ko{suffix}")


@pytest.mark.parametrize("suffix", [".xz", ".zst"])
def test_truncated_compression_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    image = elf({"depends": ""}) + bytes(range(256)) * 64
    whole = lzma.compress(image) if suffix == ".xz" else zstandard.ZstdCompressor().compress(image)
    (tmp_path / f"m.ko{suffix}").write_bytes(whole)
    assert read_module(tmp_path / f"m.ko{suffix}") == image
    (tmp_path / f"m.ko{suffix}").write_bytes(whole[:-20])
    with pytest.raises(UserError, match=r"m\.ko\.\w+: not a compressed kernel module"):
        read_module(tmp_path / f"m.ko{suffix}")


def test_an_unknown_module_is_refused_with_the_list_that_names_it(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"a": "", "b": "gone"})
    assert list(modules.closure(["a"], "modules.yaml: base")) == ["a"]
    with pytest.raises(UserError, match=rf"^modules\.yaml: base: no module nonsuch in {RELEASE}"):
        modules.closure(["a", "nonsuch"], "modules.yaml: base")
    with pytest.raises(UserError, match=r"^b: no module gone"):
        modules.closure(["b"], "modules.yaml: base")


def test_modules_that_need_each_other_are_refused(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"a": "b", "b": "a"})
    with pytest.raises(UserError, match="a"):
        modules.closure(["a"], "list")


def test_a_directory_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no kernel modules here") as caught:
        ModuleTree(tmp_path)
    assert "unpack_kernel" in caught.value.hint


def test_an_unsigned_module_is_refused_when_the_guest_is_built(tmp_path: Path) -> None:
    modules = tree(tmp_path, {"a": ""})
    assert list(modules.closure(["a"], "test")) == ["a"]
    (modules.directory / "kernel" / "a.ko").write_bytes(elf({"depends": ""}))
    with pytest.raises(UserError, match=r"a\.ko: not signed"):
        modules.closure(["a"], "test")
