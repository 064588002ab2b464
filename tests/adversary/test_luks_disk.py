# SPDX-License-Identifier: Apache-2.0
"""A host changes the disk of the encrypted root: the guest ends, reads no other data, and makes no new volume.

Single bits and blocks are in test_luks_flips. That the same flips do give other data where there are no tags, and what
becomes of changed superblocks, is in test_luks_sweep.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sevsnp.e2e.guest import wait_for_login
from sevsnp.e2e.luks import look_at_root
from sevsnp.errors import UserError
from tests.adversary.test_tamper_root import FATAL
from tests.conftest import Built
from tests.support.harness import BOOT_SECONDS
from tests.support.luks_disk import (
    BLOCK,
    DIRTY_BITMAP,
    RECALCULATING,
    SUPERBLOCK,
    TAG,
    Places,
    changed,
    field,
    flip,
    packed,
)
from tests.support.luks_guests import (
    Owner,
    Unlocked,
    booted,
    image_copy,
    luks_config,
    make_owner,
    put,
    read_disk,
    unlock,
    wait_for_key,
)

pytestmark = pytest.mark.boot

# A program that nothing runs meanwhile: it came with the image.
VICTIM = "/usr/bin/perl"
ERROR = "INTEGRITY AEAD ERROR"

# FIBMAP: the number of a file's block in the file system, which is that in the mapping.
_BLOCKS = """\
import fcntl, struct, sys
with open(sys.argv[1], "rb") as file:
    for number in sys.argv[2:]:
        print(*struct.unpack("i", fcntl.ioctl(file, 1, struct.pack("i", int(number)))))
"""


def block_numbers(guest: Unlocked, file: str, *numbers: int) -> list[int]:
    """Where these blocks of a file are in the mapping."""
    words = " ".join(str(number) for number in numbers)
    return [int(word) for word in guest.ssh(f"sudo python3 - {file} {words} <<'END'\n{_BLOCKS}END").split()]


# dm-integrity keeps tags that it has read, the last 256 KiB of them for ever.
FORGET = "echo 0 >/sys/module/dm_bufio/parameters/retain_bytes; echo 3 >/proc/sys/vm/drop_caches; sleep 0.5"


def read_blocks(guest: Unlocked, file: str, number: int, count: int) -> str:
    """The SHA-256 of blocks of a file as the disk has them now, past all caches, or what is wrong."""
    options = f"iflag=direct bs={count * BLOCK} skip={number // count} count=1 status=none"
    read = f"dd if={file} {options} of=/dev/shm/read 2>&1 && sha256sum </dev/shm/read"
    return guest.ssh(f"sudo sh -c '{FORGET}'; {read} || true").strip()


@pytest.mark.full
def test_known_limit_an_old_sector_is_read_as_if_it_were_new(luks_guest: Unlocked) -> None:
    """dm-integrity keeps no history: an old block is valid, if it is put back together with its old tag."""
    disk, places, file = luks_guest.disk, Places.of(luks_guest.disk), "/var/tmp/replayed"

    def write(text: str) -> int:
        luks_guest.ssh(f"yes '{text}' | head -c {BLOCK} | dd of={file} conv=notrunc,fsync status=none")
        # What was written is read from dm-integrity's journal until that is half full (1/256 of the disk).
        filler = "/var/tmp/filler"
        luks_guest.ssh(f"head -c 8M /dev/zero | sudo dd of={filler} bs=1M conv=fsync status=none; sudo rm {filler}")
        (number,) = block_numbers(luks_guest, file, 0)
        return number

    block = write("old")
    old = [
        (offset, read_disk(disk, offset, size))
        for offset, size in ((places.data(block), BLOCK), (places.tag(block), TAG))
    ]
    assert write("new") == block
    new, was = (hashlib.sha256(f"{text}\n".encode() * (BLOCK // 4)).hexdigest() for text in ("new", "old"))
    assert read_blocks(luks_guest, file, 0, 1) == f"{new}  -"
    with changed(disk, *old):
        assert read_blocks(luks_guest, file, 0, 1) == f"{was}  -"
    # Control: without its tag it is none, which ends the machine, as test_luks_flips has it.
    assert read_blocks(luks_guest, file, 0, 1) == f"{new}  -"


def no_superblock(image: Path) -> tuple[int, bytes]:
    return SUPERBLOCK, bytes(BLOCK)


def shorter_journal(image: Path) -> tuple[int, bytes]:
    return packed("journal_sections", field(image, "journal_sections") - 1)


def recalculating(image: Path) -> tuple[int, bytes]:
    return packed("flags", field(image, "flags") | RECALCULATING)


def bitmap(image: Path, says: int) -> tuple[int, bytes]:
    """The superblock's flag that a bitmap lies in the journal's place, and one: 64 times 16 MiB of the disk."""
    superblock = bytearray(read_disk(image, SUPERBLOCK, BLOCK))
    superblock[24] |= DIRTY_BITMAP
    return SUPERBLOCK, bytes(superblock) + bytes([says]) * 8


def dirty_bitmap(image: Path) -> tuple[int, bytes]:
    """The kernel would make those tags anew, which it cannot: it oopses, and an oops is a panic."""
    return bitmap(image, 0xFF)


def a_bit_of_the_file_system(image: Path) -> tuple[int, bytes]:
    """In ext4's superblock, the mapping's first block."""
    return flip(image, Places.of(image).data(0) + 1024 + 0x78)


@pytest.mark.full
@pytest.mark.parametrize(
    "change", [no_superblock, shorter_journal, recalculating, dirty_bitmap, a_bit_of_the_file_system]
)
def test_a_disk_that_is_changed_before_the_boot_ends_the_guest(
    built: Built, tmp_path: Path, change: Callable[[Path], tuple[int, bytes]]
) -> None:
    """The guest makes nothing anew: with superblock and journal put back, the same disk opens.

    Both are put back as a whole, because the kernel changes the superblock when it opens a disk.
    """
    owner, genuine = make_owner(built, tmp_path), luks_config(built).launch.disks[0].path
    with image_copy(genuine, tmp_path) as disk:
        place, data = change(disk)
        kept = read_disk(disk, SUPERBLOCK, Places.of(disk).first - SUPERBLOCK)
        before = put(disk, place, data)
        log = refused(built, disk, owner, tmp_path / "first")
        assert "init: the root is open" not in log
        if change is no_superblock:
            assert read_disk(disk, place, len(data)) == data
        put(disk, place, before)
        put(disk, SUPERBLOCK, kept)
        with booted(built, luks_config(built), disk, tmp_path / "second") as running:
            wait_for_key(running)
            unlock(running, owner, tmp_path / "second" / "attested")
            assert "init: the root is open, generation 1" in running.guest.wait_for("init: switching")


@pytest.mark.full
def test_a_bitmap_without_dirty_regions_does_not_end_the_guest(built: Built, tmp_path: Path) -> None:
    """The kernel drops the journal. After a clean shutdown it is empty, else it has the last writes: the host could
    as well have put back the sectors before them. Control: the dirty bitmap above, which ends the guest."""
    owner, genuine = make_owner(built, tmp_path), luks_config(built).launch.disks[0].path
    with image_copy(genuine, tmp_path) as disk:
        put(disk, *bitmap(disk, 0))
        with booted(built, luks_config(built), disk, tmp_path) as running:
            wait_for_key(running)
            unlock(running, owner, tmp_path / "attested")
            wait_for_login(tmp_path / "attested" / "ssh_config", BOOT_SECONDS)
            assert look_at_root(tmp_path / "attested" / "ssh_config") == {"root_encrypted": True, "integrity": True}


@pytest.mark.full
def test_a_truncated_disk_ends_the_guest(built: Built, tmp_path: Path) -> None:
    owner, genuine = make_owner(built, tmp_path), luks_config(built).launch.disks[0].path
    with image_copy(genuine, tmp_path) as disk:
        os.truncate(disk, disk.stat().st_size // 2)
        size = disk.stat().st_size
        log = refused(built, disk, owner, tmp_path)
        assert "init: the root is open" not in log
        assert disk.stat().st_size == size


@pytest.mark.full
def test_a_changed_bit_in_the_first_program_ends_the_guest(luks_guest: Unlocked, tmp_path: Path) -> None:
    """The root opens, and the program cannot be read. Control: the shared guest, which started from that block."""
    built = luks_guest.running.built
    (block,) = block_numbers(luks_guest, "/usr/lib/systemd/systemd", 0)
    owner, genuine = make_owner(built, tmp_path), luks_config(built).launch.disks[0].path
    with image_copy(genuine, tmp_path) as disk:
        put(disk, *flip(disk, Places.of(disk).data(block) + 0x200))
        with booted(built, luks_config(built), disk, tmp_path) as running:
            wait_for_key(running)
            unlock(running, owner, tmp_path / "attested")
            log = running.guest.wait_end()
    assert "init: the root is open" in log
    assert ERROR in log
    assert "Kernel panic - not syncing: dm-verity device" in log


def refused(built: Built, disk: Path, owner: Owner, place: Path) -> str:
    """The console of a guest that its owner hands the key, and that ends over its disk."""
    with booted(built, luks_config(built), disk, place) as running:
        wait_for_key(running)
        ends = "refused the key release, and powers off|closed the connection"
        with pytest.raises(UserError, match=rf"the guest ({ends})"):
            unlock(running, owner, place / "attested")
        log = running.guest.wait_end()
    assert FATAL in log or "Kernel panic - not syncing" in log
    return log
