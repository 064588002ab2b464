# SPDX-License-Identifier: Apache-2.0
"""Truncated disk images, and paths that are no regular file: refused by name. Control: the same image, whole."""

import os
import struct
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.images.disk import LINUX_DATA, Partition, write_disk
from sevsnp.qemu.disk_format import DiskFormat, disk_format, is_disk_image
from sevsnp.qemu.whole_disk import check_not_cut
from sevsnp.system.command import run

MIB = 1 << 20


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as stream:
        stream.truncate(size)


def test_a_gpt_disk_that_ends_before_its_partition_does(tmp_path: Path) -> None:
    content, disk = tmp_path / "content", tmp_path / "disk.raw"
    content.write_bytes(os.urandom(4 * MIB))
    write_disk(disk, [Partition(LINUX_DATA, "11111111-1111-1111-1111-111111111111", "root", content)])
    check_not_cut(disk, disk_format(disk))
    cut(disk, disk.stat().st_size - 64 * 512)  # the second table alone
    check_not_cut(disk, disk_format(disk))
    cut(disk, 3 * MIB)
    with pytest.raises(UserError, match=rf"ends before its partition table says: it has {3 * MIB} bytes, expected \d+"):
        check_not_cut(disk, disk_format(disk))


def test_a_truncated_dos_disk_is_refused_and_a_boot_sector_with_code_is_not(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    row = struct.pack("<B3xB3xII", 0x80, 0x83, 2048, 2048)
    disk.write_bytes(bytes(446) + row + bytes(48) + b"\x55\xaa" + bytes(2 * MIB - 512))
    check_not_cut(disk, DiskFormat.RAW)
    cut(disk, 2 * MIB - 512)
    with pytest.raises(UserError, match="ends before its partition table says"):
        check_not_cut(disk, DiskFormat.RAW)
    disk.write_bytes(bytes(446) + b"\xeb" * 64 + b"\x55\xaa" + bytes(MIB))
    check_not_cut(disk, DiskFormat.RAW)


@pytest.mark.parametrize(
    "options", [(), ("-c",), ("-o", "compat=0.10"), ("-o", "extended_l2=on"), ("-o", "preallocation=metadata")]
)
def test_a_truncated_qcow2_is_refused(tools: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    raw.write_bytes(bytes(510) + b"\x55\xaa" + os.urandom(4 * MIB) + bytes(8 * MIB - 512))
    run([tools / "qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, image])
    check_not_cut(image, disk_format(image))
    cut(image, 3 * MIB)
    with pytest.raises(UserError, match="cut short"):
        check_not_cut(image, disk_format(image))


# The last grain or block may be cut by less than QEMU writes at once; more is noticed.
LAST = [
    ("qcow2", (), 64 << 10),
    ("qcow2", ("-c",), 1024),
    ("qcow2", ("-c", "-o", "compression_type=zstd"), 1024),
    ("vmdk", (), 64 << 10),
    ("vmdk", ("-o", "subformat=streamOptimized"), 64 << 10),
    ("vhdx", (), 1),
    ("vhdx", ("-o", "block_size=1M"), 1),
]


@pytest.mark.parametrize(("form", "options", "less"), LAST)
def test_an_image_without_its_last_data_is_refused(
    tools: Path, tmp_path: Path, form: str, options: tuple[str, ...], less: int
) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk"
    content = b"".join(os.urandom(32 << 10) + bytes([65]) * (32 << 10) for _ in range(128))
    raw.write_bytes(bytes(510) + b"\x55\xaa" + content[512:])
    run([tools / "qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, image])
    check_not_cut(image, disk_format(image))
    cut(image, image.stat().st_size - less)
    with pytest.raises(UserError, match=f"{form.upper()} that was cut short: it has"):
        check_not_cut(image, disk_format(image))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("vmdk", ()),
        ("vmdk", ("-o", "subformat=streamOptimized")),
        ("vhdx", ()),
        ("vhdx", ("-o", "subformat=fixed")),
    ],
)
def test_images_of_odd_sizes_are_whole(tools: Path, tmp_path: Path, form: str, options: tuple[str, ...]) -> None:
    """A nearly empty disk that does not fill its last block: no part of it is missing."""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk"
    with raw.open("wb") as stream:
        stream.truncate(9 * MIB + 77 * 512)
        stream.seek(9 * MIB + 70 * 512)
        stream.write(b"end")
    run([tools / "qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, image])
    check_not_cut(image, disk_format(image))


def test_a_footer_that_is_missing(tools: Path, tmp_path: Path) -> None:
    """Other programs write the directory of a streamOptimized VMDK after the data, and its place at the end."""
    raw, image = tmp_path / "disk.raw", tmp_path / "disk"
    raw.write_bytes(os.urandom(MIB))
    run([tools / "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, image])
    data = bytearray(image.read_bytes())
    footer = bytes(data[:512])
    data[56:64] = b"\xff" * 8
    image.write_bytes(bytes(data) + footer + bytes(512))
    check_not_cut(image, DiskFormat.VMDK)
    cut(image, image.stat().st_size - 1024)
    with pytest.raises(UserError, match="VMDK that was cut short"):
        check_not_cut(image, DiskFormat.VMDK)


def test_a_truncated_vhd_is_refused(tools: Path, tmp_path: Path) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "disk.vhd"
    raw.write_bytes(os.urandom(MIB))
    run([tools / "qemu-img", "convert", "-f", "raw", "-O", "vpc", raw, image])
    assert disk_format(image) is DiskFormat.VHD
    cut(image, image.stat().st_size - 512)
    with pytest.raises(UserError, match="a VHD that was cut short"):
        disk_format(image)


def test_a_pipe_or_device_instead_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, found in ((fifo, "a FIFO"), (Path("/dev/null"), "a character device")):
        with pytest.raises(UserError, match=f"found {found}, expected a file"):
            is_disk_image(path)
    assert not is_disk_image(tmp_path) and not is_disk_image(tmp_path / "none")
