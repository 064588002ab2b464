# SPDX-License-Identifier: Apache-2.0
"""A guest whose initramfs begins with an initrd of initramfs-tools: our init runs, and obeys its command line."""

import stat
from pathlib import Path

import pytest

from tests.conftest import Built
from tests.pipeline.test_initramfs import unpacked
from tests.support.cloud_image import debian_tar
from tests.support.copies import copy_built
from tests.support.shared_guests import attested, started


def initrd_of(built: Built, directory: Path) -> Path:
    """The initrd that initramfs-tools makes for our kernel, in a Debian of its own."""
    release = (built.build / "kernel" / "version").read_text().strip()
    modules = (built.build / "kernel" / "lib" / "modules" / release).resolve()
    debian_tar(
        directory / "debian.tar",
        ("initramfs-tools", "kmod", "udev", "zstd"),
        'mkdir -p "$1/usr/lib/modules"',
        f"copy-in {modules} /usr/lib/modules",
        f'chroot "$1" depmod {release}',
        f'chroot "$1" mkinitramfs -o /boot/initrd.img {release}',
        f"copy-out /boot/initrd.img {directory}",
    )
    return directory / "initrd.img"


@pytest.mark.boot
@pytest.mark.full
def test_a_guest_on_debian_s_own_initrd(built: Built, tmp_path: Path) -> None:
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
