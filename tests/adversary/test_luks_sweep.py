# SPDX-License-Identifier: Apache-2.0
"""Every kind of change on a volume's disk, one after another, by the programs and the kernel that the guest has.

One appliance opens the genuine image with each of them. What the guest would do is read off: it stops where the volume
does not open and where the tables are not the measured ones, and gets an error where a block cannot be read.
"""

import random
from pathlib import Path

import pytest

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import text_entry
from sevsnp.images.initramfs import join_layers
from sevsnp.qemu.appliance import Appliance, ApplianceDisk, run_job
from tests.conftest import PROJECT, Built
from tests.support.luks_disk import BLOCK, DIRTY_BITMAP, FIELDS, SUPERBLOCK, TAG, Places, field, flip, packed, swapped
from tests.support.luks_guests import image_copy, luks_config, make_owner, read_disk

pytestmark = [pytest.mark.boot, pytest.mark.full]

JOB = PROJECT / "tests" / "support" / "luks_job.py"
SECTOR = 512
READ = (0, 1, 200, 201, 4095, 4096, 9000)
Changes = dict[str, list[tuple[int, bytes]]]


def appliance(built: Built, directory: Path) -> Appliance:
    """The appliance with the job beside those that it has, and with what the guest puts over its root."""
    layer, initrd = directory / "job.cpio", directory / "initramfs"
    guard = (built.project / "initramfs" / "root_guard.py").read_bytes()
    entries = [
        text_entry("usr/lib/sevsnp/appliance/luks_job.py", JOB.read_bytes()),
        text_entry("usr/lib/sevsnp/root_guard.py", guard),
    ]
    with layer.open("wb") as stream:
        write_cpio(with_parents(entries), stream)
    join_layers(layers=[built.build / "initramfs.appliance.cpio.zst", layer], output=initrd)
    return Appliance(built.qemu, built.build / "kernel" / "vmlinuz", initrd, built.build / "run" / "platform.json")


def data_changes(image: Path) -> Changes:
    """Changes of blocks and of their tags."""
    places = Places.of(image)
    one, two, far = places.data(200), places.data(201), places.data(9000)
    changes = {f"bit {bit} of a block": [flip_bit(image, one, bit)] for bit in (0, 7, 12_345, BLOCK * 8 - 1)} | {
        f"bit {bit} of a tag": [flip_bit(image, places.tag(200), bit)] for bit in (0, 255, 256, TAG * 8 - 1)
    }
    return changes | {
        "two neighbours swapped": swapped(image, one, two, BLOCK),
        "two swapped with their tags": [
            *swapped(image, one, two, BLOCK),
            *swapped(image, places.tag(200), places.tag(201), TAG),
        ],
        "two far ones swapped with their tags": [
            *swapped(image, one, far, BLOCK),
            *swapped(image, places.tag(200), places.tag(9000), TAG),
        ],
        "half a block of zeros": [(one, bytes(BLOCK // 2))],
        "a run of tags of zeros": [(places.tag(0), bytes(BLOCK * TAG))],
        "the last tag of a run": [flip(image, places.tag(4095))],
    }


def flip_bit(image: Path, offset: int, bit: int) -> tuple[int, bytes]:
    place = offset + bit // 8
    return place, bytes([read_disk(image, place, 1)[0] ^ 1 << bit % 8])


def superblock_changes(image: Path) -> Changes:
    """All of it gone, another one's magic, every field one more and one less, every flag."""
    changes: Changes = {
        "superblock zeroed": [(SUPERBLOCK, bytes(BLOCK))],
        "superblock's first sector zeroed": [(SUPERBLOCK, bytes(SECTOR))],
        "superblock and journal zeroed": [(SUPERBLOCK, bytes(Places.of(image).first - SUPERBLOCK))],
        "superblock's magic": [flip(image, SUPERBLOCK)],
        "superblock's salt": [flip(image, SUPERBLOCK + 48)],
        "journal zeroed": [(SUPERBLOCK + BLOCK, bytes(Places.of(image).first - SUPERBLOCK - BLOCK))],
        "journal of ones": [(SUPERBLOCK + BLOCK, b"\xff" * (Places.of(image).first - SUPERBLOCK - BLOCK))],
    }
    for name in FIELDS:
        value = field(image, name)
        others = [value + 1, *([value - 1] if value else [])]
        changes |= {f"{name} {other - value:+d}": [packed(name, other)] for other in others}
    flags = field(image, "flags")
    # That of a dirty bitmap is an oops in dm-integrity's resume, after which nothing works here: see test_luks_disk.
    bits = [1 << bit for bit in range(7) if 1 << bit != DIRTY_BITMAP]
    return changes | {f"flag {bit:#x}": [packed("flags", flags ^ bit)] for bit in bits}


def shortened(offset: int, data: bytes) -> tuple[int, str, int]:
    """A change as the job takes it: offset, bytes in hex, and how often these."""
    return (offset, data[:1].hex(), len(data)) if data == data[:1] * len(data) else (offset, data.hex(), 1)


def test_no_change_gives_other_data(built: Built, tmp_path: Path) -> None:
    """All data that can be read is unchanged. Control: a volume without tags gives other data for one bit."""
    owner, genuine = make_owner(built, tmp_path), luks_config(built).launch.disks[0].path
    with image_copy(genuine, tmp_path) as image:
        on_data, on_superblock = data_changes(image), superblock_changes(image)
        cases = {
            name: [shortened(*change) for change in changes] for name, changes in (on_data | on_superblock).items()
        }
        last = field(image, "provided_data_sectors") * SECTOR // BLOCK - 1
        plain = tmp_path / "plain.img"
        with plain.open("wb") as stream:
            stream.truncate(16 << 20)
        answer = run_job(
            appliance(built, tmp_path),
            "luks_job",
            {"cases": cases, "blocks": [*READ, last], "kept": [SUPERBLOCK, Places.of(image).first - SUPERBLOCK]},
            disks=[ApplianceDisk("luks", image), ApplianceDisk("plain", plain)],
            secret=owner.key,
            seconds=1200,
        )
    found = answer["cases"]
    print(*(f"{name}: {came}" for name, came in found.items()), sep="\n")
    assert found.pop("nothing") == found.pop("nothing, at the end") == "same"
    assert [name for name, came in found.items() if came == "ALTERED"] == []
    assert {name: found[name] for name in on_data} == dict.fromkeys(on_data, "errors")
    # A superblock of zeros is one that the kernel would make anew, if it were asked.
    blank = [came for name, came in found.items() if name.startswith("superblock") and name.endswith("zeroed")]
    assert [came.partition(":")[0] for came in blank] == ["refused"] * 3
    assert answer["plain"] == "ALTERED"


def random_flips(image: Path, count: int) -> list[tuple[int, str, list[int]]]:
    """As many bits of the disk behind the journal, each with blocks to read: the first, the last, and its own.

    The same ones at every run.
    """
    chosen = random.Random(5)  # not a secret: a test that fails can be repeated
    places, last = Places.of(image), field(image, "provided_data_sectors") * SECTOR // BLOCK - 1
    cases: list[tuple[int, str, list[int]]] = []
    while len(cases) < count:
        block = chosen.randrange(last + 1)
        # By turns, or nearly all were data: a tag is a hundredth of its block.
        place, size = (places.tag(block), TAG) if len(cases) % 4 == 0 else (places.data(block), BLOCK)
        offset, data = flip_bit(image, place, chosen.randrange(size * 8))
        cases.append((offset, data.hex(), [0, last, block]))
    return cases


def test_random_flips_end_the_machine(built: Built, tmp_path: Path) -> None:
    """For each of 200, reading the block reaches the trap. Control: without the guard it is an ordinary read error."""
    owner, genuine = make_owner(built, tmp_path), luks_config(built).launch.disks[0].path
    with image_copy(genuine, tmp_path) as image:
        cases = random_flips(image, 200)
        answer = run_job(
            appliance(built, tmp_path),
            "luks_job",
            {"flips": cases, "kept": [SUPERBLOCK, Places.of(image).first - SUPERBLOCK]},
            disks=[ApplianceDisk("luks", image)],
            secret=owner.key,
            seconds=3000,
        )
    assert answer["guarded"] == answer["bare"] == ["ends"] * len(cases)
