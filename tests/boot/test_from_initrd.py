# SPDX-License-Identifier: Apache-2.0
"""A guest whose initramfs begins with an initrd of initramfs-tools: our init runs, and obeys its command line."""

import stat
from pathlib import Path

import pytest

from sevsnp.images.from_initrd import make_initrd_layer
from tests.conftest import Built
from tests.pipeline.test_initramfs import unpacked
from tests.support.cloud_image import debian_tar
from tests.support.copies import copy_built
from tests.support.shared_guests import attested, started

# The packages of each maker of initrds, and its command.
MAKERS = {
    "initramfs-tools": (("initramfs-tools", "zstd"), "mkinitramfs -o /boot/initrd.img {}"),
    "dracut": (("dracut-core", "systemd", "zstd"), "dracut --no-hostonly --kver {} /boot/initrd.img"),
}


def initrd_of(built: Built, directory: Path, maker: str = "initramfs-tools") -> Path:
    """The initrd that ``maker`` makes for our kernel, in a Debian of its own."""
    packages, command = MAKERS[maker]
    release = (built.build / "kernel" / "version").read_text().strip()
    modules = (built.build / "kernel" / "lib" / "modules" / release).resolve()
    debian_tar(
        directory / "debian.tar",
        (*packages, "kmod", "udev"),
        'mkdir -p "$1/usr/lib/modules"',
        f"copy-in {modules} /usr/lib/modules",
        f'chroot "$1" depmod {release}',
        f'chroot "$1" {command.format(release)}',
        f"copy-out /boot/initrd.img {directory}",
    )
    return directory / "initrd.img"


@pytest.mark.boot
@pytest.mark.full
def test_a_guest_boots_with_an_initrd_of_initramfs_tools(built: Built, tmp_path: Path) -> None:
    initrd = initrd_of(built, tmp_path)
    copy = copy_built(built, tmp_path / "project")
    said = copy.doit("setup_verity", f"FROM_INITRD={initrd}", "GUEST_DNS=192.0.2.1,2001:db8::1").stdout
    assert "entries taken; left out: " in said
    before, after = (unpacked(one.build / "initramfs.cpio.zst") for one in (built, copy))
    # Nothing of ours is different, and something of theirs is there.
    assert all(after[name].data == member.data for name, member in before.items() if not stat.S_ISDIR(member.mode))
    assert any(name.endswith(".ko") or ".ko." in name for name in after.keys() - before.keys())
    assert not [name for name in after.keys() - before.keys() if name.startswith(("etc/", "usr/sbin/", "kernel/"))]
    with started(copy, copy.config("emulated"), tmp_path / "state") as running:
        guest = attested(running)
        assert guest.ssh("systemctl is-system-running --wait || true").strip() == "running"
        assert guest.ssh("cat /etc/resolv.conf") == "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"


@pytest.mark.full
def test_an_initrd_of_dracut_is_accepted(built: Built, tmp_path: Path) -> None:
    """This test checks its content only; the guest of the test above boots with the same init."""
    layers = [built.build / "layers" / f"{name}.cpio.zst" for name in ("base", "modules", "init")]
    make_initrd_layer(
        initrd=initrd_of(built, tmp_path, "dracut"),
        version=built.build / "kernel" / "version",
        layers=layers,
        output=tmp_path / "layer.cpio.zst",
    )
    found = unpacked(tmp_path / "layer.cpio.zst")
    ours = {name for layer in layers for name, member in unpacked(layer).items() if not stat.S_ISDIR(member.mode)}
    assert any(".ko" in name for name in found) and found.keys().isdisjoint(ours)
