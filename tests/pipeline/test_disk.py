# SPDX-License-Identifier: Apache-2.0
"""The bootable disk: a GPT as UEFI has it, a FAT that mtools reads back, and the same qcow2 every time."""

import os
import struct
import subprocess
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest

from sevsnp.archives.rootfs import Layer, make_rootfs, text_entry
from sevsnp.errors import UserError
from sevsnp.images.disk import (
    EFI_SYSTEM,
    LINUX_DATA,
    ROOT_PARTUUID,
    Partition,
    make_disk,
    make_esp,
    partition_table,
    write_disk,
)

MIB = 1 << 20


def partition(path: Path, kind: uuid.UUID = LINUX_DATA) -> Partition:
    return Partition(kind, str(uuid.uuid5(uuid.NAMESPACE_URL, path.name)), path.name, path)


def test_the_table_is_valid(tmp_path: Path) -> None:
    one, two = partition(tmp_path / "one", EFI_SYSTEM), partition(tmp_path / "two")
    start, end, offsets, size = partition_table([(one, 3 * MIB + 512), (two, 5 * MIB)])
    assert offsets == [MIB, 5 * MIB] and size == 11 * MIB and size % 512 == 0
    assert start[510:512] == b"\x55\xaa" and start[450] == 0xEE
    primary, table = start[512:1024], start[1024:]
    backup, copy = end[-512:], end[:-512]
    assert table == copy and len(table) == 128 * 128
    for header, here, other in ((primary, 1, size // 512 - 1), (backup, size // 512 - 1, 1)):
        assert header[:8] == b"EFI PART"
        blank = header[:16] + bytes(4) + header[20:92]
        assert struct.unpack_from("<I", header, 16) == (zlib.crc32(blank),)
        assert struct.unpack_from("<QQ", header, 24) == (here, other)
        assert struct.unpack_from("<I", header, 88) == (zlib.crc32(table),)
    assert struct.unpack_from("<QQ", table, 32) == (2048, 2048 + 6 * 1024)
    assert uuid.UUID(bytes_le=table[:16]) == EFI_SYSTEM
    assert table[56:128].decode("utf-16-le").rstrip("\0") == "one"


def test_partitions_lie_where_the_table_says(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1" * 1024)
    (tmp_path / "two").write_bytes(bytes(3 * MIB) + b"2" * 512)
    write_disk(tmp_path / "raw", [partition(tmp_path / "one"), partition(tmp_path / "two")])
    raw = (tmp_path / "raw").read_bytes()
    assert raw[MIB : MIB + 1024] == b"1" * 1024 and raw[5 * MIB : 5 * MIB + 512] == b"2" * 512
    assert (tmp_path / "raw").stat().st_blocks * 512 < 3 * MIB  # zeros became holes
    (tmp_path / "odd").write_bytes(b"x")
    with pytest.raises(UserError, match="odd: 1 bytes, expected a positive multiple of 512"):
        write_disk(tmp_path / "raw", [partition(tmp_path / "odd")])


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    files = {name: tmp_path / name for name in ("loader", "kernel", "initramfs")}
    for name, path in files.items():
        path.write_bytes(name.encode() * 10000)
    files["rootfs"] = tmp_path / "rootfs.tar"
    make_rootfs([Layer("x", [text_entry("etc/hostname", "guest\n")])], files["rootfs"])
    return files


def test_mtools_reads_the_files_of_the_boot_partition(tools: Path, tmp_path: Path, inputs: dict[str, Any]) -> None:
    esp = tmp_path / "esp"
    files = {name: inputs[name] for name in ("loader", "kernel", "initramfs")}
    make_esp(esp, **files, cmdline="console=ttyS0 quiet", tools=tools)

    def read(name: str) -> bytes:
        return subprocess.run([tools / "mtype", "-i", esp, f"::/{name}"], check=True, capture_output=True).stdout

    assert read("EFI/BOOT/BOOTX64.EFI") == inputs["loader"].read_bytes()
    assert read("vmlinuz") == inputs["kernel"].read_bytes()
    assert read("initramfs") == inputs["initramfs"].read_bytes()
    assert b"options console=ttyS0 quiet\n" in read("loader/entries/guest.conf")
    assert esp.read_bytes()[82:90] == b"FAT32   "


def test_directory_umask_and_time_zone_do_not_change_the_disk(
    tools: Path, tmp_path: Path, inputs: dict[str, Any]
) -> None:
    images = []
    for folder, umask, zone in (("one", 0o022, "UTC"), ("another one", 0o077, "Asia/Tokyo")):
        output = tmp_path / folder / "disk.qcow2"
        output.parent.mkdir()
        old = os.umask(umask)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("TZ", zone)
                make_disk(**inputs, cmdline="quiet", output=output, tools=tools, root_size=64 * MIB)
        finally:
            os.umask(old)
        assert list(output.parent.iterdir()) == [output]
        images.append(output.read_bytes())
    assert images[0] == images[1] and images[0][:4] == b"QFI\xfb"
    assert str(tmp_path).encode() not in images[0]
    assert uuid.UUID(ROOT_PARTUUID).bytes_le in images[0]


@pytest.mark.parametrize("cmdline", ["", "a\nb", "ü", "a\0"])
def test_odd_command_lines_are_refused(tools: Path, tmp_path: Path, inputs: dict[str, Any], cmdline: str) -> None:
    files = {name: inputs[name] for name in ("loader", "kernel", "initramfs")}
    with pytest.raises(UserError, match="expected printable ASCII"):
        make_esp(tmp_path / "esp", **files, cmdline=cmdline, tools=tools)


def test_a_missing_file_is_named(tools: Path, tmp_path: Path, inputs: dict[str, Any]) -> None:
    inputs["kernel"].unlink()
    files = {name: inputs[name] for name in ("loader", "kernel", "initramfs")}
    with pytest.raises(UserError, match="kernel: no such file"):
        make_esp(tmp_path / "esp", **files, cmdline="quiet", tools=tools)
