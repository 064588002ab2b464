# SPDX-License-Identifier: Apache-2.0
"""The kernel modules of an adopted image come from a list that contains no module for channels to the host."""

from pathlib import Path

import pytest

from sevsnp.archives.rootfs import text_entry
from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError
from sevsnp.images.adopted_modules import loaded_modules, withheld

MODULES = Path(__file__).resolve().parents[3] / "initramfs" / "modules.yaml"
HOST = (
    "net/9p/9pnet_virtio.ko.xz",
    "net/vmw_vsock/vsock.ko.xz",
    "fs/9p/9p.ko.xz",
    "fs/fuse/virtiofs.ko.xz",
    "drivers/firmware/qemu_fw_cfg.ko.xz",
    "drivers/virtio/virtio_balloon.ko.xz",
    "drivers/char/virtio_console.ko.xz",
    "drivers/char/hw_random/virtio-rng.ko.xz",
    "drivers/nvme/host/nvme.ko.xz",
)
NEAR = ("net/8021q/8021q.ko.xz", "fs/fuse/fuse.ko.xz", "drivers/net/veth.ko.xz", "net/bridge/bridge.ko.xz")


def kernel(directory: Path) -> Path:
    tree = directory / "lib" / "modules" / "6.1"
    for name in (*HOST, *NEAR):
        (tree / "kernel" / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / "kernel" / name).write_bytes(b"")
    (tree / "modules.builtin").write_text("")
    (directory / "version").write_text("6.1\n")
    return directory / "version"


def test_modules_that_the_image_names_and_does_not_get_are_named(tmp_path: Path) -> None:
    names = [Path(name).name.partition(".")[0] for name in (*HOST, *NEAR)]
    tree = Tree([text_entry("etc/modules-load.d/all.conf", "".join(f"{name}\n" for name in (*names, "nonsuch")))])
    said = "\n".join(withheld(tree, MODULES, kernel(tmp_path)))
    assert said.count("\n") + 1 == len(HOST)
    for path in HOST:
        assert f"not put in: the module {Path(path).name.partition('.')[0]}," in said
    assert not list(
        withheld(Tree([text_entry("etc/modules-load.d/x.conf", "veth\nfuse\n")]), MODULES, tmp_path / "version")
    )


def test_a_module_to_load_must_be_among_the_included_files(tmp_path: Path) -> None:
    lists = tmp_path / "modules.yaml"
    for name, passes in (("veth", True), ("9pnet_virtio", False)):
        lists.write_text(f"adopted:\n  - {name}\nadopted_files:\n  - drivers/net/veth.*\n")
        if passes:
            assert loaded_modules(lists, kernel(tmp_path)) == [name]
        else:
            with pytest.raises(UserError, match="adopted: found 9pnet_virtio, expected a module that adopted_files"):
                loaded_modules(lists, kernel(tmp_path))
