# SPDX-License-Identifier: Apache-2.0
"""Everything that a host can offer a firmware to start, from tables: files, words, cards, disks, a network.

Whatever runs says its mark on the serial port. The control of each kind is a firmware that does start it: the unchanged
build that ours is made from, or the ordinary one for machines without measured boot.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from sevsnp.firmware.gate import find_roads
from sevsnp.measurement.launch_digest import KernelHashes
from sevsnp.vm_config.cmdline import read_cmdline
from tests.conftest import Built
from tests.support.configs import without_stage
from tests.support.efi_program import card_rom, speaker
from tests.support.firmware_machine import (
    DEAD_LOOP,
    FILES,
    KERNEL,
    LITTLE,
    NO_APERTURE,
    NOTHING,
    NoHashes,
    added_file,
    end_with_a_file,
    from_source,
    ordinary_firmware,
    our_firmware,
    stock_firmware,
    watched,
)
from tests.support.firmware_offers import (
    BESIDE_KERNEL,
    DISKS,
    NETWORK,
    PCAP_HEADER,
    card,
    cards,
    disk,
    disks,
    files_beside_kernel,
    fw_cfg_names,
    groups,
    mark_of,
    models_with_rom,
    names_beside_kernel,
    network,
    program,
    serve,
    starts,
    why_not,
)

pytestmark = pytest.mark.boot

# Room for more files than QEMU's 32.
SLOTS = ("-global", "fw_cfg_io.x-file-slots=128")
# QEMU has files of these names already, so that the host's own can only be there instead of the launch's.
OWN = ("kernel", "initrd", "cmdline")
PROGRAM = "the program runs"
CARD = "virtio-rng-pci"
# The last words of the stage: it ends the guest itself.
RETURNED = "stage: failed: the kernel has returned"
Everything = Callable[[Path], dict[str, tuple[str, ...]]]


def said(log: str, marks: Sequence[str]) -> set[str]:
    """Which marks are in the log; QEMU's serial port doubles a character now and then when the machine is busy."""
    return {mark for mark in marks if re.search("".join(f"{re.escape(sign)}{{1,2}}" for sign in mark), log)}


def flat(words: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(word for group in words for word in group)


def others_beside_kernel(built: Built) -> list[bytes]:
    """The names of both builds: what is not there any more in ours must not be started by it either."""
    images = [our_firmware(built).read_bytes(), stock_firmware(built).read_bytes()]
    return sorted({name for image in images for name in names_beside_kernel(image)} - {name.encode() for name in OWN})


def test_the_names_are_those_of_the_firmware(built: Built) -> None:
    """The tables are read from the code, so that another build brings its own."""
    image = our_firmware(built).read_bytes()
    names = fw_cfg_names(image)
    assert find_roads(image) == ()
    assert {BESIDE_KERNEL, "opt/ovmf/X-PciMmio64Mb", "etc/table-loader"} <= set(names)
    beside = names_beside_kernel(image)
    assert {name.encode() for name in OWN} < set(beside)
    # The name that ours has in a device path, as eight bits can say it: the low halves, and UTF-8.
    assert from_source(built) or {b"`abc", "\u2460\u2461\u2462\u2463".encode()} < set(beside)


@pytest.mark.full
def test_no_file_beside_the_kernel_runs(built: Built, tmp_path: Path) -> None:
    """Control: the next test."""
    files = files_beside_kernel(tmp_path, others_beside_kernel(built))
    with watched(built, our_firmware(built), tmp_path / "state", (*SLOTS, *flat(list(files.values())))) as machine:
        assert machine.wait_done() == end_with_a_file(built)
        assert said(machine.guest.log(), list(files)) == set()


@pytest.mark.full
def test_control_one_of_them_runs(built: Built, tmp_path: Path) -> None:
    """With the unchanged build, and it is the one that has a name in a device path."""
    names = others_beside_kernel(built)
    files = files_beside_kernel(tmp_path, names)
    (running,) = [mark for mark, name in zip(files, names, strict=True) if name == b"shim"]
    with watched(built, stock_firmware(built), tmp_path / "state", (*SLOTS, *flat(list(files.values())))) as machine:
        assert machine.wait_done() == NOTHING
        assert said(machine.guest.log(), list(files)) == {running}


def in_place_of(built: Built, directory: Path, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """QEMU's options for a program by the name of one of the three, and which of them it is given as such."""
    offered = added_file(f"{BESIDE_KERNEL}{name}", program(directory, PROGRAM))
    if name != "kernel":
        return offered, tuple(one for one in FILES if one != name)
    # Without a kernel QEMU takes neither of the others.
    launch, line = built.config("emulated").launch, directory / "line"
    line.write_bytes(read_cmdline(launch.cmdline.path).encode() + b"\0")
    others = (*added_file(f"{BESIDE_KERNEL}initrd", launch.initrd.path), *added_file(f"{BESIDE_KERNEL}cmdline", line))
    return (*offered, *others), ()


@pytest.mark.full
@pytest.mark.parametrize("name", OWN)
def test_a_file_in_the_place_of_one_of_the_three(built: Built, tmp_path: Path, name: str) -> None:
    """The table has the genuine hashes. Control: the next test."""
    offered, files = in_place_of(built, tmp_path, name)
    with watched(built, our_firmware(built), tmp_path / "state", offered, files=files) as machine:
        assert machine.wait_done() in (DEAD_LOOP, NOTHING)
        log = machine.guest.log()
    assert PROGRAM not in log
    assert KERNEL not in log


@pytest.mark.full
@pytest.mark.parametrize("name", OWN)
def test_control_a_file_whose_hash_is_in_the_table(built: Built, tmp_path: Path, name: str) -> None:
    """Then it is taken, and the guest measures differently."""
    offered, files = in_place_of(built, tmp_path, name)
    data = (tmp_path / "the-program-runs.efi").read_bytes()
    hashes = replace(KernelHashes.of(built.config("emulated").launch), **{name: hashlib.sha256(data).digest()})
    with watched(built, our_firmware(built), tmp_path / "state", offered, files=files, hashes=hashes) as machine:
        machine.guest.wait_for(PROGRAM if name == "kernel" else KERNEL)


@pytest.fixture(scope="module")
def everything(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Everything:
    """What a host can offer at once, as QEMU's options by the mark that it says; and a capture of the network."""
    directory = tmp_path_factory.mktemp("everything")
    offers = {
        PROGRAM: added_file(f"{BESIDE_KERNEL}shim", program(directory, PROGRAM)),
        mark_of(CARD): card(CARD, directory),
        **disks(built.tools, directory),
    }
    served = serve(directory)
    return lambda capture: {**offers, NETWORK: network(served, capture)}


class Case(NamedTuple):
    """Which of the three QEMU is given, which table, how ours ends; what the unchanged build starts."""

    files: tuple[str, ...]
    hashes: Callable[[KernelHashes], KernelHashes]
    end: str
    cards: bool
    disks: bool


CASES = {
    "no kernel": Case((), lambda genuine: genuine, DEAD_LOOP, False, False),
    "no initrd": Case(("kernel", "cmdline"), lambda genuine: genuine, DEAD_LOOP, False, False),
    "no kernel and no hashes": Case((), lambda genuine: NoHashes(**vars(genuine)), NOTHING, True, True),
    "no initrd, by its hash": Case(
        ("kernel", "cmdline"), lambda genuine: replace(genuine, initrd=hashlib.sha256().digest()), KERNEL, True, True
    ),
    "all three": Case(FILES, lambda genuine: genuine, KERNEL, True, True),
}
every_case = pytest.mark.parametrize("name", CASES)


def end_of(
    built: Built, firmware: Path, directory: Path, case: Case, offers: Mapping[str, tuple[str, ...]]
) -> tuple[str, set[str]]:
    """How the firmware ends that is offered everything, and which marks are said."""
    extra, hashes = flat(list(offers.values())), case.hashes(KernelHashes.of(built.config("emulated").launch))
    with watched(built, firmware, directory / "state", extra, files=case.files, hashes=hashes) as machine:
        return machine.wait_done(), said(machine.guest.log(), list(offers))


@pytest.mark.full
@every_case
def test_nothing_runs_whichever_of_the_three_are_missing(
    built: Built, tmp_path: Path, everything: Everything, name: str
) -> None:
    """And nothing is sent to the network. Control: the next two tests."""
    offers, case = everything(tmp_path / "capture"), CASES[name]
    end = end_with_a_file(built) if case.end == KERNEL else case.end
    assert end_of(built, our_firmware(built), tmp_path, case, offers) == (end, set())
    assert (tmp_path / "capture").stat().st_size == PCAP_HEADER


@pytest.mark.full
@every_case
def test_control_what_the_unchanged_build_starts(
    built: Built, tmp_path: Path, everything: Everything, name: str
) -> None:
    """A card's program, wherever it comes so far; the file's before any kernel; and disks when that has returned."""
    offers, case = everything(tmp_path / "capture"), CASES[name]
    _, marks = end_of(built, stock_firmware(built), tmp_path, case, offers)
    assert (mark_of(CARD) in marks) == case.cards
    assert (PROGRAM in marks) == (case.end == KERNEL)
    assert bool(marks & set(DISKS)) == case.disks


@pytest.mark.full
def test_control_the_ordinary_firmware_starts_disks_and_network(
    built: Built, tmp_path: Path, everything: Everything
) -> None:
    """One after the other, since each program ends and says that it was not the right one."""
    offers = everything(tmp_path / "capture")
    added = flat(list(offers.values()))
    with watched(built, ordinary_firmware(built), tmp_path / "state", added, files=(), clock_counts=True) as machine:
        for mark in offers:
            machine.guest.wait_for(mark)
        assert (tmp_path / "capture").stat().st_size > PCAP_HEADER


def marks_after_kernel(built: Built, firmware: Path, directory: Path, stage: bool) -> set[str]:
    """Which disks' programs run after a kernel that returns, since it has too little memory."""
    offers, config = disks(built.tools, directory), built.config("emulated")
    added = flat(list(offers.values()))
    launch = (config if stage else without_stage(built.build, config, directory / "plain", acpi=False)).launch
    # The firmware from source itself takes less.
    memory = LITTLE - (16 << 20) if firmware == our_firmware(built) and from_source(built) else LITTLE
    with watched(
        built, firmware, directory / "state", added, launch=launch, memory=memory, clock_counts=True
    ) as machine:
        if stage:
            assert RETURNED in machine.guest.wait_end()
        else:
            machine.guest.wait_for(NOTHING)
        assert KERNEL in machine.guest.log()
        return said(machine.guest.log(), list(offers))


@pytest.mark.full
@pytest.mark.parametrize("stage", [True, False], ids=["stage", "no stage"])
def test_nothing_is_started_after_the_kernel(built: Built, tmp_path: Path, stage: bool) -> None:
    """The launch digest is the genuine one, whatever the machine's memory is. Control: the next test."""
    assert marks_after_kernel(built, our_firmware(built), tmp_path, stage) == set()


@pytest.mark.full
@pytest.mark.parametrize("stage", [True, False], ids=["stage", "no stage"])
def test_control_after_the_kernel(built: Built, tmp_path: Path, stage: bool) -> None:
    """With the unchanged build. The stage alone prevents it, too: where the kernel has returned to it, it ends."""
    assert marks_after_kernel(built, stock_firmware(built), tmp_path, stage) == (set() if stage else set(DISKS))


VALUES = ("0", "1", "yes", "no")


def words(built: Built, directory: Path, value: str) -> dict[str, tuple[str, ...]]:
    """Every name of the firmware's own that a host can have a file by, as QEMU's options with ``value``."""
    path = program(directory, "a word runs") if value == "program" else directory / "value"
    if value != "program":
        path.write_text(value)
    names = [name for name in fw_cfg_names(our_firmware(built).read_bytes()) if name != BESIDE_KERNEL]
    found = {name: added_file(name, path) for name in names}
    return {name: one for name, one in found.items() if not starts(built.qemu, one)}


@pytest.mark.full
@pytest.mark.parametrize("sev", [False, True], ids=["guest type none", "guest type SEV"])
@pytest.mark.parametrize("value", [*VALUES, "program"])
def test_no_word_makes_it_run_anything(
    built: Built, tmp_path: Path, everything: Everything, value: str, sev: bool
) -> None:
    """All of the firmware's own names at once, with everything that it could run. Control: the tests before."""
    offers, given = everything(tmp_path / "capture"), words(built, tmp_path, value)
    assert "opt/ovmf/X-PciMmio64Mb" in given
    extra = (*SLOTS, *flat(list(offers.values())), *flat(list(given.values())))
    with watched(built, our_firmware(built), tmp_path / "state", extra, guest_type_sev=sev) as machine:
        machine.wait_done()
        assert said(machine.guest.log(), [*offers, "a word runs"]) == set()


@pytest.mark.full
@pytest.mark.parametrize("value", ["0", "1"])
def test_no_single_word_makes_it_run_anything(built: Built, tmp_path: Path, everything: Everything, value: str) -> None:
    """One name after the other: in company one could hide what another does."""
    for number, (name, given) in enumerate(words(built, tmp_path, value).items()):
        offers = everything(tmp_path / f"capture-{number}")
        extra = (*flat(list(offers.values())), *given)
        state = tmp_path / f"state-{number}"
        with watched(built, our_firmware(built), state, extra, guest_type_sev=True) as machine:
            machine.wait_done()
            assert (name, said(machine.guest.log(), list(offers))) == (name, set())


@pytest.fixture(scope="module")
def card_groups(built: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], tuple[str, ...]]:
    """Every model that takes a ROM and starts, in groups: QEMU's options by the models' names."""
    directory = tmp_path_factory.mktemp("cards")
    models = models_with_rom(built.qemu, directory)
    failed = {model for model in models if starts(built.qemu, card(model, directory))}
    assert failed == {model for model in models if why_not(model)}
    parts = groups(built.qemu, [model for model in models if model not in failed], directory)
    return {tuple(part): cards(part, directory) for part in parts}


Groups = dict[tuple[str, ...], tuple[str, ...]]


def cards_that_run(
    built: Built, firmware: Path, directory: Path, card_groups: Groups, extra: tuple[str, ...], sev: bool
) -> set[str]:
    found = set[str]()
    for number, (models, options) in enumerate(card_groups.items()):
        state = directory / f"state-{number}"
        with watched(built, firmware, state, (*options, *extra), guest_type_sev=sev) as machine:
            assert machine.wait_done() == KERNEL
            log = machine.guest.log()
        heard = said(log, [mark_of(model) for model in models])
        found |= {model for model in models if mark_of(model) in heard}
    return found


SITUATIONS = pytest.mark.parametrize(
    ("extra", "sev"),
    [((), False), (NO_APERTURE, False), (NO_APERTURE, True)],
    ids=["guest type none", "no aperture", "no aperture, guest type SEV"],
)


@pytest.mark.full
@SITUATIONS
def test_no_card_s_program_runs(
    built: Built, tmp_path: Path, card_groups: Groups, extra: tuple[str, ...], sev: bool
) -> None:
    """Control: the next test."""
    assert cards_that_run(built, our_firmware(built), tmp_path, card_groups, extra, sev) == set()


@pytest.mark.full
@SITUATIONS
def test_control_every_card_s_program_runs(
    built: Built, tmp_path: Path, card_groups: Groups, extra: tuple[str, ...], sev: bool
) -> None:
    """With the unchanged build."""
    models = {model for group in card_groups for model in group}
    assert len(models) > 100
    assert cards_that_run(built, stock_firmware(built), tmp_path, card_groups, extra, sev) == models


def plugged(built: Built, firmware: Path, directory: Path, when: str) -> set[str]:
    """Which marks are said where a card comes while the machine runs: before the first instruction, or on the way."""
    rom = directory / "rom"
    rom.write_bytes(card_rom(speaker(PROGRAM, driver=True)))
    image = disk(built.tools, directory / "disk.img", "the disk runs")
    node = f"driver=raw,node-name=late,file.driver=file,file.filename={image}"
    ports = [("-device", f"pcie-root-port,id=port{number},chassis={number}") for number in (1, 2)]
    extra = ("-blockdev", node, *flat(ports), *(("-S",) if when == "paused" else ()))
    with watched(built, firmware, directory / "state", extra) as machine:
        if when != "paused":
            machine.guest.wait_for(when)
        machine.hands.plug("virtio-rng-pci", bus="port1", romfile=str(rom))
        machine.hands.plug("virtio-blk-pci", bus="port2", drive="late")
        if when == "paused":
            machine.hands.go_on()
        assert machine.wait_done() == KERNEL
        return said(machine.guest.log(), [PROGRAM, "the disk runs"])


@pytest.mark.full
@pytest.mark.parametrize("when", ["paused", "\x1b["])
def test_nothing_that_is_plugged_in_runs(built: Built, tmp_path: Path, when: str) -> None:
    """Before the first instruction, and when the firmware clears the screen. Control: the next test."""
    if when != "paused" and from_source(built):
        pytest.skip("the firmware from source clears no screen")
    assert plugged(built, our_firmware(built), tmp_path, when) == set()


@pytest.mark.full
def test_control_a_card_that_is_plugged_in_runs(built: Built, tmp_path: Path) -> None:
    assert plugged(built, stock_firmware(built), tmp_path, "paused") == {PROGRAM}
