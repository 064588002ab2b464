# SPDX-License-Identifier: Apache-2.0
"""A bootable qcow2 disk image, made without root: GPT, EFI system partition with systemd-boot, and ext4 root."""

import re
import struct
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sevsnp.archives.rootfs import EPOCH
from sevsnp.archives.tar import read_tar
from sevsnp.errors import UserError
from sevsnp.images.filesystem import MIB, ext4_size, fixed_uuid, make_ext4, usage
from sevsnp.system.command import run
from sevsnp.system.files import CHUNK, scratch_directory
from sevsnp.system.time_limits import seconds_for

SECTOR = 512
GPT_ENTRIES, GPT_ENTRY_SIZE = 128, 128
TABLE_SECTORS = GPT_ENTRIES * GPT_ENTRY_SIZE // SECTOR

# UEFI specification 2.10, table 5.7; Discoverable Partitions Specification. The root has the type of plain Linux data:
# systemd would search for the type "root (x86-64)" by itself, on any disk.
EFI_SYSTEM = uuid.UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
LINUX_DATA = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")

ROOT_PARTUUID = fixed_uuid("partition:root")
ESP_PARTUUID = fixed_uuid("partition:esp")
DISK_UUID = fixed_uuid("disk")


@dataclass(frozen=True)
class Partition:
    """A partition to write: ``content`` is an image, its length a multiple of 512 bytes."""

    kind: uuid.UUID
    identity: str
    name: str
    content: Path


def partition_table(sizes: Sequence[tuple[Partition, int]]) -> tuple[bytes, bytes, list[int], int]:
    """A GPT (UEFI 2.10, section 5.3) for partitions of the given sizes in bytes, each beginning at a whole MiB.

    Returns the bytes for the disk's beginning and for its end, the byte offset of each partition, and the disk's size.
    """
    entries, offsets, position = b"", [], MIB
    for partition, size in sizes:
        offsets.append(position)
        first, last = position // SECTOR, (position + size) // SECTOR - 1
        entries += struct.pack(
            "<16s16sQQQ72s",
            partition.kind.bytes_le,
            uuid.UUID(partition.identity).bytes_le,
            first,
            last,
            0,
            partition.name.encode("utf-16-le"),
        )
        position = -(-(position + size) // MIB) * MIB
    disk = position + MIB
    sectors = disk // SECTOR
    table = entries.ljust(GPT_ENTRIES * GPT_ENTRY_SIZE, b"\0")
    primary = _gpt_header(1, sectors - 1, 2, sectors, table)
    backup = _gpt_header(sectors - 1, 1, sectors - 1 - TABLE_SECTORS, sectors, table)
    return _protective_mbr(sectors) + primary + table, table + backup, offsets, disk


def _gpt_header(here: int, other: int, table_at: int, sectors: int, table: bytes) -> bytes:
    def pack(checksum: int) -> bytes:
        return struct.pack(
            "<8sIIIIQQQQ16sQIII",
            b"EFI PART",
            0x00010000,
            92,
            checksum,
            0,
            here,
            other,
            2 + TABLE_SECTORS,
            sectors - 2 - TABLE_SECTORS,
            uuid.UUID(DISK_UUID).bytes_le,
            table_at,
            GPT_ENTRIES,
            GPT_ENTRY_SIZE,
            zlib.crc32(table),
        )

    return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")


def _protective_mbr(sectors: int) -> bytes:
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, min(sectors - 1, 0xFFFFFFFF))
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


def make_esp(
    image: Path, *, loader: Path, kernel: Path, initramfs: Path, cmdline: str, tools: Path, epoch: int = EPOCH
) -> None:
    """Write a FAT32 image that boots ``kernel`` with ``initramfs`` and ``cmdline`` through systemd-boot without menu.

    ``loader`` is systemd-bootx64.efi. The command line is ASCII, on one line.
    """
    if not re.fullmatch(r"[\x20-\x7e]+", cmdline):
        raise UserError(f"kernel command line {cmdline!r}: expected printable ASCII on one line")
    for file in (loader, kernel, initramfs):
        if not file.is_file():
            raise UserError(f"{file}: no such file, needed for the EFI system partition")
    content = sum(file.stat().st_size for file in (loader, kernel, initramfs))
    # At least 65,525 clusters, otherwise firmware takes it for FAT16; with one sector each that is 32 MiB.
    size = max(48 * MIB, -(-(content * 103 // 100 + 4 * MIB) // MIB) * MIB)
    image.unlink(missing_ok=True)
    with image.open("wb") as stream:
        stream.truncate(size)
    # mtools uses SOURCE_DATE_EPOCH for volume and directories, and for files too if -m is not given.
    env = {"SOURCE_DATE_EPOCH": str(epoch), "MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"}
    serial = uuid.UUID(fixed_uuid("esp")).hex[:8]
    geometry = ["-T", str(size // SECTOR), "-h", "64", "-s", "32", "-c", "1"]
    run([tools / "mformat", "-i", image, "-F", *geometry, "-N", serial, "-v", "EFI", "::"], env=env)
    folders = ["EFI", "EFI/BOOT", "loader", "loader/entries"]
    run([tools / "mmd", "-i", image, *(f"::/{name}" for name in folders)], env=env)
    with scratch_directory(image) as scratch:
        settings, entry = scratch / "loader.conf", scratch / "guest.conf"
        settings.write_text("default guest.conf\ntimeout 0\neditor no\nauto-entries no\nauto-firmware no\n")
        entry.write_text(f"title guest\nlinux /vmlinuz\ninitrd /initramfs\noptions {cmdline}\n")
        for source, target in (
            (loader, "EFI/BOOT/BOOTX64.EFI"),
            (settings, "loader/loader.conf"),
            (entry, "loader/entries/guest.conf"),
            (kernel, "vmlinuz"),
            (initramfs, "initramfs"),
        ):
            run([tools / "mcopy", "-i", image, source, f"::/{target}"], env=env)


def make_disk(
    *,
    rootfs: Path,
    loader: Path,
    kernel: Path,
    initramfs: Path,
    cmdline: str,
    output: Path,
    tools: Path,
    root_size: int | None = None,
    epoch: int = EPOCH,
) -> None:
    """Write a bootable qcow2 image ``output`` whose ext4 root holds the tree in the tar ``rootfs``.

    ``root_size`` is in bytes; the default is 2 GiB more than the tree needs. Free space takes no room in the qcow2. The
    root partition is ``PARTUUID=`` :data:`ROOT_PARTUUID`; ``cmdline`` should name it. Needs mke2fs, e2fsck, mformat,
    mmd, mcopy and qemu-img in ``tools``, and temporary space of the tree's size beside ``output``.
    """
    entries = list(read_tar(rootfs).values())
    if root_size is None:
        root_size = ext4_size(usage(entries), spare=2048 * MIB, journal=64 * MIB)
    with scratch_directory(output) as scratch:
        esp, root, raw = scratch / "esp.img", scratch / "root.img", scratch / "disk.raw"
        make_esp(esp, loader=loader, kernel=kernel, initramfs=initramfs, cmdline=cmdline, tools=tools, epoch=epoch)
        make_ext4(rootfs, root, tools=tools, size=root_size, journal=True, epoch=epoch, entries=entries)
        write_disk(
            raw,
            [
                Partition(EFI_SYSTEM, ESP_PARTUUID, "esp", esp),
                Partition(LINUX_DATA, ROOT_PARTUUID, "root", root),
            ],
        )
        limit = seconds_for(raw.stat().st_size)
        # One coroutine: several would write clusters in the order in which they finish.
        run([tools / "qemu-img", "convert", "-q", "-m", "1", "-f", "raw", "-O", "qcow2", raw, output], timeout=limit)
        run([tools / "qemu-img", "check", "-q", output], timeout=limit)


def write_disk(raw: Path, partitions: Sequence[Partition]) -> None:
    """Write a raw disk with a GPT; runs of zeros become holes."""
    sizes = [(partition, partition.content.stat().st_size) for partition in partitions]
    for partition, size in sizes:
        if not size or size % SECTOR:
            raise UserError(f"{partition.content}: {size} bytes, expected a positive multiple of {SECTOR}")
    start, end, offsets, disk = partition_table(sizes)
    zeros = bytes(CHUNK)
    with raw.open("wb") as stream:
        stream.truncate(disk)
        stream.write(start)
        for partition, offset in zip(partitions, offsets, strict=True):
            stream.seek(offset)
            with partition.content.open("rb") as source:
                while piece := source.read(CHUNK):
                    if piece == zeros[: len(piece)]:
                        stream.seek(len(piece), 1)
                    else:
                        stream.write(piece)
        stream.seek(disk - len(end))
        stream.write(end)
