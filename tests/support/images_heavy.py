# SPDX-License-Identifier: Apache-2.0
"""Makers of disk images that the appliance reads: file systems, partition tables, LVM, MD, what systemd mounts itself.

What needs a kernel to be made is made at once, by two scripts in the tests' own appliance.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sevsnp.archives.rootfs import EPOCH, directory_entry, link_entry, text_entry
from sevsnp.archives.tar import Entry
from sevsnp.images.filesystem import make_ext4
from sevsnp.system.command import run
from tests.support.disk_tables import SECTOR_4K, gpt_disk, member_superblock
from tests.support.foreign_disks import SCRIPT_SECONDS, Maker, empty, mbr, partitioned
from tests.support.image_contents import MIB, odd, rich, root, tar_of
from tests.support.image_table import Made

DATA = "0fc63daf-8483-4772-8e79-3d69d8477de4"
ROOT = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
HOME = "933ac7e1-2eb4-4f13-b844-0e14e2aef915"
SRV = "3b8f8425-20e0-4f3b-907f-1a25a76f98e8"
USR = "8484680c-9521-48c6-9c11-b0720656f69e"
AUTO = "usr/lib/systemd/system-generators/systemd-gpt-auto-generator"


@dataclass
class Ground:
    """Where images are made, and what a kernel has made there."""

    maker: Maker
    place: Path
    made: dict[str, Path] = field(default_factory=dict)

    def file(self, name: str) -> Path:
        return self.place / name

    def entries(self) -> list[Entry]:
        self.file("rich").mkdir(exist_ok=True)
        return rich(self.file("rich"))

    def ext4(self, name: str, entries: Sequence[Entry], size: int | None = None) -> Path:
        """A file system with all attributes."""
        tar = tar_of(entries, self.file(f"{name}.tar"))
        ordered = sorted(entries, key=lambda entry: entry.name)
        make_ext4(tar, self.file(name), tools=self.maker.tools, entries=ordered, size=size)
        return self.file(name)

    def mke2fs(self, name: str, entries: Sequence[Entry], *options: str, size: int = 32 * MIB) -> Path:
        """A file system with other options, without attributes."""
        tar = tar_of(entries, self.file(f"{name}.tar"))
        run(
            [self.maker.tools / "mke2fs", "-q", "-F", *options, "-d", tar, empty(self.file(name), size)],
            env={"MKE2FS_CONFIG": "/dev/null", "E2FSPROGS_FAKE_TIME": str(EPOCH)},
        )
        return self.file(name)


HeavyMaker = Callable[[Ground], Made]
HEAVY: dict[str, HeavyMaker] = {}


def heavy(case: str) -> Callable[[HeavyMaker], HeavyMaker]:
    def keep(maker: HeavyMaker) -> HeavyMaker:
        assert case not in HEAVY
        HEAVY[case] = maker
        return maker

    return keep


def _identity(number: int) -> str:
    return str(uuid.UUID(int=number))


def plain() -> list[Entry]:
    """A root without extended attributes."""
    return root(*(replace(entry, attributes=(), values=(), capability=b"") for entry in odd()))


# File systems on the whole disk, in every format.


def _formatted(form: str, *options: str) -> HeavyMaker:
    def make(ground: Ground) -> Made:
        entries = ground.entries()
        disk = ground.ext4("disk.raw", entries)
        return Made(str(disk if form == "raw" else ground.maker.convert(disk, form, *options)), entries)

    return make


for _name, _form, *_options in (
    ("ext4 on the whole disk", "raw"),
    ("qcow2", "qcow2"),
    ("qcow2 with zstd and extended L2", "qcow2", "-c", "-o", "compression_type=zstd"),
    ("streamOptimized VMDK", "vmdk", "-o", "subformat=streamOptimized"),
    ("VHDX", "vhdx"),
    ("VHD", "vpc"),
):
    HEAVY[_name] = _formatted(_form, *_options)


def _old(*options: str, size: int = 32 * MIB) -> HeavyMaker:
    return lambda ground: Made(str(ground.mke2fs("disk.raw", plain(), *options, size=size)), plain())


HEAVY["ext2 with blocks of 1 KiB"] = _old("-t", "ext2", "-b", "1024")
HEAVY["ext3 with small inodes"] = _old("-t", "ext3", "-I", "128")
HEAVY["ext4 with inline data, encryption and bigalloc"] = _old(
    "-t", "ext4", "-I", "256", "-O", "inline_data,encrypt,bigalloc,extent,metadata_csum,64bit,project,quota,extra_isize"
)
HEAVY["ext4 with blocks of 64 KiB"] = _old("-t", "ext4", "-b", "65536", "-O", "^has_journal", size=256 * MIB)


@heavy("erofs with lz4")
def _erofs(ground: Ground) -> Made:
    entries = ground.entries()
    tar = tar_of(entries, ground.file("root.tar"), holes=False)
    run([ground.maker.tools / "mkfs.erofs", "--quiet", "-zlz4", "--tar=f", ground.file("disk.raw"), tar])
    return Made(str(ground.file("disk.raw")), entries)


@heavy("erofs without compression")
def _plain_erofs(ground: Ground) -> Made:
    entries = ground.entries()
    tar = tar_of(entries, ground.file("root.tar"), holes=False)
    run([ground.maker.tools / "mkfs.erofs", "--quiet", "--tar=f", ground.file("disk.raw"), tar])
    return Made(str(ground.file("disk.raw")), entries)


# Partition tables.


def _on_gpt(ground: Ground, *parts: tuple[str, Path], sector: int = 512, flags: int = 0) -> Path:
    listed = [
        (kind, _identity(number), f"part{number}", path, flags if number > 1 else 0)
        for number, (kind, path) in enumerate(parts, 1)
    ]
    return gpt_disk(ground.file("disk.raw"), listed, sector)


@heavy("GPT in sectors of 4 KiB")
def _large_sectors(ground: Ground) -> Made:
    return Made(str(_on_gpt(ground, (DATA, ground.ext4("fs", plain())), sector=SECTOR_4K)), plain())


@heavy("GPT whose first table is lost")
def _lost_table(ground: Ground) -> Made:
    disk = _on_gpt(ground, (DATA, ground.ext4("fs", plain())))
    with disk.open("r+b") as stream:
        stream.write(bytes(34 * 512))
    return Made(str(disk), plain())


@heavy("DOS table with a data partition")
def _dos(ground: Ground) -> Made:
    data = ground.ext4("data", [directory_entry(""), text_entry("file", "x")])
    return Made(str(mbr(ground.file("disk.raw"), data, ground.ext4("fs", plain()))), plain())


@heavy("two roots, and no answer which")
def _two_roots(ground: Ground) -> Made:
    one, two = (ground.ext4(name, root(release=f"ID={name}\n")) for name in ("one", "two"))
    return Made(str(mbr(ground.file("disk.raw"), one, two)), [])


@heavy("two roots, and the second is asked for")
def _second_root(ground: Ground) -> Made:
    return replace(_two_roots(ground), entries=root(release="ID=two\n"), root_device="/dev/sda2")


@heavy("no root")
def _no_root(ground: Ground) -> Made:
    data = ground.ext4("data", [directory_entry(""), text_entry("file", "x")])
    return Made(str(mbr(ground.file("disk.raw"), data)), [])


# What is mounted in a root.

_MINE = [directory_entry(""), text_entry("file", "mine\n"), directory_entry("deep", 0o750, 5, 6)]


def _below(place: str) -> list[Entry]:
    """Each with its own file: the same content would be one file with several names."""
    return [
        text_entry(f"{place}/file", "mine\n") if entry.content else replace(entry, name=f"{place}/{entry.name}")
        for entry in _MINE
        if entry.name
    ]


@heavy("a mount unit of the image's own")
def _mount_unit(ground: Ground) -> Made:
    wants = "etc/systemd/system/local-fs.target.wants"
    text = "[Mount]\nWhat=/dev/disk/by-label/apps\nWhere=/opt\nType=ext4\n[Install]\nWantedBy=local-fs.target\n"
    entries = root(
        *(directory_entry(name) for name in ("etc/systemd", "etc/systemd/system", wants, "opt")),
        text_entry("etc/systemd/system/opt.mount", text),
        link_entry(f"{wants}/opt.mount", "../opt.mount"),
    )
    data = ground.mke2fs("data", _MINE, "-t", "ext4", "-L", "apps", size=8 * MIB)
    return Made(str(_on_gpt(ground, (DATA, ground.ext4("fs", entries)), (DATA, data))), [*entries, *_below("opt")])


@heavy("fstab names a directory that the root lacks")
def _no_directory(ground: Ground) -> Made:
    entries = root(text_entry("etc/fstab", "LABEL=deep /data/db ext4 defaults 0 2\n"))
    data = ground.mke2fs("data", _MINE, "-t", "ext4", "-L", "deep", size=8 * MIB)
    made = [directory_entry("data"), directory_entry("data/db")]
    disk = _on_gpt(ground, (DATA, ground.ext4("fs", entries)), (DATA, data))
    return Made(str(disk), [*entries, *made, *_below("data/db")])


@heavy("fstab names a disk that is elsewhere")
def _elsewhere(ground: Ground) -> Made:
    entries = root(text_entry("etc/fstab", "UUID=00000000-1111-2222-3333-444444444444 /var ext4 defaults 0 2\n"))
    return Made(str(ground.ext4("disk.raw", entries)), [])


def _discoverable(*more: Entry, flags: int = 0, folded: bool = True) -> HeavyMaker:
    def make(ground: Ground) -> Made:
        entries = root(*more)
        home, srv = (ground.ext4(name, _MINE) for name in ("home", "srv"))
        disk = _on_gpt(ground, (ROOT, ground.ext4("fs", entries)), (HOME, home), (SRV, srv), flags=flags)
        return Made(str(disk), [*entries, *(_below("home") + _below("srv") if folded else [])])

    return make


_GENERATOR = (
    *(directory_entry(name) for name in ("usr/lib", "usr/lib/systemd", AUTO.rpartition("/")[0])),
    text_entry(AUTO, "", 0o755),
)
HEAVY["partitions for /home and /srv, by their types"] = _discoverable(*_GENERATOR)
HEAVY["the same, where nothing mounts them"] = _discoverable(folded=False)
HEAVY["the same, with the flag no-auto"] = _discoverable(*_GENERATOR, flags=1 << 63, folded=False)


@heavy("a partition for /usr, by its type")
def _usr(ground: Ground) -> Made:
    entries = root()
    usr = [replace(entry, name=entry.name[4:]) for entry in entries if entry.name.startswith("usr/")]
    rest = [entry for entry in entries if not entry.name.startswith("usr/")]
    files = ground.ext4("usr.img", [directory_entry(""), *usr])
    return Made(str(_on_gpt(ground, (ROOT, ground.ext4("fs", rest)), (USR, files))), entries)


@heavy("a deployment of ostree")
def _ostree(ground: Ground) -> Made:
    deployed = "ostree/deploy/small/deploy/0123abcd.0"
    entries = [entry for entry in root() if entry.name != "home"]
    below = [replace(entry, name=f"{deployed}/{entry.name}") for entry in entries]
    above = [deployed.rsplit("/", number)[0] for number in range(5)][::-1]
    var = [directory_entry("ostree/deploy/small/var"), text_entry("ostree/deploy/small/var/kept", "x")]
    disk = ground.ext4("disk.raw", [*(directory_entry(name) for name in above), *below, *var])
    return Made(str(disk), [*entries, text_entry("var/kept", "x")])


# Arrays: a superblock is enough.


def _array(version: str, members: int) -> HeavyMaker:
    def make(ground: Ground) -> Made:
        array, parts = uuid.UUID(int=77), []
        files = ground.ext4("fs", plain()).read_bytes()
        for number in range(2):
            part = ground.file(f"member{number}")
            start = MIB if version in ("1.1", "1.2") else 0
            part.write_bytes(bytes(start) + files + bytes(MIB))
            member_superblock(part, version, array, name="host:7", number=number)
            parts.append((DATA, part))
        return Made(str(_on_gpt(ground, *parts[:members])), plain())

    return make


for _version in ("1.2", "1.0", "0.90"):
    HEAVY[f"MD RAID 1, version {_version}"] = _array(_version, 2)
HEAVY["MD RAID 1, one half"] = _array("1.2", 1)


# What only a kernel makes.


def make_file_systems(ground: Ground) -> None:
    tar = tar_of(ground.entries(), ground.file("rich.tar"))
    names = {"xxhash": 256, "blake2": 256, "subvolume": 256, "half": 256, "other": 256, "xfs": 320, "damaged": 320}
    disks = {name: empty(ground.file(f"kernel-{name}"), size * MIB) for name, size in names.items()}
    ground.maker.script(
        """
        put() { mkdir -p /run/at; mount -t $1 $2 /run/at; untar $tar /run/at; umount /run/at; }
        mkfs.btrfs -q --csum xxhash $xxhash
        put btrfs $xxhash
        mkfs.btrfs -q --csum blake2 $blake2
        put btrfs $blake2
        mkfs.btrfs -q $subvolume
        mkdir /run/top
        mount -t btrfs -o compress-force=zstd $subvolume /run/top
        btrfs -q subvolume create /run/top/.system
        untar $tar /run/top/.system
        btrfs -q subvolume snapshot -r /run/top/.system /run/top/before
        btrfs subvolume set-default /run/top/.system
        umount /run/top
        mkfs.btrfs -q -d raid1 -m raid1 $half $other
        put btrfs $half
        mkfs.xfs -q $xfs
        put xfs $xfs
        mkfs.xfs -q $damaged
        put xfs $damaged
        """,
        SCRIPT_SECONDS,
        tar=tar,
        **disks,
    )
    with disks["damaged"].open("r+b") as stream:
        stream.seek(512)
        stream.write(b"\xff" * (1 << 20))
    ground.made.update(disks)


def make_groups(ground: Ground) -> None:
    files = ground.ext4("volume.img", plain())
    size = files.stat().st_size
    disks = {name: empty(ground.file(f"kernel-{name}"), 160 * MIB) for name in ("linear", "thin", "kept", "exported")}
    disks["mirror"] = partitioned(ground.file("kernel-mirror"), 8 * MIB, 80 * MIB, 80 * MIB)
    disks |= {name: empty(ground.file(f"kernel-{name}"), 64 * MIB) for name in ("partial", "missing")}
    ground.maker.script(
        f"""
        lv() {{
            verb=$1
            shift
            lvm $verb -q -y --config 'activation{{monitoring=0}} global{{thin_check_executable=""}}' "$@"
        }}
        group() {{ name=$1; shift; for each; do lv pvcreate $each; done; lv vgcreate $name "$@"; }}
        fill() {{ dd if=$files of=/dev/$1/root bs=1M; }}
        group a-b $linear
        lv lvcreate -Zn -Wn -L {size}b -n root-1 a-b
        dd if=$files of=/dev/a-b/root-1 bs=1M
        group thin $thin
        lv lvcreate -Zn --type thin-pool -L 64M -n pool thin
        lv lvcreate -V {size}b --thinpool pool -n root thin
        fill thin
        group kept $kept
        lv lvcreate -Zn -Wn -L {size}b -n root kept
        fill kept
        lv lvcreate -s -L 16M -n before kept/root
        group exported $exported
        lv lvcreate -Zn -Wn -L {size}b -n root exported
        fill exported
        group mirror ${{mirror}}2 ${{mirror}}3
        lv lvcreate -Zn -Wn --type raid1 -m 1 --nosync -L {size}b -n root mirror
        fill mirror
        group partial $partial $missing
        lv lvcreate -Zn -Wn -i 2 -L {size}b -n root partial
        sync
        for each in a-b thin kept exported mirror partial; do lv vgchange -an $each; done
        lv vgexport exported
        """,
        SCRIPT_SECONDS,
        files=files,
        **disks,
    )
    ground.made.update(disks)


def _by_kernel(name: str, entries: Callable[[Ground], list[Entry]], root_device: str = "") -> HeavyMaker:
    return lambda ground: Made(str(ground.made[name]), entries(ground), root_device)


def _nothing(ground: Ground) -> list[Entry]:
    return []


for _case, _disk, _inside in (
    ("btrfs with xxhash", "xxhash", Ground.entries),
    ("btrfs with blake2", "blake2", Ground.entries),
    ("btrfs with zstd, a default subvolume and its snapshot", "subvolume", Ground.entries),
    ("one half of a btrfs RAID 1", "half", _nothing),
    ("xfs", "xfs", Ground.entries),
    ("a damaged xfs", "damaged", _nothing),
    ("LVM, with dashes in its names", "linear", lambda ground: plain()),
    ("LVM thin", "thin", lambda ground: plain()),
    ("LVM with a snapshot", "kept", lambda ground: plain()),
    ("LVM RAID 1", "mirror", lambda ground: plain()),
    ("an exported group", "exported", lambda ground: plain()),
    ("a group of which half is missing", "partial", _nothing),
):
    HEAVY[_case] = _by_kernel(_disk, _inside)
BY_KERNEL = {"btrfs": make_file_systems, "lvm": make_groups}
