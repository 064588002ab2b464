# SPDX-License-Identifier: Apache-2.0
"""A changed bit of the encrypted disk ends the machine before any program goes on without the unreadable data.

The layout of a new volume follows from its file system, so a host finds the block of any file without the key; here the
shared guest is asked. Control: the guest whose init lacks the devices of root_guard.py boots without those files.
"""

import re
from pathlib import Path

import pytest

from sevsnp.e2e.guest import ssh, wait_for_login
from sevsnp.errors import UserError
from sevsnp.vm_config.config import VmConfig
from tests.adversary.test_luks_disk import ERROR, FORGET, VICTIM, block_numbers
from tests.conftest import Built
from tests.support.harness import BOOT_SECONDS
from tests.support.luks_arms import Check, without
from tests.support.luks_disk import BLOCK, TAG, Places, flip, swapped
from tests.support.luks_guests import Unlocked, booted, image_copy, luks_config, make_owner, put, unlock, wait_for_key

pytestmark = pytest.mark.boot

PANIC = "Kernel panic - not syncing: dm-verity device"
# What hardens create_new_vm's guest, a block each.
HARDENING = (
    "/etc/ssh/sshd_config.d/10-guest.conf",
    "/etc/sysctl.d/10-guest.conf",
    "/etc/systemd/journald.conf.d/10-guest.conf",
    "/etc/systemd/logind.conf.d/10-guest.conf",
    "/etc/systemd/system.conf.d/10-guest.conf",
    "/etc/systemd/system/emergency.service.d/10-guest.conf",
)
# QEMU's serial port doubles a character now and then when the machine is busy.
_TIME = re.compile(r"^\[+ *(\d+\.+\d+)\]+ ")


def flip_files(guest: Unlocked, disk: Path, *files: str) -> None:
    """Flip a bit in the first block of each file, as the shared ``guest`` has it, on the new volume ``disk``."""
    places = Places.of(disk)
    for file in files:
        (block,) = block_numbers(guest, file, 0)
        put(disk, *flip(disk, places.data(block) + 5))


def from_error(log: str) -> list[str]:
    """The console's lines from the first error on: the machine must have ended by the panic, and done nothing else."""
    lines = log[log.index(ERROR) :].splitlines()
    assert PANIC in log, log[-3000:]
    return [line.replace("\r", "") for line in lines if line.strip()]


def assert_ended(log: str) -> None:
    """Nothing but the kernel has said anything since the first error, and the kernel has panicked.

    Prints the seconds from one to the other by the guest's own clock.
    """
    before = log[: log.index(ERROR)].rpartition("\n")[2]
    first, *rest = from_error(log)
    assert [line for line in rest if not _TIME.match(line) or "systemd" in line or "sshd" in line] == []
    panic = next(line for line in rest if PANIC in line)
    seconds = [float(match[1]) for line in (before + first, panic) if (match := _TIME.match(line))]
    assert len(seconds) == 2
    print(f"from the error to the end: {seconds[1] - seconds[0]:.6f} s")


def boot_with(built: Built, config: VmConfig, disk: Path, place: Path) -> str:
    """The console of a guest that its owner gives the key, and that ends by itself."""
    owner = make_owner(built, place)
    with booted(built, config, disk, place) as running:
        wait_for_key(running)
        unlock(running, owner, place / "attested")
        return running.guest.wait_end()


@pytest.mark.ends_guest
def test_a_flipped_bit_under_the_running_guest_ends_it(luks_guest: Unlocked) -> None:
    """Control: the same read before the change."""
    (block,) = block_numbers(luks_guest, VICTIM, 100)
    read = f"sudo sh -c '{FORGET}'; sha256sum {VICTIM}"
    luks_guest.ssh(read)
    put(luks_guest.disk, *flip(luks_guest.disk, Places.of(luks_guest.disk).data(block) + 1234))
    with pytest.raises(UserError):
        luks_guest.ssh(read)
    assert_ended(luks_guest.running.guest.wait_end())


@pytest.mark.full
@pytest.mark.parametrize("files", [HARDENING, *(pytest.param((file,), id=file) for file in HARDENING)])
def test_a_flipped_bit_in_a_hardening_file_ends_the_guest(
    luks_guest: Unlocked, tmp_path: Path, files: tuple[str, ...]
) -> None:
    """It ends when that file is read, before any service starts that would use it."""
    built = luks_guest.running.built
    with image_copy(luks_config(built).launch.disks[0].path, tmp_path) as disk:
        flip_files(luks_guest, disk, *files)
        log = boot_with(built, luks_config(built), disk, tmp_path)
    assert "init: the root is open" in log
    assert "Started \x1b[0;1;39mssh.service" not in log
    assert_ended(log)


@pytest.mark.full
def test_control_the_same_bits_without_the_guard(luks_guest: Unlocked, tmp_path: Path) -> None:
    """The guest is attested, and treats the files as missing: its sshd accepts passwords."""
    built = luks_guest.running.built
    look = "sudo sshd -T | grep -i '^passwordauthentication '"
    assert luks_guest.ssh(look) == "passwordauthentication no\n"
    with image_copy(luks_config(built).launch.disks[0].path, tmp_path) as disk:
        flip_files(luks_guest, disk, *HARDENING)
        owner, config = make_owner(built, tmp_path), without(built, tmp_path / "arm", Check.GUARD)
        with booted(built, config, disk, tmp_path) as running:
            wait_for_key(running)
            unlock(running, owner, tmp_path / "attested")
            ssh_config = tmp_path / "attested" / "ssh_config"
            wait_for_login(ssh_config, BOOT_SECONDS)
            assert ssh(ssh_config, look) == "passwordauthentication yes\n"
            for file in HARDENING:
                assert "Input/output error" in ssh(ssh_config, f"sudo cat {file} 2>&1 || true"), file
            assert ERROR in running.guest.log() and PANIC not in running.guest.log()


def change(disk: Path, kind: str, one: int, two: int) -> list[tuple[int, bytes]]:
    """A change of the block ``one``, or of it and ``two``."""
    places = Places.of(disk)
    data, tags = (
        swapped(disk, place(one), place(two), size) for place, size in ((places.data, BLOCK), (places.tag, TAG))
    )
    return {
        "a bit of the data": [flip(disk, places.data(one) + 1234)],
        "a bit of the authentication": [flip(disk, places.tag(one))],
        "a bit of the IV": [flip(disk, places.tag(one) + 40)],
        "two blocks swapped": data,
        "two blocks swapped with their tags": [*data, *tags],
        "a block in the place of another": [data[0], tags[0]],
        "a block of zeros": [(places.data(one), bytes(BLOCK)), (places.tag(one), bytes(TAG))],
    }[kind]


@pytest.mark.full
@pytest.mark.parametrize(
    "kind",
    [
        "a bit of the data",
        "a bit of the authentication",
        "a bit of the IV",
        "two blocks swapped",
        "two blocks swapped with their tags",
        "a block in the place of another",
        "a block of zeros",
    ],
)
def test_a_change_while_the_guest_runs_ends_it(luks_guest: Unlocked, tmp_path: Path, kind: str) -> None:
    """Also for data that was read before and is no longer in memory. Control: the same read before the change."""
    built = luks_guest.running.built
    one, two = block_numbers(luks_guest, VICTIM, 100, 101)
    owner = make_owner(built, tmp_path)
    with (
        image_copy(luks_config(built).launch.disks[0].path, tmp_path) as disk,
        booted(built, luks_config(built), disk, tmp_path) as running,
    ):
        wait_for_key(running)
        unlock(running, owner, tmp_path / "attested")
        ssh_config = tmp_path / "attested" / "ssh_config"
        wait_for_login(ssh_config, BOOT_SECONDS)
        read = f"sudo sh -c '{FORGET}'; sha256sum {VICTIM}"
        assert ssh(ssh_config, read) == luks_guest.ssh(f"sha256sum {VICTIM}")
        for offset, data in change(disk, kind, one, two):
            put(disk, offset, data)
        with pytest.raises(UserError):
            ssh(ssh_config, read)
        log = running.guest.wait_end()
    assert_ended(log)
