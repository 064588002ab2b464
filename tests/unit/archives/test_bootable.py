# SPDX-License-Identifier: Apache-2.0
"""A root filesystem from a tar archive: missing mount points are added; a tar that cannot boot is refused."""

from pathlib import Path

import pytest

from sevsnp.archives.rootfs import Layer, directory_entry, link_entry, make_rootfs, text_entry
from sevsnp.archives.tar import Entry, Kind
from sevsnp.errors import UserError
from sevsnp.images.bootable import bootable_entries
from sevsnp.images.identity import ImageKind

DENIED = Path(__file__).resolve().parents[3] / "guest-vm" / "denied.yaml"
INIT = [directory_entry("sbin"), link_entry("sbin/init", "../lib/systemd/systemd")]


def tree_of(entries: list[Entry], tmp_path: Path, data_path: str = "") -> dict[str, Entry]:
    """The tree that would become the image."""
    tar = tmp_path / "rootfs.tar"
    make_rootfs([Layer("test", entries)], tar)
    return {entry.name: entry for entry in bootable_entries(tar, ImageKind.VERITY, DENIED, data_path=data_path)}


def test_missing_mount_points_are_added(tmp_path: Path) -> None:
    tree = tree_of([*INIT, directory_entry("var", 0o711)], tmp_path)
    for name in ("dev", "etc", "home", "proc", "run", "sys", "tmp", "var"):
        assert tree[name].kind is Kind.DIRECTORY
    assert tree["var"].mode == 0o711
    assert tree["etc/machine-id"].content and tree["etc/machine-id"].content.size == 0


def test_the_data_disk_s_mount_point_is_added_with_its_parents(tmp_path: Path) -> None:
    tree = tree_of([*INIT, directory_entry("opt", 0o711)], tmp_path, "/opt/app/state")
    assert all(tree[name].kind is Kind.DIRECTORY for name in ("opt", "opt/app", "opt/app/state"))
    assert tree["opt"].mode == 0o711
    with pytest.raises(UserError, match="/opt: found a symlink, expected a directory"):
        tree_of([*INIT, link_entry("opt", "usr/opt")], tmp_path, "/opt/app/state")
    assert "opt/app" not in tree_of([*INIT, link_entry("opt", "usr/opt")], tmp_path)  # control: without a data disk


def test_a_tree_without_init_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no /sbin/init"):
        tree_of([text_entry("hello", "x")], tmp_path)


def test_a_mount_point_that_is_a_symlink_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/home: found a symlink, expected a directory"):
        tree_of([*INIT, link_entry("home", "var/home")], tmp_path)


def test_nothing_is_left_of_a_refused_tree(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        tree_of([text_entry("hello", "x")], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["rootfs.tar"]
