# SPDX-License-Identifier: Apache-2.0
"""The firmware starts the kernel whose hash is measured, with the measured initrd, and nothing else that the host has.

The control of each test is the pinned build that our firmware is made from: there the same thing runs. No tool of the
owner's takes that build, so a control that needs a verdict puts it on the list of accepted ones for as long as it runs.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import text_entry
from sevsnp.e2e.guest import wait_for_evidence
from sevsnp.firmware import gate
from sevsnp.firmware.known import ACCEPTED
from sevsnp.images.initramfs import join_layers
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import VmConfig, read_vm_config
from tests.conftest import Built
from tests.support.efi_program import NOT_FOUND, card_rom, speaker, starter
from tests.support.firmware_machine import (
    KERNEL,
    NO_APERTURE,
    added_file,
    end_with_a_file,
    from_source,
    our_firmware,
    stock_firmware,
    watched,
    with_firmware,
)
from tests.support.harness import BOOT_SECONDS
from tests.support.luks_guests import Owner, booted, image_copy, luks_config, make_owner, unlock, wait_for_key
from tests.support.replacing import replaced_once
from tests.support.shared_guests import Running, attested, refusal, started

pytestmark = pytest.mark.boot

PLACE = "etc/boot/shim"
FILE, CARD, INIT = "the host's file runs", "the card's program runs", "the host's init runs"


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program, and a card's ROM with another one."""
    directory = tmp_path_factory.mktemp("things")
    (directory / "program").write_bytes(speaker(FILE, status=NOT_FOUND))
    (directory / "rom").write_bytes(card_rom(speaker(CARD, driver=True)))
    return directory


def card(things: Path, model: str = "virtio-net-pci") -> tuple[str, ...]:
    return ("-device", f"{model},romfile={things}/rom")


WAYS = {
    "file": lambda things: (*added_file(PLACE, things / "program"), *card(things)),
    "option": lambda things: ("-shim", f"{things}/program", *card(things, "e1000")),
    "no aperture": lambda things: (*added_file(PLACE, things / "program"), *card(things), *NO_APERTURE),
}
# With the guest's type that emulation has, and with that of SEV.
PLAIN, SEV = False, True
every_way = pytest.mark.parametrize(
    ("way", "guest_type"),
    [
        pytest.param("file", PLAIN, id="file"),
        pytest.param("no aperture", SEV, id="no aperture, SEV", marks=pytest.mark.full),
        pytest.param("option", PLAIN, id="option", marks=pytest.mark.full),
        pytest.param("no aperture", PLAIN, id="no aperture", marks=pytest.mark.full),
        pytest.param("file", SEV, id="file, SEV", marks=pytest.mark.full),
        pytest.param("option", SEV, id="option, SEV", marks=pytest.mark.full),
    ],
)


@every_way
def test_neither_a_file_nor_a_card_has_its_program_started(
    built: Built, things: Path, tmp_path: Path, way: str, guest_type: bool
) -> None:
    """Both are offered at once. Control: the next test."""
    extra = WAYS[way](things)
    with watched(built, our_firmware(built), tmp_path / "state", extra, guest_type_sev=guest_type) as machine:
        assert machine.wait_done() == end_with_a_file(built)
        log = machine.guest.log()
    assert FILE not in log
    assert CARD not in log


def test_a_card_alone_does_not_matter(built: Built, things: Path, tmp_path: Path) -> None:
    """The kernel starts, and the card's program does not. Control: the next test."""
    with watched(built, our_firmware(built), tmp_path / "state", card(things)) as machine:
        assert machine.wait_done() == KERNEL
        assert CARD not in machine.guest.log()


@every_way
def test_control_both_are_started(built: Built, things: Path, tmp_path: Path, way: str, guest_type: bool) -> None:
    """With the unchanged build; a card's only where the guest's type, or the aperture, lets it."""
    extra = WAYS[way](things)
    with watched(built, stock_firmware(built), tmp_path / "state", extra, guest_type_sev=guest_type) as machine:
        log = machine.guest.wait_for(FILE)
    assert (CARD in log) == (guest_type == PLAIN or way == "no aperture")


# Lines of the genuine init, and the line that an init of the host's has after each.
SAYS = ("def boot() -> None:\n", f"    say({INIT!r})\n")
SAYS_KEY = (
    '        luks_root.open_mapping(device, words.luks["tables"], secret)\n',
    f'        say(f"{INIT} with the key {{bytes(secret).hex()}}")\n',
)


def hostile_program(built: Built, genuine: VmConfig, place: Path, more: tuple[str, str]) -> Path:
    """A program that starts the genuine kernel with the genuine initramfs, whose init has one more line."""
    after, line = more
    text = replaced_once((built.project / "initramfs" / "init").read_text(), after, f"{after}{line}")
    layer, initrd, program = place / "layer.cpio", place / "initramfs", place / "program"
    with layer.open("wb") as stream:
        write_cpio(with_parents([text_entry("init", text, 0o755)]), stream)
    join_layers(layers=[genuine.launch.initrd.path, layer], output=initrd)
    program.write_bytes(starter(FILE, initrd.read_bytes()))
    return program


def saying_init(built: Built, place: Path) -> Path:
    return hostile_program(built, built.config("emulated"), place, SAYS)


def key_saying_init(built: Built, place: Path) -> Path:
    return hostile_program(built, luks_config(built), place, SAYS_KEY)


@contextlib.contextmanager
def accepted(firmware: Path) -> Iterator[None]:
    """The gate takes ``firmware``: what the owner's tools did before there was a gate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ACCEPTED, sha256_file(firmware), "a control's")
        gate._judge.cache_clear()
        yield
    gate._judge.cache_clear()


def attest_against(running: Running, config: VmConfig, output: Path) -> None:
    """`attest_verity` with another VM config than the one that the host has started."""
    output.mkdir(exist_ok=True)
    replace(running, config=config).attest_into(output)


@pytest.mark.full
def test_control_a_host_s_init_before_a_verified_root(built: Built, tmp_path: Path) -> None:
    """The genuine launch digest of the unchanged build, and another init: only the gate refuses.

    An owner who expects our firmware sees that it is another one.
    """
    firmware = stock_firmware(built)
    config = with_firmware(built.config("emulated"), firmware, tmp_path)
    extra = added_file(PLACE, saying_init(built, tmp_path))
    output = tmp_path / "attested"
    with started(built, config, tmp_path / "state", extra) as running:
        wait_for_evidence(running.guest.process, running.port, BOOT_SECONDS)
        refusal(lambda: attest_against(running, built.config("emulated"), output), "REFUSED (measurement)")
        refusal(lambda: attest_against(running, config, output), "firmware refused")
        assert [path.name for path in output.iterdir()] == ["refused"]
        with accepted(firmware):
            attest_against(running, config, output)
        log = running.guest.log()
    assert FILE in log and f"init: {INIT}" in log
    assert (output / "known_hosts").exists() and (output / "ssh_config").exists()


@pytest.mark.full
def test_a_verified_root_has_the_genuine_init(built: Built, tmp_path: Path) -> None:
    """With the same file of the host's: our firmware passes it over, and the verdict is about what runs."""
    if from_source(built):
        pytest.skip("the firmware from source stops: the first test")
    extra = added_file(PLACE, saying_init(built, tmp_path))
    with started(built, built.config("emulated"), tmp_path / "state", extra) as running:
        attested(running)
        log = running.guest.log()
    assert FILE not in log and INIT not in log


@pytest.fixture
def owner(built: Built, tmp_path: Path) -> Owner:
    return make_owner(built, tmp_path)


@pytest.fixture
def disk(built: Built, tmp_path: Path) -> Iterator[Path]:
    with image_copy(luks_config(built).launch.disks[0].path, tmp_path / "disk") as copy:
        yield copy


@pytest.mark.full
def test_control_a_host_s_init_is_handed_the_key(built: Built, tmp_path: Path, owner: Owner, disk: Path) -> None:
    """With the unchanged build, whose launch digest is the genuine one. The gate refuses before the guest is asked."""
    firmware = stock_firmware(built)
    config = with_firmware(luks_config(built), firmware, tmp_path)
    extra = added_file(PLACE, key_saying_init(built, tmp_path))
    with booted(built, config, disk, tmp_path, extra) as running:
        wait_for_key(running)
        refusal(lambda: unlock(running, owner, tmp_path / "attested"), "firmware refused")
        assert not owner.record.exposed
        assert INIT not in running.guest.log()
        with accepted(firmware):
            unlock(running, owner, tmp_path / "attested")
        log = running.guest.log()
    assert FILE in log
    assert f"{INIT} with the key {owner.key.hex()}" in log


@pytest.mark.full
def test_an_owner_who_expects_our_firmware_sends_no_key(built: Built, tmp_path: Path, owner: Owner, disk: Path) -> None:
    """The host starts the unchanged build, with its init. Control: the test before."""
    config = with_firmware(luks_config(built), stock_firmware(built), tmp_path)
    extra = added_file(PLACE, key_saying_init(built, tmp_path))
    with booted(built, config, disk, tmp_path, extra) as running:
        wait_for_key(running)
        expecting = replace(running, config=read_vm_config(luks_config(built).source))
        refusal(lambda: unlock(expecting, owner, tmp_path / "attested"), "REFUSED (measurement)")
        log = running.guest.wait_end()
    assert f"init: {INIT}" not in log
    assert not owner.record.exposed


@pytest.mark.full
def test_the_key_goes_to_the_genuine_init(built: Built, tmp_path: Path, owner: Owner, disk: Path) -> None:
    """With the same file of the host's: our firmware passes it over."""
    if from_source(built):
        pytest.skip("the firmware from source stops: the first test")
    extra = added_file(PLACE, key_saying_init(built, tmp_path))
    with booted(built, luks_config(built), disk, tmp_path, extra) as running:
        wait_for_key(running)
        unlock(running, owner, tmp_path / "attested")
        log = running.guest.log()
    assert FILE not in log and INIT not in log
    assert owner.key.hex() not in log
