# SPDX-License-Identifier: Apache-2.0
"""A small cloud image: Debian with cloud-init and sshd, from this machine's mirror, with our kernel and its modules."""

import os
import sys
from dataclasses import replace
from pathlib import Path

from sevsnp.archives.rootfs import Layer, make_rootfs
from sevsnp.images.adopted_modules import kernel_modules
from sevsnp.images.disk import make_disk
from sevsnp.images.guest_disk import ROOT_WORDS
from sevsnp.images.guest_packages import namespace_mode
from sevsnp.packages import KEYRING
from sevsnp.packages.sources import find_sources
from sevsnp.settings.resolved import resolve
from sevsnp.system import own_mounts
from sevsnp.system.command import run
from tests.conftest import PROJECT, Built

SECONDS = 1800.0
CLOUD = ("cloud-init", "dbus", "e2fsprogs", "iproute2", "kmod", "openssh-server", "sudo", "systemd-sysv", "udev")
_ON = 'chroot "$1" systemctl enable systemd-networkd.service ssh.service'


def debian_tar(output: Path, packages: tuple[str, ...], *hooks: str) -> Path:
    """A Debian (trixie) with ``packages`` as the tar ``output``; ``hooks`` are run as mmdebstrap's customize-hooks."""
    main = find_sources(resolve({}, os.environ, PROJECT / "config.yaml").text("MIRROR")).main
    mode = namespace_mode()
    # Root's mounts in the new tree would outlive a killed mmdebstrap.
    separated = [sys.executable, "-I", "-S", own_mounts.__file__] if mode == "root" else []
    run(
        [
            *separated,
            "mmdebstrap",
            f"--mode={mode}",
            "--variant=minbase",
            "--format=tar",
            f"--keyring={KEYRING}",
            f"--include={','.join(packages)}",
            "--aptopt=APT::Install-Recommends false",
            "--dpkgopt=force-unsafe-io",
            *(f"--customize-hook={hook}" for hook in hooks),
            "trixie",
            output,
            main,
        ],
        env={"DEBIAN_FRONTEND": "noninteractive"},
        timeout=SECONDS,
    )
    return output


def cloud_image(built: Built, directory: Path) -> Path:
    """The image as a qcow2 that boots by itself. Its root has modules: the seed is a FAT file system."""
    tar, root, image = (directory / name for name in ("debian.tar", "root.tar", "cloud.qcow2"))
    debian_tar(tar, CLOUD, _ON)
    scratch = directory / "modules"
    scratch.mkdir()
    modules = kernel_modules(built.build / "kernel" / "version", built.tools, scratch)
    # In the merged layout /lib is a link.
    usr = [replace(entry, name=f"usr/{entry.name}") for entry in modules]
    make_rootfs([Layer.from_tar(tar), Layer("modules", usr)], root)
    make_disk(
        rootfs=root,
        loader=built.build / "snp-release/usr/lib/systemd/boot/efi/systemd-bootx64.efi",
        kernel=built.build / "kernel" / "vmlinuz",
        initramfs=built.build / "initramfs.plain.cpio.zst",
        cmdline=" ".join(ROOT_WORDS),
        output=image,
        tools=built.tools.resolve(),
    )
    for path in (tar, root):
        path.unlink()
    return image
