# SPDX-License-Identifier: Apache-2.0
"""The verified root: every change of its disks ends the machine, and no console gives a prompt.

The control arm of every test here is the shared guest: the same files, untouched, boot to a login by ssh
(test_untouched_disks_boot); what the host types on the console is the same there.
"""

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.vm_config.config import Disk, Launch
from tests.conftest import Built
from tests.support.hands import Hands, hands_on, prompts, sockets
from tests.support.harness import BOOT_SECONDS, Guest, boot, flipped, with_disk
from tests.support.shared_guests import Attested
from tests.support.waiting import wait_until

pytestmark = pytest.mark.boot

BLOCK = 4096
DIGESTS = BLOCK // 32  # of a hash block
SYSTEMD = "/usr/lib/systemd/systemd"
# Console lines of a machine that ends on its own: the kernel's panic, or our init's.
PANIC = "Kernel panic - not syncing: dm-verity device"
FATAL = "init: FATAL"


@contextlib.contextmanager
def hosted(launch: Launch, built: Built, state: Path, *extra: str) -> Iterator[tuple[Guest, Hands]]:
    with (
        sockets() as where,
        boot(launch, built.qemu, state, extra=(*where.arguments, *extra)) as guest,
        hands_on(where) as hands,
    ):
        yield guest, hands


def watch_end(guest: Guest, hands: Hands, seconds: float = BOOT_SECONDS) -> str:
    """Type on the console until QEMU has ended by itself; the console log, in which nothing may answer."""

    def ended() -> bool:
        if guest.process.poll() is None:
            hands.type()
            time.sleep(0.5)
        return guest.process.poll() is not None

    wait_until(ended, what=lambda: f"the machine still runs:\n{guest.log()[-3000:]}", net=seconds)
    log = guest.wait_end()
    assert guest.process.returncode == 0, guest.options.messages.read_text()[-2000:]
    assert prompts(log) == []
    assert "init: switching" not in log or PANIC in log
    return log


def ends(launch: Launch, built: Built, state: Path, *extra: str) -> str:
    with hosted(launch, built, state, *extra) as (guest, hands):
        return watch_end(guest, hands)


def disk(launch: Launch, role: str) -> Disk:
    return next(one for one in launch.disks if one.role == role)


def without(launch: Launch, role: str) -> Launch:
    return replace(launch, disks=tuple(one for one in launch.disks if one.role != role))


def attached(role: str, node: dict[str, object]) -> tuple[str, ...]:
    """QEMU's options for a virtio disk of the host's own making, with the serial number ``role``."""
    drive = {"driver": "raw", "node-name": "hostile", "read-only": True, "file": node}
    device = f"virtio-blk-pci,drive=hostile,serial={role},disable-legacy=on,iommu_platform=on"
    return ("-blockdev", json.dumps(drive), "-device", device)


@pytest.fixture(scope="module")
def systemd_block(built: Built) -> int:
    """The number of the first block of the program that the root starts as its init."""
    image = disk(built.config("emulated").launch, "verity-data").path
    tool = built.build / "snp-release" / "bin" / "debugfs"
    shown = subprocess.run(
        [str(tool), "-R", f"blocks {SYSTEMD}", str(image)], capture_output=True, text=True, check=True, timeout=60
    )
    found = re.search(r"^(\d+) ", shown.stdout, re.MULTILINE)
    assert found, shown
    block = int(found[1])
    with image.open("rb") as stream:
        stream.seek(block * BLOCK)
        assert stream.read(4) == b"\x7fELF"
    return block


def leaf_block(launch: Launch, block: int) -> int:
    """The number of the hash block that holds the digest of a data block; the tree's levels lie from the root down."""
    blocks = disk(launch, "verity-data").size // BLOCK
    levels = []
    while blocks > 1:
        blocks = -(-blocks // DIGESTS)
        levels.append(blocks)
    assert sum(levels) * BLOCK == disk(launch, "verity-hash").size
    return sum(levels[1:]) + block // DIGESTS


@pytest.fixture(scope="module")
def lonely(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Guest, Hands]]:
    """A guest without its hash tree, started first: it waits half a minute for a disk that does not come."""
    launch = without(built.config("emulated").launch, "verity-hash")
    with hosted(launch, built, tmp_path_factory.mktemp("lonely")) as both:
        yield both


@pytest.mark.full
@pytest.mark.usefixtures("lonely")
def test_a_changed_byte_in_the_superblock(built: Built, tmp_path: Path) -> None:
    launch = built.config("emulated").launch
    path = flipped(disk(launch, "verity-data"), tmp_path, 1024 + 0x78)  # in the volume's name
    log = ends(with_disk(launch, "verity-data", path), built, tmp_path / "state")
    assert PANIC in log
    assert "init: switching" not in log


def test_a_changed_byte_in_a_program_of_the_root(built: Built, tmp_path: Path, systemd_block: int) -> None:
    launch = built.config("emulated").launch
    path = flipped(disk(launch, "verity-data"), tmp_path, systemd_block * BLOCK + 0x200)
    log = ends(with_disk(launch, "verity-data", path), built, tmp_path / "state")
    assert PANIC in log
    assert "init: switching" in log  # so it was this read that ended the machine


@pytest.mark.full
def test_a_changed_byte_in_the_root_of_the_hash_tree(built: Built, tmp_path: Path) -> None:
    launch = built.config("emulated").launch
    path = flipped(disk(launch, "verity-hash"), tmp_path, 0)
    log = ends(with_disk(launch, "verity-hash", path), built, tmp_path / "state")
    assert PANIC in log
    assert "init: switching" not in log


@pytest.mark.full
def test_a_changed_byte_in_a_leaf_of_the_hash_tree(built: Built, tmp_path: Path, systemd_block: int) -> None:
    launch = built.config("emulated").launch
    offset = leaf_block(launch, systemd_block) * BLOCK + systemd_block % DIGESTS * 32
    path = flipped(disk(launch, "verity-hash"), tmp_path, offset)
    assert PANIC in ends(with_disk(launch, "verity-hash", path), built, tmp_path / "state")


@pytest.mark.full
@pytest.mark.parametrize("role", ["verity-data", "verity-hash"])
def test_an_io_error(built: Built, tmp_path: Path, systemd_block: int, role: str) -> None:
    """A host that cannot change a file could still try to make it vanish."""
    launch = built.config("emulated").launch
    block = systemd_block if role == "verity-data" else leaf_block(launch, systemd_block)
    errors = [
        {"event": "none", "iotype": "read", "errno": 5, "sector": block * 8 + sector, "immediately": True}
        for sector in range(8)
    ]
    image = {"driver": "file", "filename": str(disk(launch, role).path)}
    node: dict[str, object] = {"driver": "blkdebug", "image": image, "inject-error": errors}
    log = ends(without(launch, role), built, tmp_path / "state", *attached(role, node))
    assert "I/O error" in log
    assert PANIC in log


@pytest.mark.full
def test_swapped_disks(built: Built, tmp_path: Path) -> None:
    launch = built.config("emulated").launch
    data, tree = disk(launch, "verity-data"), disk(launch, "verity-hash")
    swapped = with_disk(with_disk(launch, "verity-data", tree.path), "verity-hash", data.path)
    log = ends(swapped, built, tmp_path / "state")
    assert FATAL in log or PANIC in log
    assert "init: switching" not in log


@pytest.mark.full
def test_a_third_disk_with_a_doubled_serial(built: Built, tmp_path: Path) -> None:
    launch = built.config("emulated").launch
    node: dict[str, object] = {"driver": "file", "filename": str(disk(launch, "verity-data").path)}
    log = ends(launch, built, tmp_path / "state", *attached("verity-data", node))
    assert f"{FATAL}: found 2 disks with the serial verity-data, expected one" in log


@pytest.mark.full
def test_a_missing_disk(lonely: tuple[Guest, Hands]) -> None:
    log = watch_end(*lonely)
    assert f"{FATAL}: no disk with the serial verity-hash" in log


def test_untouched_disks_boot(guest: Attested) -> None:
    """Control for all tests above. This console does not answer either, neither to keys nor to a SysRq on the line."""
    running = guest.running
    assert guest.ssh("echo here").strip() == "here"
    before = guest.ssh("cat /proc/sys/kernel/random/boot_id")
    running.hands.type()
    for key in (b"h", b"t", b"b"):  # help, tasks, reboot at once
        running.hands.press_sysrq(key)
    for _ in range(8):
        running.hands.press("ctrl", "alt", "delete")
    for _ in range(5):
        running.hands.type(b"\r\n")
        assert running.guest.process.poll() is None
        assert prompts(running.guest.log()) == []
        time.sleep(1)
    assert "sysrq: HELP" not in running.guest.log()
    assert guest.ssh("cat /proc/sys/kernel/random/boot_id") == before
    assert guest.ssh("who").strip() == ""
