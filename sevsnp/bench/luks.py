# SPDX-License-Identifier: Apache-2.0
"""The bare tools that setup_luks is compared with: the same file system, cryptsetup, and dd through the mapping."""

from pathlib import Path

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import text_entry
from sevsnp.archives.tar import read_tar
from sevsnp.images.initramfs import join_layers
from sevsnp.images.luks import allocate, format_options, image_size, root_size
from sevsnp.qemu.appliance import Appliance, ApplianceDisk, run_job
from sevsnp.system.command import run

JOB = Path(__file__).resolve().parents[2] / "initramfs" / "appliance" / "bare_luks.py"
_UUID = "00000000-0000-4000-8000-000000000000"


def bare_luks_image(build: Path, scratch: Path, free: int) -> None:
    """Make an image of the same size as setup_luks makes, from the files in ``build``, in the same appliance."""
    tools, tar = build / "snp-release" / "bin", build / "guest" / "rootfs.tar"
    plain, image, layer, initrd = (scratch / name for name in ("plain", "luks", "job.cpio", "initrd"))
    size = root_size(read_tar(tar).values(), free)
    plain.unlink(missing_ok=True)
    run([tools / "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-d", tar, plain, f"{size >> 10}k"])
    run([tools / "e2fsck", "-f", "-n", plain])
    allocate(image, image_size(size))
    with layer.open("wb") as stream:
        write_cpio(with_parents([text_entry("usr/lib/sevsnp/appliance/bare_luks.py", JOB.read_bytes())]), stream)
    join_layers(layers=[build / "initramfs.appliance.cpio.zst", layer], output=initrd)
    run_job(
        Appliance(tools / "qemu-system-x86_64", build / "kernel" / "vmlinuz", initrd, build / "run" / "platform.json"),
        "bare_luks",
        {"format": format_options(_UUID, "made")},
        disks=[ApplianceDisk("source", plain, read_only=True), ApplianceDisk("luks", image)],
        secret=bytes(32),
    )
