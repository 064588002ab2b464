# SPDX-License-Identifier: Apache-2.0
"""Measured boot: a file changed after the VM config was made never starts, or gives another launch digest."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.attestation.appraisal import Refused
from sevsnp.measurement.launch_digest import KernelHashes
from sevsnp.owner.attestation import attest
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import File, Launch, VmConfig
from tests.conftest import Built
from tests.support.firmware_machine import NoHashes
from tests.support.hands import hands_on, sockets, wait_dead_loop
from tests.support.harness import boot, flipped
from tests.support.replacing import replaced_once
from tests.support.shared_guests import Attested, Running

pytestmark = pytest.mark.boot

# What the kernel's own first code says, and our init; the firmware says neither.
STARTED = ("EFI stub", "init:")


def changed_kernel(launch: Launch, directory: Path) -> Launch:
    # The kernel in the stage, from its setup header on, which points (at 0x20e, less 0x200) to the version as text.
    # Only file(1) reads that.
    image = launch.kernel.path.read_bytes()
    kernel = image.rindex(b"HdrS") - 0x202
    version = kernel + int.from_bytes(image[kernel + 0x20E : kernel + 0x210], "little") + 0x200
    assert image[version : version + 2] == b"6."
    path = flipped(launch.kernel, directory, version)
    return replace(launch, kernel=File(path, sha256_file(path)))


def changed_initrd(launch: Launch, directory: Path) -> Launch:
    path = flipped(launch.initrd, directory, -100)
    return replace(launch, initrd=File(path, sha256_file(path)))


def changed_cmdline(launch: Launch, directory: Path) -> Launch:
    path = directory / "changed-cmdline"
    path.write_text(replaced_once(launch.cmdline.path.read_text(), "loglevel=4", "loglevel=5"))
    return replace(launch, cmdline=File(path, sha256_file(path)))


@pytest.mark.parametrize(
    "change",
    [changed_initrd, *(pytest.param(each, marks=pytest.mark.full) for each in (changed_kernel, changed_cmdline))],
)
def test_a_file_with_one_changed_byte_is_never_started(
    built: Built, tmp_path: Path, change: Callable[[Launch, Path], Launch]
) -> None:
    """With the hashes of the VM config the firmware turns in a dead loop. Control: the next test, all three at once."""
    launch = built.config("emulated").launch
    table = KernelHashes.of(launch)
    with (
        sockets() as where,
        boot(change(launch, tmp_path), built.qemu, tmp_path / "state", hashes=table, extra=where.arguments) as guest,
        hands_on(where) as hands,
    ):
        wait_dead_loop(hands, guest.process)
        hands.type()
        wait_dead_loop(hands, guest.process)
        assert guest.process.poll() is None
        assert not [text for text in STARTED if text in guest.log()]


def test_the_changed_files_start_with_honest_hashes(built: Built, tmp_path: Path) -> None:
    """Control: what stops the files above is the table and nothing else."""
    launch = built.config("emulated").launch
    for change in (changed_kernel, changed_initrd, changed_cmdline):
        launch = change(launch, tmp_path)
    with boot(launch, built.qemu, tmp_path / "state") as guest:
        guest.wait_for("EFI stub")


@pytest.mark.full
def test_without_a_hash_table_nothing_starts(built: Built, tmp_path: Path) -> None:
    """The firmware does not take the kernel from QEMU at all, and has nothing else. Control: the shared guest."""
    launch = built.config("emulated").launch
    zeros = NoHashes(*vars(KernelHashes.of(launch)).values())
    with (
        sockets() as where,
        boot(launch, built.qemu, tmp_path / "state", hashes=zeros, extra=where.arguments) as guest,
        hands_on(where) as hands,
    ):
        guest.wait_for("No bootable option was found")
        hands.type()
        wait_dead_loop(hands, guest.process)
        assert not [text for text in STARTED if text in guest.log()]


def test_another_command_line_with_honest_hashes_boots_and_is_refused(
    built: Built, guest: Attested, copied: Attested
) -> None:
    """An honest table lets the firmware start it, and therefore the launch digest is another one.

    Controls: against its own VM config it is accepted, and the untouched guest against the first.
    """
    config, other = built.config("emulated"), copied.running

    def attest_as(expected: VmConfig, running: Running) -> object:
        return attest(expected, "127.0.0.1", running.port, running.guest.root)

    with pytest.raises(Refused) as refused:
        attest_as(config, other)
    assert refused.value.reason == "measurement"
    assert [check.name for check in refused.value.checks if check.outcome == "failed"] == ["measurement"]
    assert attest_as(other.config, other)
    assert attest_as(config, guest.running)
    # Measured from memory, and the very digest that this command line has.
    measured = (other.guest.options.state / "launch-digest.emulated.txt").read_text().strip()
    assert measured == other.config.require_reference().launch_digest.hex()
    assert measured != config.require_reference().launch_digest.hex()
