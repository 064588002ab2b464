# SPDX-License-Identifier: Apache-2.0
"""Existing disk images as the root of a guest: made here by other tools, converted without root, booted to ssh."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import Layer, directory_entry, link_entry, make_rootfs, text_entry
from sevsnp.archives.tar import Content, Entry, Kind, read_tar
from sevsnp.e2e.guest import wait_for_login
from sevsnp.images.adopt import make_image_rootfs
from sevsnp.images.filesystem import make_ext4
from sevsnp.images.foreign import import_image
from sevsnp.system.command import run
from sevsnp.system.files import sha256_file
from tests.conftest import Built
from tests.support.copies import copy_built
from tests.support.foreign_disks import (
    MIB,
    SPARSE,
    Maker,
    btrfs_with_subvolumes,
    empty,
    installed_on_lvm,
    make_maker,
    mbr,
    small_root,
)
from tests.support.luks_guests import booted, image_copy, luks_config, make_owner, unlock, wait_for_key
from tests.support.shared_guests import Attested, attested, refusal, started

pytestmark = pytest.mark.boot

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw=ep
# POSIX ACL, version 2: the owner, user 1000, the group, the mask, others.
ACL = "0200000001000600ffffffff0200060 0e803000004000400ffffffff10000600ffffffff20000400ffffffff".replace(" ", "")


def special() -> list[Entry]:
    """What a careless copy loses."""
    shared = Content.literal("linked", b"one file, two names\n")
    return [
        directory_entry("srv", 0o1777, 12, 34),
        Entry("srv/one", Kind.FILE, 0o640, 3_000_000, 7, content=shared),
        Entry("srv/two", Kind.FILE, 0o640, 3_000_000, 7, content=shared),
        Entry("srv/ping", Kind.FILE, 0o4755, capability=CAPABILITY, content=Content.literal("ping", b"ping\n")),
        Entry("srv/null", Kind.CHARACTER, 0o666, device=(1, 3)),
        Entry("srv/pipe", Kind.FIFO, 0o600),
        Entry("srv/link", Kind.SYMLINK, 0o777, target="y" * 150),
        text_entry("srv/" + "n" * 200, "long\n"),
        text_entry("srv/Főtanúsítvány", "utf-8\n"),
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("foreign")
    yield path
    shutil.rmtree(path)  # gigabytes


@pytest.fixture(scope="module")
def maker(built: Built, directory: Path) -> Maker:
    built.doit("_appliance_initramfs", "create_new_vm")
    return make_maker(built, directory)


@pytest.fixture(scope="module")
def lvm(built: Built, maker: Maker, directory: Path) -> Path:
    return installed_on_lvm(maker, built.build / "guest" / "rootfs.tar", directory, special())


@pytest.fixture(scope="module")
def btrfs(built: Built, maker: Maker, directory: Path) -> Path:
    return btrfs_with_subvolumes(maker, built.build / "guest" / "rootfs.tar", directory, special())


def imported(maker: Maker, built: Built, image: Path, output: Path, root_device: str = "") -> dict[str, Entry]:
    """What the appliance of the product makes of an image."""
    import_image(
        image=image,
        root_device=root_device,
        qemu=maker.appliance.qemu,
        kernel=maker.appliance.kernel,
        initrd=built.build / "initramfs.appliance.cpio.zst",
        probe_cache=maker.appliance.probe_cache,
        output=output,
    )
    return read_tar(output)


def facts(entry: Entry) -> tuple[object, ...]:
    return (replace(entry, content=None, mtime=0), entry.content and b"".join(entry.content.pieces()))


def check_special(found: dict[str, Entry]) -> None:
    for entry in special():
        if entry.kind is not Kind.DIRECTORY:
            assert facts(found[entry.name]) == facts(entry), entry.name
    one, two = found["srv/one"].content, found["srv/two"].content
    assert one and two and one.inode == two.inode
    assert (found["srv"].mode, found["srv"].uid, found["srv"].gid) == (0o1777, 12, 34)


def boots_to_ssh(built: Built, image: Path, directory: Path, *words: str) -> str:
    """Convert an image by the command that users have, boot it, verify it and log in; what the conversion said."""
    copy = copy_built(built, directory / "project")
    said = copy.doit("setup_verity", f"IMAGE={image}", *words).stdout
    with started(copy, copy.config("emulated"), directory / "state") as running:
        look_inside(attested(running))
    return said


@contextlib.contextmanager
def encrypted_guest(built: Built, image: str | Path, directory: Path) -> Iterator[Attested]:
    """The same for the encrypted workflow: converted, booted, its key released, reachable by ssh."""
    shutil.copytree(built.config_dir, directory / "owner")
    copy = Built(copy_built(built, directory / "project").project, directory / "owner")
    copy.doit("setup_luks", f"IMAGE={image}")
    owner = make_owner(copy, directory / "first")
    with (
        image_copy(copy.build / "luks" / "luks.img", directory / "disk") as disk,
        booted(copy, luks_config(copy), disk, directory / "luks") as running,
    ):
        wait_for_key(running)
        unlock(running, owner, directory / "attested")
        wait_for_login(directory / "attested" / "ssh_config")
        yield Attested(running, directory / "attested")


def boots_to_ssh_encrypted(built: Built, image: Path, directory: Path) -> None:
    with encrypted_guest(built, image, directory) as guest:
        look_inside(guest)
        guest.ssh("sudo touch /kept")  # a root that is written to


def look_inside(guest: Attested) -> None:
    assert guest.ssh("id -un").strip() == "user"
    assert guest.ssh("findmnt -no FSTYPE,OPTIONS /").split()[0] == "ext4"
    assert guest.ssh("systemctl is-system-running --wait || true").strip() == "running"
    assert guest.ssh("cat /proc/swaps").count("\n") == 1
    for unit in ("serial-getty@ttyS0.service", "swap.target", "systemd-growfs@.service"):
        assert guest.ssh(f"systemctl is-enabled {unit} || true").strip() == "masked"
    assert guest.ssh("stat -c '%a %u' /srv/ping /srv/one").split() == ["4755", "0", "640", "3000000"]


@pytest.mark.full
def test_an_installed_system_on_lvm_boots_as_an_encrypted_guest(lvm: Path, built: Built, tmp_path: Path) -> None:
    boots_to_ssh_encrypted(built, lvm, tmp_path)


@pytest.mark.full
def test_btrfs_subvolumes_boot_as_an_encrypted_guest(btrfs: Path, built: Built, tmp_path: Path) -> None:
    boots_to_ssh_encrypted(built, btrfs, tmp_path)


def check_lvm(said: str, found: dict[str, Entry]) -> None:
    for line in (
        "root file system: /dev/some-group/root (ext4)",
        "folded in: /home from LABEL=home",
        "left out: /boot/efi",
        "left out: /mnt (nfs)",
    ):
        assert line in said, said
    check_special(found)
    sparse = found["home/user/sparse"].content
    assert sparse and sparse.sparse and sparse.size == SPARSE
    assert b"".join(sparse.pieces()) == b"begin" + bytes(SPARSE - 5)


@pytest.mark.full
def test_a_root_on_lvm_is_imported_completely(
    built: Built, maker: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk has a GPT, LVM2, a root of ext4 and a /home of xfs."""
    tar, output = tmp_path / "small.tar", tmp_path / "out.tar"
    make_rootfs([Layer("test", small_root())], tar)
    found = imported(maker, built, installed_on_lvm(maker, tar, tmp_path, special()), output)
    check_lvm(capsys.readouterr().out, found)
    # Holes stay holes: the archive has not grown by them.
    assert output.stat().st_size < 2 * MIB


@pytest.mark.full
def test_an_installed_system_on_lvm_boots_as_a_verified_guest(
    lvm: Path, built: Built, maker: Maker, tmp_path: Path
) -> None:
    """The same kind of disk, with all programs that a guest needs."""
    said = boots_to_ssh(built, lvm, tmp_path)
    assert "emptied: /etc/fstab" in said
    archive = tmp_path / "project" / "build" / "guest" / "image-imported.tar"
    check_lvm(said, read_tar(archive))
    assert archive.stat().st_size < 300 * MIB
    shutil.rmtree(tmp_path / "project")


@pytest.mark.full
def test_btrfs_subvolumes_boot_as_a_verified_guest(btrfs: Path, built: Built, maker: Maker, tmp_path: Path) -> None:
    """The root is the subvolume that its own fstab names, not its snapshot; @home and nested ones are folded in."""
    said = boots_to_ssh(built, btrfs, tmp_path)
    assert "root file system: /dev/vda2:@ (btrfs)" in said and "folded in: /home from LABEL=disk" in said, said
    found = read_tar(tmp_path / "project" / "build" / "guest" / "image-imported.tar")
    check_special(found)
    nested = found["srv/nested/file"].content
    assert nested and nested.read() == b"nested\n"
    assert "home/user" in found and "before" not in found
    shutil.rmtree(tmp_path / "project")


def ext4(maker: Maker, path: Path, entries: list[Entry], journal: bool = False) -> Path:
    tar = path.with_suffix(".tar")
    make_rootfs([Layer("test", entries)], tar)
    make_ext4(tar, path, tools=maker.tools, journal=journal)
    return path


@pytest.mark.full
def test_root_device_chooses_one_of_several_roots(built: Built, maker: Maker, tmp_path: Path) -> None:
    """Two roots on an MBR disk are listed, no root is an error. Control: a single root needs no ROOT_DEVICE."""
    roots = [ext4(maker, tmp_path / f"{mark}.img", small_root(mark)) for mark in ("one", "two")]
    data = ext4(maker, tmp_path / "data.img", [text_entry("file", "data")])
    output = tmp_path / "out.tar"
    both = mbr(tmp_path / "both.raw", data, *roots)
    refusal(
        lambda: imported(maker, built, both, output),
        "/dev/vda2 (label root, one, changed",
        "/dev/vda3 (label root, two, changed",
        "ROOT_DEVICE=/dev/vda2",
    )
    for device, mark in (("/dev/sda2", b"one\n"), ("/dev/nvme0n1p3", b"two\n")):
        content = imported(maker, built, both, output, device)["etc/mark"].content
        assert content and content.read() == mark
    refusal(lambda: imported(maker, built, both, output, "/dev/vda1"), "ROOT_DEVICE=/dev/vda1", "no root file system")
    refusal(lambda: imported(maker, built, both, output, "/dev/vda7"), "no such partition", "/dev/vda3 (ext4)")
    only = mbr(tmp_path / "only.raw", data, roots[1])
    content = imported(maker, built, only, output)["etc/mark"].content
    assert content and content.read() == b"two\n"
    nothing = mbr(tmp_path / "nothing.raw", data)
    refusal(lambda: imported(maker, built, nothing, output), "no root file system", "/dev/vda1 (ext4)")


@pytest.mark.full
def test_an_encrypted_root_is_refused(built: Built, maker: Maker, tmp_path: Path) -> None:
    volume = empty(tmp_path / "luks.img", 32 * MIB)
    options = ["--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--batch-mode"]
    run([maker.tools / "cryptsetup", "luksFormat", *options, "--key-file=-", volume], stdin=b"key")
    boot = ext4(maker, tmp_path / "boot.img", [text_entry("vmlinuz", "")])
    disk = mbr(tmp_path / "disk.raw", boot, volume)
    refusal(lambda: imported(maker, built, disk, tmp_path / "out.tar"), "encrypted", "/dev/vda2 (LUKS)")
    refusal(lambda: imported(maker, built, disk, tmp_path / "out.tar", "/dev/vda2"), "encrypted (LUKS)")


@pytest.mark.full
def test_acls_and_user_attributes_are_kept(built: Built, maker: Maker, tmp_path: Path) -> None:
    """The archive that the appliance writes has them with their values."""
    disk = ext4(maker, tmp_path / "disk.raw", [*small_root(), text_entry("etc/kept", ""), text_entry("srv/file", "x")])
    maker.script(
        f"""
        mkdir /run/disk
        mount -t ext4 $disk /run/disk
        setxattr user.note 6869 /run/disk/srv/file
        setxattr system.posix_acl_access {ACL} /run/disk/etc/kept
        umount /run/disk
        """,
        disk=disk,
    )
    found = imported(maker, built, disk, tmp_path / "out.tar")
    assert found["srv/file"].attributes == ("user.note",)
    assert found["etc/kept"].attributes == ("system.posix_acl_access",)
    assert dict(found["srv/file"].values) == {"user.note": bytes.fromhex("6869")}


@pytest.mark.full
def test_the_journal_of_a_disk_that_was_not_unmounted_is_replayed(built: Built, maker: Maker, tmp_path: Path) -> None:
    """Only the journal has the last file: an import with the mount option noload would lack it."""
    disk = ext4(maker, tmp_path / "disk.raw", small_root(), journal=True)
    maker.script(
        """
        mkdir /run/disk
        mount -t ext4 $disk /run/disk
        echo late > /run/disk/etc/late
        sync
        """,
        disk=disk,
    )
    before = disk.read_bytes()
    shown = run([maker.tools / "dumpe2fs", "-h", disk])
    assert b"needs_recovery" in shown
    content = imported(maker, built, disk, tmp_path / "out.tar")["etc/late"].content
    assert content and content.read() == b"late\n"
    assert disk.read_bytes() == before


@pytest.mark.full
def test_a_file_system_of_fstab_that_the_image_lacks_is_refused(built: Built, maker: Maker, tmp_path: Path) -> None:
    """Here /var is on another disk. Control: with nofail in fstab the image is imported without it."""
    missing = "UUID=00000000-1111-2222-3333-444444444444"
    for options, passes in (("defaults", False), ("defaults,nofail", True)):
        entries = [*small_root(), text_entry("etc/fstab", f"{missing} /var ext4 {options} 0 2\n")]
        disk = ext4(maker, tmp_path / "disk.raw", entries)
        if passes:
            assert "etc/mark" in imported(maker, built, disk, tmp_path / "out.tar")
        else:
            refusal(lambda: imported(maker, built, disk, tmp_path / "out.tar"), missing, "/var", "nofail")  # noqa: B023


@pytest.mark.full
def test_our_own_disk_image_is_imported_unchanged(built: Built, maker: Maker, tmp_path: Path) -> None:
    found = imported(maker, built, built.build / "guest" / "sevsnptest.qcow2", tmp_path / "out.tar")
    original = read_tar(built.build / "guest" / "rootfs.tar")
    assert found.keys() == original.keys()
    assert [name for name in found if facts(found[name]) != facts(original[name])] == []


@pytest.mark.full
@pytest.mark.parametrize("kind", ["erofs", "squashfs"])
def test_a_compressed_read_only_file_system_is_imported(built: Built, maker: Maker, tmp_path: Path, kind: str) -> None:
    """The whole disk is one compressed file system, as live and appliance images have it."""
    tar, disk = tmp_path / "root.tar", tmp_path / "disk.raw"
    entries = [*small_root(), *special()]
    make_rootfs([Layer("test", entries)], tar)
    if kind == "erofs":
        run([maker.tools / "mkfs.erofs", "--quiet", "-zlz4", "--tar=f", disk, tar])
    elif program := shutil.which("sqfstar"):
        run([program, "-quiet", "-no-progress", disk], stdin=tar.read_bytes())
    else:
        pytest.skip("no sqfstar here, which makes a squashfs of a tar")
    found = imported(maker, built, disk, tmp_path / "out.tar")
    check_special(found)
    assert {entry.name for entry in entries} <= found.keys()


@pytest.mark.full
def test_adopting_an_image_twice_gives_the_same_bytes(built: Built, maker: Maker, tmp_path: Path) -> None:
    """So another person can make the same guest from the same image, and compare."""
    disk = ext4(maker, tmp_path / "disk.raw", [*small_root(), text_entry("usr/sbin/modprobe", "", 0o755)])
    digests = set()
    for number in range(2):
        imported(maker, built, disk, tmp_path / f"{number}.tar")
        output = tmp_path / f"adopted{number}.tar"
        make_image_rootfs(
            imported=tmp_path / f"{number}.tar",
            authorized_key=built.keys.user_public,
            no_shell=built.project / "guest-vm/files/etc/systemd/system/emergency.service.d/10-guest.conf",
            switched_off=built.project / "guest-vm/switched-off.yaml",
            host_channels=built.project / "guest-vm/host-channels.yaml",
            judged_programs=built.project / "guest-vm/judged-programs.yaml",
            modules=built.project / "initramfs/modules.yaml",
            version=built.build / "kernel" / "version",
            tools=maker.tools,
            output=output,
        )
        digests.add(sha256_file(output))
        release = (built.build / "kernel" / "version").read_text().strip()
        assert f"lib/modules/{release}/modules.dep.bin" in read_tar(output)
    assert len(digests) == 1


@pytest.mark.full
def test_a_mount_unit_of_the_image_is_folded_in(
    built: Built, maker: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control: a unit for a disk that the image does not have is left out, with a message."""
    text = "[Mount]\nWhat={}\nWhere=/{}\nType=ext4\n"
    devices = {"apps": "/dev/vda2", "gone": "/dev/disk/by-label/gone"}
    wants = "etc/systemd/system/local-fs.target.wants"
    entries = [
        *small_root(),
        *(
            text_entry(f"etc/systemd/system/{name}.mount", text.format(device, name))
            for name, device in devices.items()
        ),
        *(link_entry(f"{wants}/{name}.mount", f"../{name}.mount") for name in devices),
        directory_entry("apps"),
    ]
    root = ext4(maker, tmp_path / "root.img", entries)
    data = ext4(maker, tmp_path / "data.img", [text_entry("file", "mine\n")])
    found = imported(maker, built, mbr(tmp_path / "disk.raw", root, data), tmp_path / "out.tar")
    said = capsys.readouterr().out
    content = found["apps/file"].content
    assert content and content.read() == b"mine\n"
    assert "folded in: /apps from /dev/vda2" in said, said
    assert "left out: /gone (/dev/disk/by-label/gone is not in this image)" in said
