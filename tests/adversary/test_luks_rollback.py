# SPDX-License-Identifier: Apache-2.0
"""An older copy of the whole disk: refused back to the last boot that the owner recorded, and no further.

What stays open is shown by the tests whose names begin with test_known_limit; a single old sector is in test_luks_disk.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.e2e.guest import wait_for_login
from tests.adversary.test_tamper_root import FATAL
from tests.conftest import Built
from tests.support.harness import BOOT_SECONDS
from tests.support.luks_arms import Check, without
from tests.support.luks_guests import (
    Unlocked,
    booted,
    image_copy,
    luks_config,
    make_owner,
    unlock,
    wait_for_key,
)
from tests.support.shared_guests import Attested, refusal

pytestmark = pytest.mark.boot

OLD = "the disk is an old copy: its generation is 0, the owner's record says 1"


@pytest.fixture
def unbooted(built: Built, tmp_path: Path) -> Iterator[Path]:
    """The disk as it was before its first boot."""
    with image_copy(luks_config(built).launch.disks[0].path, tmp_path) as copy:
        yield copy


@pytest.mark.full
def test_a_disk_from_before_the_last_recorded_boot_is_refused(built: Built, tmp_path: Path, unbooted: Path) -> None:
    """The owner's record has one boot, the disk none. Control: with none recorded the disk boots (luks_guest)."""
    owner = make_owner(built, tmp_path, generation=1)
    with booted(built, luks_config(built), unbooted, tmp_path) as running:
        wait_for_key(running)
        refusal(
            lambda: unlock(running, owner, tmp_path / "attested"),
            "refused the key release, and powers off",
            OLD,
        )
        log = running.guest.wait_end()
    assert f"{FATAL}: {OLD}: powering off" in log
    assert "init: switching" not in log
    assert owner.record.generation == 1
    assert not (tmp_path / "attested" / "known_hosts").exists()


@pytest.mark.full
def test_control_a_guest_without_the_comparison_boots_the_old_disk(
    built: Built, tmp_path: Path, unbooted: Path
) -> None:
    """Only the owner's own comparison of the answer is left, and by then the key has been sent."""
    owner = make_owner(built, tmp_path, generation=1)
    with booted(built, without(built, tmp_path, Check.GENERATION), unbooted, tmp_path) as running:
        wait_for_key(running)
        refusal(lambda: unlock(running, owner, tmp_path / "attested"), "generation: found 1, expected a number above 1")
        assert "init: switching to the encrypted root" in running.guest.wait_for("init: switching")


@pytest.mark.full
def test_known_limit_a_disk_as_of_the_last_recorded_boot(luks_guest: Unlocked, tmp_path: Path) -> None:
    """Data written after the copy is lost without an error. This boot is recorded, so older copies are refused."""
    built, hands = luks_guest.running.built, luks_guest.running.hands
    assert luks_guest.owner.record.generation == 1
    luks_guest.ssh("sync")
    with contextlib.ExitStack() as stack:
        with hands.paused():
            old = stack.enter_context(image_copy(luks_guest.disk, tmp_path))
        luks_guest.ssh("echo late >/var/tmp/late; sync")
        owner = make_owner(built, tmp_path, generation=1)
        running = stack.enter_context(booted(built, luks_config(built), old, tmp_path))
        wait_for_key(running)
        unlock(running, owner, tmp_path / "attested")
        wait_for_login(tmp_path / "attested" / "ssh_config", BOOT_SECONDS)
        assert Attested(running, tmp_path / "attested").ssh("test -e /var/tmp/late || echo gone") == "gone\n"
        assert owner.record.generation == 2
    assert luks_guest.ssh("cat /var/tmp/late; rm /var/tmp/late") == "late\n"
