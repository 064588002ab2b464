# SPDX-License-Identifier: Apache-2.0
"""The plain guest's bootable disk, which create_new_vm makes."""

from pathlib import Path

from sevsnp.images.disk import make_disk
from sevsnp.images.filesystem import fixed_uuid

# The kernel command line, for the boot loader and for a direct boot of the same disk.
ROOT_WORDS = ("console=ttyS0", f"root=UUID={fixed_uuid('ext4:root')}")


def make_guest_disk(*, rootfs: Path, kernel: Path, initramfs: Path, loader: Path, tools: Path, output: Path) -> None:
    """Write the qcow2 image ``output``: ``loader`` on an EFI system partition, the tree in ``rootfs`` as ext4 root."""
    make_disk(
        rootfs=rootfs,
        loader=loader,
        kernel=kernel,
        initramfs=initramfs,
        cmdline=" ".join(ROOT_WORDS),
        output=output,
        tools=tools.resolve(),
    )
