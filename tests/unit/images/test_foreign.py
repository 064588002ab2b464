# SPDX-License-Identifier: Apache-2.0
"""The format of a disk image, recognised by its content; images that would make QEMU read another file are refused."""

import importlib
import struct
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sevsnp.archives import links
from sevsnp.archives.rootfs import Layer, make_rootfs, text_entry
from sevsnp.errors import UserError
from sevsnp.qemu.disk_format import DiskFormat, disk_format, is_disk_image
from sevsnp.system.command import run
from tests.support.evidence import load_script

INITRAMFS = Path(__file__).parents[3] / "initramfs"
# What the appliance has beside it.
sys.modules["links"] = links
fstab = load_script(INITRAMFS / "appliance" / "fstab.py")
sys.modules["appliance.fstab"] = fstab
mount_units = load_script(INITRAMFS / "appliance" / "mount_units.py")

MIB = 1 << 20
FORMATS = [
    ("qcow2", (), DiskFormat.QCOW2),
    ("qcow2", ("-o", "compat=0.10"), DiskFormat.QCOW2),
    ("vmdk", (), DiskFormat.VMDK),
    ("vmdk", ("-o", "subformat=streamOptimized"), DiskFormat.VMDK),
    ("vhdx", (), DiskFormat.VHDX),
    ("vpc", (), DiskFormat.VHD),
    ("vpc", ("-o", "subformat=fixed"), DiskFormat.VHD),
    ("raw", (), DiskFormat.RAW),
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Four megabytes with a DOS partition table."""
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(510) + b"\x55\xaa" + b"content" + bytes(4 * MIB - 519))
    return path


def convert(tools: Path, raw: Path, form: str, *options: str) -> Path:
    target = raw.with_name("disk.img")
    run([tools / "qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, target])
    return target


def refusal(path: Path, *words: str) -> None:
    assert is_disk_image(path)
    with pytest.raises(UserError) as caught:
        disk_format(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize(("form", "options", "expected"), FORMATS)
def test_formats(tools: Path, raw: Path, form: str, options: tuple[str, ...], expected: DiskFormat) -> None:
    """By the content: the file name does not count."""
    assert disk_format(convert(tools, raw, form, *options)) is expected


@pytest.mark.parametrize("form", ["vdi", "parallels", "qed"])
def test_other_formats_are_refused_by_name(tools: Path, raw: Path, form: str) -> None:
    refusal(convert(tools, raw, form), "expected qcow2, raw, VMDK, VHDX or VHD", "ask the author of the image")


@pytest.mark.parametrize(
    ("place", "magic"),
    [
        (0x438, b"\x53\xef"),
        (0, b"XFSB"),
        (0, b"hsqs"),
        (0x400, b"\xe2\xe1\xf5\xe0"),
        (0x10040, b"_BHRfS_M"),
        (0, b"LUKS\xba\xbe"),
        (536, b"LVM2 001"),
        (512, b"EFI PART"),
        (4096, b"EFI PART"),
        (3, b"-FVE-FS-"),
    ],
)
def test_raw_disks(tmp_path: Path, place: int, magic: bytes) -> None:
    """A filesystem or a volume from the first sector on is a raw disk. Control: without its magic bytes it is not."""
    path = tmp_path / "disk"
    path.write_bytes(bytes(place) + magic + bytes(MIB))
    assert disk_format(path) is DiskFormat.RAW
    path.write_bytes(bytes(place + len(magic) + MIB))
    assert not is_disk_image(path)


def test_archives_are_not_recognised_as_disks(tmp_path: Path) -> None:
    tar = tmp_path / "root.tar"
    make_rootfs([Layer("x", [text_entry("file", "\x55\xaa" * 40000)])], tar)
    assert not is_disk_image(tar)
    for name, content in (("empty", b""), ("text", b"words\n" * 100000), ("xz", b"\xfd7zXZ\0" + bytes(MIB))):
        (tmp_path / name).write_bytes(content)
        assert not is_disk_image(tmp_path / name)
    assert not is_disk_image(tmp_path / "missing") and not is_disk_image(tmp_path)
    with pytest.raises(UserError, match="missing: cannot be read"):
        disk_format(tmp_path / "missing")


def test_a_backing_file_is_refused(tools: Path, tmp_path: Path) -> None:
    """Control: QEMU by itself reads the other file, and its content is in the disk."""
    secret, image = tmp_path / "secret", tmp_path / "disk.qcow2"
    secret.write_bytes(b"of the host".ljust(MIB, b"."))
    run([tools / "qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", image])
    run([tools / "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, tmp_path / "copied"])
    assert (tmp_path / "copied").read_bytes().startswith(b"of the host")
    refusal(image, "backing file")


def test_a_data_file_is_refused(tools: Path, tmp_path: Path) -> None:
    """Control: QEMU by itself uses the other file as the disk."""
    data, image = tmp_path / "data", tmp_path / "disk.qcow2"
    run([tools / "qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", image, "1M"])
    data.write_bytes(b"of the host".ljust(MIB, b"."))
    run([tools / "qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, tmp_path / "copied"])
    assert (tmp_path / "copied").read_bytes().startswith(b"of the host")
    refusal(image, "another file")


def test_a_vmdk_with_data_in_another_file_is_refused(tools: Path, raw: Path, tmp_path: Path) -> None:
    flat = convert(tools, raw, "vmdk", "-o", "subformat=monolithicFlat")
    refusal(flat, "descriptor")
    whole = convert(tools, raw, "vmdk")
    parent = tmp_path / "child.vmdk"
    run([tools / "qemu-img", "create", "-q", "-f", "vmdk", "-b", whole, "-F", "vmdk", parent])
    refusal(parent, "VMDK with a parent")
    header = bytearray(whole.read_bytes())
    header[12:20] = bytes(8)  # no capacity: QEMU then believes the extents of the descriptor
    whole.write_bytes(header)
    refusal(whole, "descriptor")


def edited(path: Path, place: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)
    return path


def test_unsupported_variants_of_formats_are_refused(tools: Path, raw: Path) -> None:
    qcow2: Callable[[], Path] = lambda: convert(tools, raw, "qcow2")  # noqa: E731
    refusal(edited(qcow2(), 4, struct.pack(">I", 1)), "version 1")
    refusal(edited(qcow2(), 32, struct.pack(">I", 2)), "encrypted")
    vhd = convert(tools, raw, "vpc")
    refusal(edited(vhd, vhd.stat().st_size - 512 + 60, struct.pack(">I", 4)), "VHD with a parent")
    vhdx = convert(tools, raw, "vhdx")
    parameters = bytes.fromhex("3767a1ca36fa434db3b633f0aa44e76b")
    metadata = vhdx.read_bytes().index(b"metadata")
    item = vhdx.read_bytes().index(parameters, metadata)
    (offset,) = struct.unpack_from("<I", vhdx.read_bytes(), item + 16)
    assert disk_format(vhdx) is DiskFormat.VHDX
    refusal(edited(vhdx, metadata + offset + 4, struct.pack("<I", 2)), "VHDX with a parent")
    short = raw.with_name("short")
    for magic in (b"QFI\xfb", b"KDMV", b"vhdxfile"):
        short.write_bytes(magic)
        refusal(short, "")


def test_fstab() -> None:
    lines = fstab.parse_fstab(
        "# comment\nUUID=a / ext4 defaults 0 1\n\nLABEL=b /my\\040data/ xfs nofail\n/swap none swap sw 0 0\n"
        "LABEL=c /home btrfs subvol=/@home,rw 0 0\ntmpfs /tmp tmpfs\nLABEL=d /home btrfs subvolid=258\nbroken line\n"
        "/srv /export none bind 0 0\n/dev/sdb1 /mnt ext4 noauto 0 0\nLABEL=e /run/x ext4\n"
    )
    found = {line.place: line for line in lines}
    assert set(found) == {"/", "/my data", "none", "/home", "/tmp", "/export", "/mnt", "/run/x"}
    assert found["/my data"].optional and not found["/"].optional
    assert found["/home"].selector == "subvolid=258"
    assert fstab.parse_fstab("x /home btrfs rw,subvol=/@home\n")[0].selector == "subvol=/@home"
    reasons = {place: line.no_disk() for place, line in found.items()}
    assert reasons["/"] == reasons["/home"] == reasons["/my data"] == ""
    assert all(reasons[place] for place in ("/tmp", "/export", "/mnt", "/run/x"))


def test_links_stay_inside_the_image(tmp_path: Path) -> None:
    """An absolute link is relative to the image. Control: followed by the system, it leads out of the image."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "usr").mkdir()
    (root / "etc" / "inside").write_text("")
    (root / "etc" / "absolute").symlink_to("/etc/hostname")
    (root / "usr" / "climbing").symlink_to("../../../../etc/inside")
    (root / "etc" / "circle").symlink_to("circle")
    assert fstab.real_path(str(root), "etc/inside") == f"{root}/etc/inside"
    assert (root / "etc" / "absolute").exists() and fstab.real_path(str(root), "etc/absolute") == ""
    assert fstab.real_path(str(root), "usr/climbing") == f"{root}/etc/inside"
    assert fstab.real_path(str(root), "etc/circle") == fstab.real_path(str(root), "etc") == ""


@pytest.fixture
def volumes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(INITRAMFS))
    others, before = sys.modules.pop("linux", None), set(sys.modules)
    yield importlib.import_module("appliance.volumes")
    for name in set(sys.modules) - before:
        del sys.modules[name]
    if others:
        sys.modules["linux"] = others


def test_names_of_volumes(volumes: Any) -> None:
    """As an fstab or a user names them; the disk's own name and the dashes of a logical volume do not matter."""
    one = volumes.Volume("/dev/vda1", "/dev/vdb1", "FAT", uuid="ABCD-1234", number=1, partuuid="aa-01")
    two = volumes.Volume("/dev/vda2", "/dev/vdb2", "ext4", uuid="0a0b-1", label="my root", number=2, partlabel="root")
    lvm = volumes.Volume(
        "/dev/a-b/c-d", "/dev/a-b/c-d", "xfs", uuid="0c", identities=("dm-uuid-LVM-abc", "dm-name-a--b-c--d")
    )
    array = volumes.Volume("/dev/md/0", "/dev/md127", "ext4", names=("/dev/md0",), identities=("md-uuid-1:2",))
    for spec, expected in (
        ("/dev/sda1", one),
        ("/dev/nvme0n1p2", two),
        ("/dev/xvda2", two),
        ("/dev/vda3", None),
        ("UUID=abcd-1234", one),
        ('UUID="0A0B-1"', two),
        ("LABEL=my root", two),
        ("/dev/disk/by-label/my\\x20root", two),
        ("/dev/disk/by-uuid/0c", lvm),
        ("PARTUUID=AA-01", one),
        ("PARTLABEL=root", two),
        ("/dev/a-b/c-d", lvm),
        ("/dev/mapper/a--b-c--d", lvm),
        ("/dev/mapper/a-b-c-d", None),
        ("UUID=", None),
        ("NAME=x", None),
        ("/dev/disk/by-id/dm-uuid-LVM-abc", lvm),
        ("/dev/disk/by-id/dm-name-a--b-c--d", lvm),
        ("/dev/disk/by-id/dm-uuid-LVM-other", None),
        ("/dev/disk/by-id/scsi-0QEMU_HARDDISK_x-part2", two),
        ("/dev/disk/by-path/pci-0000:00:05.0-part1", one),
        ("/dev/disk/by-id/md-uuid-1:2", array),
        ("/dev/disk/by-id/md-name-host:0-part2", None),
        ("/dev/md0", array),
    ):
        assert volumes.find(spec, [one, two, lvm, array]) is expected, spec


def test_the_filesystem_of_a_volume_is_recognised(volumes: Any, tools: Path, tmp_path: Path) -> None:
    """Made by real tools if they are installed; the name and the label are read from the right places."""
    image = tmp_path / "image"
    image.write_bytes(bytes(8 * MIB))
    identity = str(uuid.uuid4())
    run([tools / "mke2fs", "-q", "-F", "-t", "ext4", "-U", identity, "-L", "label", image])
    assert volumes.probe(str(image)) == ("ext4", identity, "label")
    image.write_bytes(bytes(40 * MIB))
    run(
        [tools / "mformat", "-i", image, "-F", "-T", "81920", "-h", "64", "-s", "32", "-c", "1", "-N", "1234abcd", "::"]
    )
    assert volumes.probe(str(image)) == ("FAT", "1234-ABCD", "")
    options = ["--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--batch-mode"]
    run([tools / "cryptsetup", "luksFormat", *options, "--key-file=-", image], stdin=b"key")
    assert volumes.probe(str(image))[0] == "LUKS"
    image.write_bytes(bytes(MIB))
    assert volumes.probe(str(image)) == ("", "", "")


def test_mount_units(tmp_path: Path) -> None:
    """Units of a device that a target wants are read. These are not: not wanted, masked, a template, memory."""
    units, wants = tmp_path / "etc/systemd/system", tmp_path / "etc/systemd/system/local-fs.target.wants"
    wants.mkdir(parents=True)
    written = {
        "opt.mount": "[Mount]\nWhat=/dev/disk/by-label/apps\nWhere=/opt\nType=ext4\nOptions=ro,noatime\n",
        "data.mount": "[Mount]\nWhat=UUID=1\nWhere=/data/\n",
        "each@1.mount": "[Mount]\nWhat=/dev/%i\nWhere=/each\n",
        "memory.mount": "[Mount]\nWhat=tmpfs\nWhere=/memory\nType=tmpfs\n",
        "idle.mount": "[Mount]\nWhat=LABEL=idle\nWhere=/idle\n",
    }
    for name, text in written.items():
        (units / name).write_text(text)
    (units / "masked.mount").symlink_to("/dev/null")
    for name in ("opt.mount", "data.automount", "each@1.mount", "memory.mount", "masked.mount", "gone.mount"):
        (wants / name).symlink_to(f"../{name}")
    data, opt = mount_units.read_mount_units(str(tmp_path))
    assert (opt.device, opt.place, opt.kind) == ("/dev/disk/by-label/apps", "/opt", "ext4")
    assert opt.options == ("ro", "noatime", "nofail") and opt.optional and opt.no_disk() == ""
    assert (data.device, data.place, data.kind) == ("UUID=1", "/data", "auto")
