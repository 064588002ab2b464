# SPDX-License-Identifier: Apache-2.0
"""File system images: the same bytes every time, complete content, and errors of one line."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sevsnp.archives.rootfs import Layer, directory_entry, link_entry, make_rootfs, text_entry
from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.errors import UserError
from sevsnp.images import filesystem
from sevsnp.images.filesystem import check_ext4, fixed_uuid, make_erofs, make_ext4
from sevsnp.system import command
from sevsnp.system.time_limits import SLOWEST, seconds_for

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    big = Content.literal("big", bytes(range(256)) * 4096)
    entries = [
        directory_entry("etc"),
        text_entry("etc/shadow", "root:*:::::::\n", 0o640, 0, 42),
        text_entry("usr/bin/sudo", "s", 0o4755),
        Entry("usr/bin/ping", Kind.FILE, 0o755, content=Content.literal("p", b"ping"), capability=CAPABILITY),
        text_entry("usr/share/Főtanúsítvány.crt", "c"),
        link_entry("bin", "usr/bin"),
        Entry("dev/null", Kind.CHARACTER, 0o666, device=(1, 3)),
        Entry("big", Kind.FILE, 0o644, content=big),
        Entry("linked", Kind.FILE, 0o644, content=big),
        *(text_entry(f"many/{number:04}", str(number)) for number in range(1500)),
    ]
    make_rootfs([Layer("x", entries)], tmp_path / "rootfs.tar")
    return tmp_path / "rootfs.tar"


def debugfs(tools: Path, image: Path, request: str) -> str:
    argv = [str(tools / "debugfs"), "-R", request, str(image)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("make", [make_ext4, make_erofs])
def test_directory_umask_and_time_zone_do_not_change_the_image(
    tools: Path, tmp_path: Path, tar: Path, make: object
) -> None:
    assert make in (make_ext4, make_erofs)
    results = []
    for folder, umask, zone in (("one", 0o022, "UTC"), ("another one", 0o077, "Asia/Tokyo")):
        where = tmp_path / folder
        where.mkdir()
        old = os.umask(umask)
        try:
            with pytest.MonkeyPatch.context() as patch:
                for name, value in (("TZ", zone), ("LC_ALL", "tr_TR.UTF-8"), ("MKE2FS_CONFIG", "/etc/mke2fs.conf")):
                    patch.setenv(name, value)
                (where / "r.tar").write_bytes(tar.read_bytes())
                (make_ext4 if make is make_ext4 else make_erofs)(where / "r.tar", where / "i", tools=tools)
        finally:
            os.umask(old)
        results.append((where / "i").read_bytes())
    assert results[0] == results[1] and len(results[0]) % 4096 == 0
    assert str(tmp_path).encode() not in results[0]


def test_ext4_keeps_what_the_tar_has(tools: Path, tmp_path: Path, tar: Path) -> None:
    image = tmp_path / "image"
    make_ext4(tar, image, tools=tools)
    (tmp_path / "value").write_bytes(b"")
    debugfs(tools, image, f"ea_get -f {tmp_path / 'value'} /usr/bin/ping security.capability")
    assert (tmp_path / "value").read_bytes() == CAPABILITY
    shadow = debugfs(tools, image, "stat /etc/shadow")
    assert "Mode:  0640" in shadow and "Group:    42" in shadow
    assert "Mode:  04755" in debugfs(tools, image, "stat /usr/bin/sudo")
    assert "Links: 2" in debugfs(tools, image, "stat /big") and "Device major/minor number: 01:03" in debugfs(
        tools, image, "stat /dev/null"
    )
    assert "Type: regular" in debugfs(tools, image, '"stat" "/usr/share/Főtanúsítvány.crt"')
    assert "usr/bin" in debugfs(tools, image, "stat /bin")
    statistics = debugfs(tools, image, "show_super_stats -h")
    assert fixed_uuid("ext4:root") in statistics and "has_journal" not in statistics


def test_an_ext4_image_for_a_writable_root_has_a_journal(tools: Path, tmp_path: Path, tar: Path) -> None:
    make_ext4(tar, tmp_path / "image", tools=tools, journal=True, size=256 << 20)
    assert "has_journal" in debugfs(tools, tmp_path / "image", "show_super_stats -h")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "positive multiple of 4096"),
        (4097, "positive multiple of 4096"),
        (-4096, "positive multiple of 4096"),
        (1 << 20, "need [0-9]+ at least"),
        (8396800, "too few for the files"),
        (1 << 50, "at most"),
    ],
)
def test_impossible_sizes(tools: Path, tmp_path: Path, size: int, words: str) -> None:
    data = [
        Entry(f"{n}", Kind.FILE, 0o644, content=Content.literal(str(n), bytes([n + 1]) * (1 << 20))) for n in range(8)
    ]
    make_rootfs([Layer("x", data)], tmp_path / "r.tar")
    with pytest.raises(UserError, match=words) as caught:
        make_ext4(tmp_path / "r.tar", tmp_path / "image", tools=tools, size=size)
    assert "\n" not in caught.value.message and f"{size} bytes" in caught.value.message


def test_the_time_limits_grow_with_the_image(
    tools: Path, tmp_path: Path, tar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {}

    def run(argv: Sequence[Path], *, timeout: float, **more: Any) -> bytes:
        limits[argv[0].name] = timeout
        return command.run(argv, timeout=timeout, **more)

    monkeypatch.setattr(filesystem, "run", run)
    small, large = 32 << 20, 64 << 20
    make_ext4(tar, tmp_path / "small", tools=tools, size=small)
    before = dict(limits)
    make_ext4(tar, tmp_path / "large", tools=tools, size=large)
    assert set(limits) == {"mke2fs", "e2fsck"}
    assert {limits[name] - before[name] for name in limits} == {(large - small) / SLOWEST}
    erofs = tmp_path / "erofs"
    make_erofs(tar, erofs, tools=tools)
    assert limits["mkfs.erofs"] == seconds_for(tar.stat().st_size) > seconds_for(0)
    assert limits["fsck.erofs"] == seconds_for(erofs.stat().st_size)


def test_a_damaged_image_is_noticed(tools: Path, tmp_path: Path, tar: Path) -> None:
    image = tmp_path / "image"
    make_ext4(tar, image, tools=tools)
    check_ext4(image, tools=tools)
    with image.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * 4096)
    with pytest.raises(UserError, match="e2fsck"):
        check_ext4(image, tools=tools)
