# SPDX-License-Identifier: Apache-2.0
"""What the appliance reads without a kernel: partition tables, superblocks of arrays, kernel messages, mount points."""

import struct
import sys
import tarfile
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevsnp.archives import links, ustar
from sevsnp.images.disk import LINUX_DATA, Partition, write_disk
from sevsnp.qemu.disk_format import DiskFormat, disk_format, is_disk_image
from tests.support.disk_tables import MIB, SECTOR_4K, gpt_disk, member_superblock

INITRAMFS = Path(__file__).parents[3] / "initramfs"


@pytest.fixture
def appliance(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The modules of the appliance by name, with what stands beside them there."""
    monkeypatch.syspath_prepend(str(INITRAMFS))
    for name, module in (("links", links), ("ustar", ustar)):
        monkeypatch.setitem(sys.modules, name, module)
    before = set(sys.modules)

    class Modules:
        def __getattr__(self, name: str) -> Any:
            return __import__(f"appliance.{name}", fromlist=["*"])

    yield Modules()
    for name in set(sys.modules) - before:
        del sys.modules[name]


def read(appliance: Any, disk: Path) -> Any:
    with disk.open("rb") as stream:
        return appliance.gpt.read_gpt(stream, disk.stat().st_size)


@pytest.mark.parametrize("sector", [512, SECTOR_4K])
def test_a_gpt_is_read_in_both_sector_sizes_and_from_its_second_copy(
    appliance: Any, tmp_path: Path, sector: int
) -> None:
    """As sfdisk and QEMU read it; a disk without its first table is still accepted."""
    content = tmp_path / "content"
    content.write_bytes(b"x" * MIB)
    kind, identity = str(uuid.uuid4()), str(uuid.uuid4())
    disk = gpt_disk(tmp_path / "disk", [(kind, identity, "größe", content, 5)], sector)
    table = read(appliance, disk)
    assert (table.sector, table.backup) == (sector, False)
    (entry,) = table.partitions
    assert (entry.number, entry.type, entry.uuid, entry.name, entry.flags) == (1, kind, identity, "größe", 5)
    assert (entry.start, entry.size) == (MIB, MIB)
    assert disk_format(disk) is DiskFormat.RAW
    with disk.open("r+b") as stream:
        stream.write(bytes(64 << 10))
    second = read(appliance, disk)
    assert (second.sector, second.backup, second.partitions) == (sector, True, table.partitions)
    assert disk_format(disk) is DiskFormat.RAW
    with disk.open("r+b") as stream:
        stream.seek(-sector, 2)
        stream.write(bytes(sector))
    assert read(appliance, disk) is None and not is_disk_image(disk)


def test_our_own_table_is_read(appliance: Any, tmp_path: Path) -> None:
    content = tmp_path / "content"
    content.write_bytes(bytes(MIB))
    names = [str(uuid.uuid4()) for _ in range(3)]
    write_disk(tmp_path / "disk", [Partition(LINUX_DATA, name, "x", content) for name in names])
    assert [each.uuid for each in read(appliance, tmp_path / "disk").partitions] == names


@pytest.mark.parametrize(
    ("place", "data"),
    [
        (512 + 12, struct.pack("<I", 4096)),  # a header longer than its sector
        (512 + 24, struct.pack("<Q", 9)),  # that says it is elsewhere
        (512 + 80, struct.pack("<I", 1 << 20)),
        (512 + 84, struct.pack("<I", 0)),
        (512 + 88, b"\0\0\0\0"),
        (1024 + 16, b"\0"),  # an entry that was changed
    ],
)
def test_a_table_that_is_not_valid_is_not_read(appliance: Any, tmp_path: Path, place: int, data: bytes) -> None:
    """The header has a right checksum, so each fault is refused by itself. Control: the unchanged table is read."""
    content = tmp_path / "content"
    content.write_bytes(bytes(MIB))
    disk = gpt_disk(tmp_path / "disk", [(str(uuid.uuid4()), str(uuid.uuid4()), "", content, 0)], 512)
    assert not read(appliance, disk).backup
    raw = bytearray(disk.read_bytes())
    raw[place : place + len(data)] = data
    struct.pack_into("<I", raw, 512 + 16, 0)
    length = struct.unpack_from("<I", raw, 512 + 12)[0]
    struct.pack_into("<I", raw, 512 + 16, zlib.crc32(raw[512 : 512 + length]))
    disk.write_bytes(raw)
    assert read(appliance, disk).backup


@pytest.mark.parametrize("version", ["1.2", "1.1", "1.0", "0.90"])
def test_a_member_of_an_array(appliance: Any, tmp_path: Path, version: str) -> None:
    device = tmp_path / "member"
    device.write_bytes(bytes(4 * MIB + 512 * 7))
    assert appliance.md.read_member(str(device)) is None
    array = uuid.uuid4()
    member_superblock(device, version, array, name="host:7", number=0)
    found = appliance.md.read_member(str(device))
    assert (found.version, found.array, found.level, found.disks) == (version, str(array), "raid1", 2)
    assert found.name == ("7" if version == "0.90" else "host:7")


def test_error_messages_of_the_kernel_and_of_lvm_are_extracted(appliance: Any) -> None:
    warning = appliance.kernel_log.warning
    assert warning("3,100,5,-;EXT4-fs (vda): bad block size 65536\n SUBSYSTEM=block\n") == (
        "EXT4-fs (vda): bad block size 65536"
    )
    assert warning("6,100,5,-;EXT4-fs: mounted\n") == warning("no record") == warning("30,1,1,-;a daemon's\n") == ""
    said = (
        "  WARNING: Couldn't find device with uuid A.\n  Refusing activation of partial LV g/r.\n  Refusing activation"
    )
    assert appliance.lvm.reason(said) == (
        "Couldn't find device with uuid A.; Refusing activation of partial LV g/r.; Refusing activation"
    )
    assert appliance.lvm.reason("\n") == "it failed and gave no reason"


def test_mount_points_are_resolved_inside_the_root(appliance: Any, tmp_path: Path) -> None:
    """Links are followed in the root and in the filesystems mounted in it; a file in the path is an error."""
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "srv").mkdir(parents=True)
    (root / "data").symlink_to("/srv/data")
    (root / "file").touch()
    (other / "deep").mkdir(parents=True)
    (other / "up").symlink_to("../data")
    mounts = {"srv": str(other)}
    for place, expected in (
        ("/data/db", "srv/data/db"),
        ("/srv/deep/new", "srv/deep/new"),
        ("/srv/up/x", "srv/data/x"),
        ("/nowhere/at/all", "nowhere/at/all"),
    ):
        assert appliance.fstab.real_place(str(root), mounts, place) == expected
    for place in ("/file", "/file/below"):
        with pytest.raises(NotADirectoryError):
            appliance.fstab.real_place(str(root), mounts, place)


def test_missing_mount_points_are_made(appliance: Any, tmp_path: Path) -> None:
    root, one, two = (tmp_path / name for name in ("root", "one", "two"))
    for path in (root / "etc", one / "inner", two):
        path.mkdir(parents=True)
    (one / "mine").write_text("1")
    (two / "yours").write_text("2")
    archive = tmp_path / "out.tar"
    with archive.open("wb") as stream:
        tar = appliance.tree_tar.TreeTar(stream.fileno(), lambda _: None)
        mounts = {"data/db": str(one), "data/db/inner/more": str(two)}
        appliance.tree_tar.add_tree(tar, str(root), mounts, lambda name, path: "")
        tar.close()
    with tarfile.open(archive) as found:
        names = [member.name for member in found]
        assert [name.removeprefix("./") for name in names if name != "."] == [
            "data", "data/db", "data/db/inner", "data/db/inner/more", "data/db/inner/more/yours", "data/db/mine", "etc",
        ]  # fmt: skip
        made = found.getmember("./data")
        assert (made.mode, made.uid, made.gid, made.isdir()) == (0o755, 0, 0, True)


def test_a_mount_point_in_an_excluded_directory_is_an_error(appliance: Any, tmp_path: Path) -> None:
    """Otherwise its files would be lost without a message."""
    (tmp_path / "root" / "out").mkdir(parents=True)
    with (tmp_path / "out.tar").open("wb") as stream:
        tar = appliance.tree_tar.TreeTar(stream.fileno(), lambda _: None)
        with pytest.raises(FileNotFoundError, match="/out/place"):
            appliance.tree_tar.add_tree(
                tar,
                str(tmp_path / "root"),
                {"out/place": str(tmp_path)},
                lambda name, _: "why" if name == "out" else "",
            )


def test_zeros_that_the_filesystem_compressed_become_holes(appliance: Any, tmp_path: Path) -> None:
    """Control: data that begins within a piece, or ends the file, is in a range."""
    content = bytearray(7 * MIB + 5)
    content[:1], content[3 * MIB - 1 : 3 * MIB + 1], content[-1:] = b"a", b"bc", b"d"
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as stream:
        found = appliance.tree_tar._written(stream.fileno(), len(content))
    assert found == [(0, MIB), (2 * MIB, 2 * MIB), (7 * MIB, 5)]
    (tmp_path / "file").write_bytes(bytes(2 * MIB))
    with (tmp_path / "file").open("rb") as stream:
        assert appliance.tree_tar._written(stream.fileno(), 2 * MIB) == []


def test_a_root_is_described_by_system_host_name_and_date(appliance: Any, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text('ID=x\nPRETTY_NAME="Some System 1"\n')
    (tmp_path / "etc" / "hostname").write_text("web1\n")
    said = appliance.describe.describe(str(tmp_path))
    assert said.startswith("Some System 1, host web1, changed 20")
    (tmp_path / "etc" / "os-release").write_text("ID=x\n")
    assert appliance.describe.describe(str(tmp_path)).startswith("x, host")
    assert appliance.describe.snapshot(str(tmp_path)) == ""  # no btrfs
