# SPDX-License-Identifier: Apache-2.0
"""Hints about trees and images: layers, tars, the guest's lists."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sevsnp.archives.cpio import write_cpio
from sevsnp.archives.rootfs import Layer, directory_entry, link_entry, make_rootfs, merge, text_entry
from sevsnp.archives.tar import Entry, Kind, read_tar
from sevsnp.images.bootable import bootable_entries
from sevsnp.images.copied_size import write_copied_sizes
from sevsnp.images.from_initrd import make_initrd_layer
from sevsnp.images.guest import guest_layer
from sevsnp.images.guest_config import Guest
from sevsnp.images.identity import ImageKind
from sevsnp.measurement.copied_size import check_copied_sizes
from sevsnp.settings.values import parse_size
from tests.conftest import PROJECT
from tests.support.table import Told, remedies

ACCOUNTS = [
    text_entry(f"etc/{name}", "root:x:0:0:root:/root:/bin/bash\n") for name in ("passwd", "shadow", "group", "gshadow")
]


def tar_of(entries: list[Entry], path: Path) -> Path:
    make_rootfs([Layer("test", entries)], path)
    return path


@remedies(
    "sevsnp.archives.rootfs",
    "put its content under {}/, or list {} under `remove`",
    "list {} under `remove` to replace the directory",
    "put it under {}/ instead",
)
def test_layers_that_do_not_fit(told: Told) -> None:
    lower = Layer("lower", [link_entry("lib", "usr/lib"), text_entry("etc/conf/a", "")])

    def upper(entry: Entry, *remove: str) -> Callable[[], object]:
        return lambda: merge([lower, Layer("upper", [entry], remove=remove)])

    directory = Entry("lib", Kind.DIRECTORY, 0o755)
    for entry, other in (
        (directory, Entry("usr/lib", Kind.DIRECTORY, 0o755)),
        (text_entry("lib/new", ""), text_entry("usr/lib/new", "")),
    ):
        told.instead(upper(entry), upper(other))
    for entry, removed in ((directory, "lib"), (text_entry("etc/conf", ""), "etc/conf")):
        told.instead(upper(entry), upper(entry, removed))


@remedies("sevsnp.archives.tar", "decompress it, and give the uncompressed file: {} -dc {} >{}")
@pytest.mark.parametrize("program", ["gzip", "xz", "bzip2", "zstd"])
def test_a_compressed_tar(told: Told, tmp_path: Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    tar_of([text_entry("file", "x" * 1000)], tmp_path / "my root.tar")
    assert told.shell(f"{program} 'my root.tar'").returncode == 0
    told.shell("rm -f 'my root.tar'; mv 'my root.tar'.* 'my root.tar.packed'")
    told.obey(told.hint(lambda: read_tar(tmp_path / "my root.tar.packed")))
    assert list(read_tar(tmp_path / "my root.tar")) == ["", "file"]


@remedies("sevsnp.images.bootable", "add a package with an init to it, as Debian's systemd-sysv")
def test_a_root_without_init(told: Told, tmp_path: Path) -> None:
    tar = tmp_path / "root.tar"
    tar_of([text_entry("file", "")], tar)
    # What that package has.
    told.mended(
        lambda: bootable_entries(tar, ImageKind.VERITY, PROJECT / "guest-vm" / "denied.yaml"),
        lambda: tar_of([text_entry("file", ""), link_entry("sbin/init", "../lib/systemd/systemd")], tar),
    )


@remedies("sevsnp.measurement.copied_size", "take more: {}={}M; or WRITABLE=overlay, which copies nothing")
def test_too_little_memory_for_a_copy(told: Told, tmp_path: Path) -> None:
    write_copied_sizes([text_entry("var/file", b"x" * (40 << 20))], tmp_path / "sizes")
    tmpfs = dict.fromkeys(("etc", "home", "var"), 1 << 20)
    hint = told.hint(lambda: check_copied_sizes(tmp_path / "sizes", tmpfs))
    size = hint.partition("TMPFS_VAR=")[2].partition(";")[0]
    check_copied_sizes(tmp_path / "sizes", {**tmpfs, "var": parse_size(size)})


@remedies(
    "sevsnp.images.guest",
    "add its package to guest-vm/packages.yaml, or the unit to guest-vm/files/etc/systemd/system",
    "add base-passwd to guest-vm/packages.yaml",
)
def test_units_and_accounts_that_a_guest_lacks(told: Told, tmp_path: Path) -> None:
    packages = {entry.name: entry for entry in ACCOUNTS}
    files = tmp_path / "files"
    unit = files / "etc/systemd/system/my.service"

    def layer(packages: dict[str, Entry]) -> Layer:
        return guest_layer(Guest("guest", enable={"multi-user.target": ("my.service",)}), files, packages, "")

    def add() -> None:
        unit.parent.mkdir(parents=True)
        unit.touch()

    told.mended(lambda: layer(packages), add)
    # The files of that package.
    told.instead(lambda: layer({}), lambda: layer(packages))


@remedies("sevsnp.images.from_initrd", "give an initrd of that kernel: FROM_INITRD=…")
def test_an_initrd_of_another_kernel(told: Told, tmp_path: Path) -> None:
    (tmp_path / "version").write_text("6.12.1\n")

    def give(release: str) -> None:
        with (tmp_path / release).open("wb") as stream:
            write_cpio([directory_entry(f"usr/lib/modules/{release}")], stream)
        make_initrd_layer(
            initrd=tmp_path / release, version=tmp_path / "version", layers=[], output=tmp_path / "initrd.cpio.zst"
        )

    told.instead(lambda: give("6.1.0"), lambda: give("6.12.1"))
