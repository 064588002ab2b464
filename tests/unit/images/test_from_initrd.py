# SPDX-License-Identifier: Apache-2.0
"""FROM_INITRD: which files of a distribution's initrd are kept, and that none of them replaces ours."""

import stat
from pathlib import Path

import pytest

from sevsnp.archives.cpio import write_cpio
from sevsnp.archives.rootfs import directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Entry
from sevsnp.errors import UserError
from sevsnp.images.from_initrd import make_initrd_layer
from sevsnp.images.initramfs import join_layers, write_layer
from tests.support.newc import Member, read_joined

RELEASE = "6.12.1-test"
OURS = (
    directory_entry("dev"),
    directory_entry("newroot"),
    text_entry("init", "#!ours\n", 0o755),
    link_entry("lib", "usr/lib"),
    directory_entry("usr"),
    directory_entry("usr/bin"),
    text_entry("usr/bin/busybox", "our busybox", 0o755),
    link_entry("usr/bin/python3", "python3.13"),
    directory_entry("usr/lib"),
    directory_entry("usr/lib64"),
    text_entry("usr/lib64/ld-linux-x86-64.so.2", "our loader", 0o755),
    directory_entry("usr/sbin"),
    text_entry("usr/sbin/dmsetup", "our dmsetup", 0o755),
)
THEIRS = (
    text_entry("init", "#!theirs\n", 0o755),
    directory_entry(f"usr/lib/modules/{RELEASE}/kernel"),
    text_entry(f"usr/lib/modules/{RELEASE}/kernel/x.ko", "module"),
    text_entry("usr/lib/firmware/card.bin", "firmware"),
    text_entry("usr/bin/tool", "their tool", 0o755),
)


def layer(tmp_path: Path, *theirs: Entry) -> Path:
    """The layer that is made of an initrd with these entries."""
    initrd = tmp_path / "initrd.img"
    with initrd.open("wb") as stream:
        write_cpio(theirs, stream)
    write_layer(OURS, tmp_path / "ours")
    (tmp_path / "version").write_text(f"{RELEASE}\n")
    output = tmp_path / "initrd.cpio.zst"
    make_initrd_layer(initrd=initrd, version=tmp_path / "version", layers=[tmp_path / "ours"], output=output)
    return output


def members(path: Path) -> dict[str, Member]:
    """What the kernel has at the end."""
    return {member.name: member for archive in read_joined(path.read_bytes()) for member in archive}


def files(path: Path) -> set[str]:
    return {name for name, member in members(path).items() if not stat.S_ISDIR(member.mode)}


def test_our_init_replaces_that_of_the_initrd(tmp_path: Path) -> None:
    made = layer(tmp_path, *THEIRS)
    assert files(made) == {
        f"usr/lib/modules/{RELEASE}/kernel/x.ko", "usr/lib/firmware/card.bin", "usr/bin/tool",
    }  # fmt: skip
    join_layers(layers=[made, tmp_path / "ours"], output=tmp_path / "joined")
    assert members(tmp_path / "joined")["init"].data == b"#!ours\n"


@pytest.mark.parametrize(
    "name",
    [
        "kernel/x86/microcode/AuthenticAMD.bin",
        "kernel/firmware/acpi/dsdt.aml",
        "etc/ld.so.preload",
        "etc/ld.so.cache",
        "etc/ssl/openssl.cnf",
        "sbin/modprobe",
        "usr/sbin/request-key",
        "usr/lib/ssl/openssl.cnf",
        "lib/sevsnp/emulated_provider.py",
        "usr/lib/sevsnp/modules/base.list",
        "usr/lib/python313.zip",
        "usr/lib/python3.13/socket.py",
        "usr/bin/pyvenv.cfg",
        "lib/x86_64-linux-gnu/glibc-hwcaps/x86-64-v3/libc.so.6",
        "usr/lib/x86_64-linux-gnu/ossl-modules/own.so",
        "dev/console",
        "newroot/sbin/init",
        "bin/busybox",
        "lib64/ld-linux-x86-64.so.2",
    ],
)
def test_files_that_would_change_the_boot_are_left_out(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control: a tool beside them is kept."""
    assert files(layer(tmp_path, text_entry(name, "theirs"), text_entry("usr/bin/tool", ""))) == {"usr/bin/tool"}
    assert "1 entries taken; left out: 1 " in capsys.readouterr().out


def test_both_directory_layouts_are_converted_to_ours(tmp_path: Path) -> None:
    """Arch's links, and a /lib that is a directory; a file with the name of a link must not be written elsewhere."""
    made = layer(
        tmp_path,
        link_entry("bin", "usr/bin"),
        link_entry("lib64", "usr/lib"),
        link_entry("usr/lib64", "lib"),
        link_entry("usr/sbin", "bin"),
        link_entry("usr/bin/python3", "tool"),
        directory_entry("lib"),
        text_entry(f"lib/modules/{RELEASE}/x.ko", ""),
    )
    assert files(made) == {f"usr/lib/modules/{RELEASE}/x.ko"}


@pytest.mark.parametrize("place", ["lib/modules", "usr/lib/modules"])
@pytest.mark.parametrize("others", [("6.1.0-other",), ("6.1.0-other", RELEASE)])
def test_another_kernel_s_initrd_is_refused_by_name(tmp_path: Path, place: str, others: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=f"kernel 6.1.0-other, but the guest boots {RELEASE}"):
        layer(tmp_path, *(directory_entry(f"{place}/{other}") for other in others))
    layer(tmp_path, directory_entry(f"{place}/{RELEASE}"))  # control


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        ((link_entry("usr/share", "/x"), text_entry("usr/share/file", "")), "usr/share/file: below usr/share, which"),
        ((text_entry("init/x", ""),), "init/x: below init, which is a file in our initramfs"),
        ((text_entry("usr/bin/python3/x", ""),), "usr/bin/python3/x: below usr/bin/python3, which is a symlink in our"),
        ((link_entry("usr/\x1b[2J", "/x"), text_entry("usr/\x1b[2J/y", "")), r"usr/.\[2J/y: below"),
        ((directory_entry("init"),), "init: a directory, where our initramfs has a file"),
        ((text_entry("usr/bin/busybox/x", ""), directory_entry("usr/bin/busybox")), "in our initramfs"),
    ],
)
def test_entries_that_the_kernel_would_unpack_elsewhere_are_refused(
    tmp_path: Path, theirs: tuple[Entry, ...], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        layer(tmp_path, *theirs)
    assert not list(tmp_path.glob("initrd.cpio*"))


def test_equal_initrds_give_equal_layers(tmp_path: Path) -> None:
    first = layer(tmp_path, *THEIRS).read_bytes()
    assert layer(tmp_path, *reversed(THEIRS)).read_bytes() == first
    assert layer(tmp_path, *THEIRS[:-1]).read_bytes() != first
