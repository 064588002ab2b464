# SPDX-License-Identifier: Apache-2.0
"""Disk images as other programs make them. Made here without root: by scripts in the tests' own appliance."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import Layer, make_rootfs, text_entry
from sevsnp.archives.tar import Entry
from sevsnp.images.disk import EFI_SYSTEM, LINUX_DATA, Partition, write_disk
from sevsnp.images.filesystem import make_ext4
from sevsnp.images.initramfs import join_layers, make_packages_layer
from sevsnp.qemu.appliance import Appliance, ApplianceDisk, run_job
from sevsnp.system.command import run
from sevsnp.system.files import scratch_directory
from tests.conftest import PROJECT, Built
from tests.support.registry_server import PROGRAMS

MIB = 1 << 20
SCRIPT_SECONDS = 600.0
SPARSE = 64 * MIB
JOB = Path(__file__).with_name("script_job.py")


@dataclass(frozen=True)
class Maker:
    """The appliance with the tests' job and the file systems' tools in it."""

    appliance: Appliance
    tools: Path

    def script(self, script: str, seconds: float = SCRIPT_SECONDS, **disks: Path) -> str:
        """Run a script in the appliance with raw ``disks`` by role, in the given order; return its output."""
        roles = list(disks)
        attached = [ApplianceDisk(role, path) for role, path in disks.items()]
        result = run_job(
            self.appliance, "script_job", {"script": script, "roles": roles}, disks=attached, seconds=seconds
        )
        return str(result["printed"])

    def convert(self, raw: Path, form: str, *options: str) -> Path:
        """Convert the raw disk to another format, beside it."""
        target = raw.with_suffix(f".{form}")
        run([self.tools / "qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, target])
        return target


def make_maker(built: Built, directory: Path) -> Maker:
    """Fetch the pinned packages, and add them and the job to the appliance's initramfs."""
    debs = directory / "debs"
    debs.mkdir()
    for path in PROGRAMS.packages(without=("docker-registry",)):
        (debs / path.name).symlink_to(path)
    packages, job, initrd = directory / "packages.cpio.zst", directory / "job.cpio", directory / "initramfs"
    make_packages_layer(manifest=debs / "packages.json", files=PROJECT / "initramfs/files.yaml", output=packages)
    with job.open("wb") as stream:
        entry = text_entry(f"usr/lib/sevsnp/appliance/{JOB.name}", JOB.read_bytes())
        # The job's only module of Python that the initramfs does not have.
        release = built.tools.parent
        (module,) = release.glob("usr/lib/python3.*/tarfile.py")
        more = text_entry(str(module.relative_to(release)), module.read_bytes())
        write_cpio(with_parents([entry, more]), stream)
    join_layers(layers=[built.build / "initramfs.appliance.cpio.zst", packages, job], output=initrd)
    return Maker(
        Appliance(
            qemu=built.qemu.resolve(),
            kernel=built.build / "kernel" / "vmlinuz",
            initrd=initrd,
            probe_cache=built.build / "run" / "platform.json",
        ),
        built.tools.resolve(),
    )


def empty(path: Path, size: int) -> Path:
    """A sparse file of zeros."""
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def partitioned(disk: Path, *sizes: int) -> Path:
    """A raw disk with a GPT: the first partition is an EFI system partition, the others are empty."""
    with scratch_directory(disk) as scratch:
        parts = [empty(scratch / str(number), size) for number, size in enumerate(sizes)]
        kinds = [EFI_SYSTEM, *[LINUX_DATA] * (len(sizes) - 1)]
        write_disk(
            disk,
            [
                Partition(kind, str(uuid.UUID(int=number + 1)), f"part{number + 1}", part)
                for number, (kind, part) in enumerate(zip(kinds, parts, strict=True))
            ],
        )
    return disk


def mbr(disk: Path, *contents: Path) -> Path:
    """A raw disk with a DOS partition table over images, each at a whole MiB."""
    table, place = bytearray(512), MIB
    with disk.open("wb") as stream:
        for number, content in enumerate(contents):
            size = content.stat().st_size
            stream.seek(place)
            stream.write(content.read_bytes())
            entry = bytes((0, 0, 2, 0, 0x83, 0xFF, 0xFF, 0xFF))
            entry += (place // 512).to_bytes(4, "little") + (size // 512).to_bytes(4, "little")
            table[446 + 16 * number : 462 + 16 * number] = entry
            place += -(-size // MIB) * MIB
        table[510:512] = b"\x55\xaa"
        stream.truncate(place)
        stream.seek(0)
        stream.write(table)
    return disk


def with_files(rootfs: Path, output: Path, entries: Sequence[Entry]) -> Path:
    """A root file system tar with additional files."""
    make_rootfs([Layer.from_tar(rootfs), Layer("test", entries)], output)
    return output


def installed_on_lvm(maker: Maker, rootfs: Path, directory: Path, extra: Sequence[Entry] = ()) -> Path:
    """A qcow2 image as an installer makes it: GPT, EFI partition, LVM2 with ext4, an xfs /home, and swap."""
    fstab = (
        "# made by an installer\n"
        "/dev/mapper/some--group-root / ext4 errors=remount-ro 0 1\n"
        "LABEL=home /home xfs defaults 0 2\n"
        "PARTUUID=00000000-0000-0000-0000-000000000001 /boot/efi vfat umask=0077 0 1\n"
        "/dev/mapper/some--group-swap none swap sw 0 0\n"
        "server:/export /mnt nfs defaults 0 0\n"
    )
    tar = with_files(rootfs, directory / "lvm.tar", [text_entry("etc/fstab", fstab), *extra])
    root = directory / "root.img"
    make_ext4(tar, root, tools=maker.tools, journal=True)
    disk = partitioned(directory / "lvm.raw", 8 * MIB, root.stat().st_size + 400 * MIB)
    maker.script(
        f"""
        lvm pvcreate -q ${{disk}}2
        lvm vgcreate -q some-group ${{disk}}2
        lvm lvcreate -q -y -Zn -Wn -L {root.stat().st_size}b -n root some-group
        lvm lvcreate -q -y -Zn -Wn -L 16M -n swap some-group
        lvm lvcreate -q -y -Zn -Wn -L 320M -n home some-group
        dd if=$root of=/dev/some-group/root bs=1M
        mkswap /dev/some-group/swap
        mkfs.xfs -q -L home /dev/some-group/home
        mkdir /run/home
        mount -t xfs /dev/some-group/home /run/home
        mkdir /run/home/user
        chown 1000:1000 /run/home/user
        dd if=/dev/zero of=/run/home/user/sparse bs=1 count=1 seek={SPARSE - 1}
        printf begin | dd of=/run/home/user/sparse conv=notrunc
        umount /run/home
        lvm vgchange -q -an some-group
        """,
        disk=disk,
        root=root,
    )
    root.unlink()
    return maker.convert(disk, "qcow2")


def btrfs_with_subvolumes(maker: Maker, rootfs: Path, directory: Path, extra: Sequence[Entry] = ()) -> Path:
    """A VHDX image with btrfs in the subvolumes @ and @home, one in @, and a snapshot of the root beside them."""
    fstab = "LABEL=disk / btrfs defaults,subvol=@ 0 0\nLABEL=disk /home btrfs defaults,subvol=@home 0 0\n"
    tar = with_files(rootfs, directory / "btrfs.tar", [text_entry("etc/fstab", fstab), *extra])
    disk = partitioned(directory / "btrfs.raw", 8 * MIB, 900 * MIB)
    maker.script(
        """
        mkfs.btrfs -q -L disk ${disk}2
        mkdir /run/top
        mount -t btrfs ${disk}2 /run/top
        btrfs -q subvolume create /run/top/@
        btrfs -q subvolume create /run/top/@home
        untar $tar /run/top/@
        mv /run/top/@/home/user /run/top/@home/
        btrfs -q subvolume snapshot /run/top/@ /run/top/before
        btrfs -q subvolume create /run/top/@/srv/nested
        echo nested > /run/top/@/srv/nested/file
        umount /run/top
        """,
        disk=disk,
        tar=tar,
    )
    return maker.convert(disk, "vhdx")


def small_root(mark: str = "small") -> list[Entry]:
    """The minimum that counts as a root file system."""
    return [
        text_entry("etc/os-release", f"ID={mark}\n"),
        text_entry("etc/fstab", ""),
        replace(text_entry("usr/sbin/init", "#!/bin/sh\n"), mode=0o755),
        text_entry("etc/mark", f"{mark}\n"),
    ]
