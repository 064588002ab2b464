# SPDX-License-Identifier: Apache-2.0
"""Exported domains before libvirt itself: valid by its schema, and rendered to the QEMU options that run_* gives."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevsnp.launchers.libvirt import render_domain
from sevsnp.qemu.snp_options import snp_command
from sevsnp.system.template import find_template
from sevsnp.vm_config.config import VmConfig
from tests.conftest import Built
from tests.pipeline.test_qemu_parser import TAKEN, ends_with, without_kvm
from tests.support.evidence import write_file
from tests.support.exports import VOLUME_HEADER, guest_of, make_config, make_volume, sign
from tests.support.libvirt import Libvirt, skip_without_kvm, unpack_libvirt
from tests.support.replacing import replaced_once
from tests.unit.qemu.test_snp_options import options_in

Objects = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def release(built: Built) -> Path:
    return built.build / "snp-release"


@pytest.fixture(scope="module")
def libvirt(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libvirt]:
    yield unpack_libvirt(release, tmp_path_factory.mktemp("libvirt"))


def a_guest(place: Path, case: str) -> VmConfig:
    place.mkdir()
    if case == "odd names":
        place = place / "a,b & <c> \"d\" 'e' é"
        place.mkdir()
        return make_config(place, cmdline=write_file(place / "words", b"console=ttyS0 x=<&>,,;{}='y' z"))
    if case == "several vCPUs":
        return make_config(place, vcpus=4, vcpu_model="EPYC-Genoa", guest_policy=0x20137, host_data=b"\xff" * 32)
    if case == "encrypted":
        config, disk = make_volume(place)
        disk.write_bytes(VOLUME_HEADER + bytes(8192))
        return config
    config = make_config(place)
    return config if case == "plain" else sign(config, author=case == "with an author")[0]


CASES = ("plain", "odd names", "several vCPUs", "with an author", "without an author", "encrypted")


def domain(config: VmConfig, place: Path) -> Path:
    path = place / "domain.xml"
    path.write_text(render_domain(guest_of(config), "default", find_template("libvirt-domain.xml.j2")))
    return path


@pytest.mark.parametrize("case", CASES)
def test_an_exported_domain_is_valid_by_the_schema(libvirt: Libvirt, tmp_path: Path, case: str) -> None:
    assert libvirt.refusal(domain(a_guest(tmp_path / "guest", case), tmp_path)) == ""


SPOILT = {
    "no policy": ("<policy>0x00030000</policy>", ""),
    "another word": ('kernelHashes="yes"', 'kernelHashes="on"'),
    "a misspelt element": ("hostData>", "hostdata>"),
    "no number of vCPUs": (">1</vcpu>", ">one</vcpu>"),
    "another firmware's type": ('type="rom"', 'type="ram"'),
}


@pytest.mark.parametrize("case", SPOILT)
def test_the_schema_refuses_a_changed_domain(libvirt: Libvirt, tmp_path: Path, case: str) -> None:
    path = domain(make_config(tmp_path / "guest"), tmp_path)
    old, new = SPOILT[case]
    assert libvirt.refusal(path) == ""  # control
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert "fails to validate" in libvirt.refusal(path)


def value_of(arguments: list[str], option: str) -> str:
    assert arguments.count(option) == 1, option
    return arguments[arguments.index(option) + 1]


def values_of(arguments: list[str], option: str) -> list[str]:
    return [arguments[number + 1] for number, word in enumerate(arguments) if word == option]


def parsed(text: str) -> dict[str, Any]:
    """An option's properties, in QEMU's own notation or in JSON, with numbers and switches as in JSON."""
    if text.startswith("{"):
        return dict(json.loads(text))
    kind, *parts = text.replace(",,", "\0").split(",")
    found: dict[str, Any] = {"qom-type": kind, "driver": kind}
    for part in parts:
        name, _, value = part.replace("\0", ",").partition("=")
        found[name] = {"on": True, "off": False, "true": True, "false": False}.get(value, value)
        if value[:1].isdigit() and name in ("policy", "cbitpos", "reduced-phys-bits", "size"):
            found[name] = int(value, 0)
    return found


def objects(arguments: list[str]) -> Objects:
    return {found["id"]: found for found in map(parsed, values_of(arguments, "-object"))}


def security(arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two objects that the machine names: the confidential guest and its memory, without their names."""
    machine = parsed(value_of(arguments, "-machine").replace("kernel-irqchip", "kernel_irqchip"))
    assert (machine["vmport"], machine["smm"], machine["kernel_irqchip"]) == (False, False, "split")
    assert machine.get("acpi", "on") in (True, "on") and "q35" in machine["qom-type"]
    found = objects(arguments)
    guest, memory = dict(found[machine["confidential-guest-support"]]), found[machine["memory-backend"]]
    for name in ("id", "driver"):
        guest.pop(name, None)
    guest.setdefault("author-key-enabled", False)
    return guest, {name: memory[name] for name in ("qom-type", "size", "share")}


def disks(arguments: list[str]) -> list[tuple[str, bool, str]]:
    """Serial number, whether it is read-only, and file, of each disk in its order."""
    nodes = {node["node-name"]: node for node in map(json.loads, values_of(arguments, "-blockdev"))}
    found = []
    for device in map(parsed, values_of(arguments, "-device")):
        if device["driver"].startswith("virtio-blk-pci"):
            assert device["iommu_platform"] is True
            assert device.get("disable-legacy", device["driver"] == "virtio-blk-pci-non-transitional") is True
            node = nodes[device["drive"]]
            file = node["file"] if isinstance(node.get("file"), dict) else nodes.get(node.get("file", ""), node)
            found.append((device["serial"], node["read-only"], file["filename"]))
    return found


@pytest.mark.parametrize("case", CASES)
def test_libvirt_renders_the_qemu_options_of_our_own_launch(
    libvirt: Libvirt, release: Path, tmp_path: Path, case: str
) -> None:
    skip_without_kvm()
    config = a_guest(tmp_path / "guest", case)
    ours = snp_command(guest_of(config).launch, options_in(tmp_path), tmp_path / "qmp", 51, 1)
    theirs = libvirt.native(domain(config, tmp_path), release / "bin" / "qemu-system-x86_64")
    assert security(theirs) == security(ours)
    assert security(theirs)[0]["kernel-hashes"] is True
    for option in ("-accel", "-cpu", "-bios", "-kernel", "-initrd", "-append"):
        assert value_of(theirs, option) == value_of(ours, option), option
    assert value_of(theirs, "-smp").split(",")[0] == value_of(ours, "-smp")
    assert disks(theirs) == disks(ours)
    placed = [parsed(device) for device in values_of(theirs, "-device")]
    assert [device for device in placed if "root-port" in device["driver"]] == []  # no slot takes a card
    drivers = {device["driver"].removesuffix("-non-transitional") for device in placed}
    assert drivers == {"virtio-blk-pci", "isa-serial"}
    assert ends_with(release / "bin" / "qemu-system-x86_64", without_kvm(without_monitor(theirs))).endswith(TAKEN)


def without_monitor(arguments: list[str]) -> list[str]:
    """Without the monitor and the secret, whose files libvirt makes only when it starts a domain."""
    found = list(arguments)
    for option, word in (("-object", '"secret"'), ("-chardev", "id=charmonitor"), ("-mon", "charmonitor")):
        (place,) = (at for at, given in enumerate(found) if given == option and word in found[at + 1])
        del found[place : place + 2]
    return found


@pytest.mark.parametrize(
    ("old", "new"), [("0x00030000", "0x00020000"), ("<hostData>AAEC", "<hostData>AAED"), ('kernelHashes="yes"', "")]
)
def test_control_a_changed_domain_gives_other_qemu_options(
    libvirt: Libvirt, release: Path, tmp_path: Path, old: str, new: str
) -> None:
    """Control for the comparison in the test above."""
    skip_without_kvm()
    config = make_config(tmp_path / "guest")
    ours = snp_command(guest_of(config).launch, options_in(tmp_path), tmp_path / "qmp", 51, 1)
    path = domain(config, tmp_path)
    path.write_text(replaced_once(path.read_text(), old, new))
    assert security(libvirt.native(path, release / "bin" / "qemu-system-x86_64")) != security(ours)


def test_libvirt_checks_the_length_of_an_id_block(libvirt: Libvirt, release: Path, tmp_path: Path) -> None:
    skip_without_kvm()
    config, _ = sign(make_config(tmp_path / "guest"))
    path = domain(config, tmp_path)
    text = path.read_text()
    block = text.partition("<idBlock>")[2].partition("</idBlock>")[0]
    path.write_text(text.replace(block, "AAAA"))
    with pytest.raises(AssertionError, match="Unexpected length of 'idBlock', expected 96 got 3"):
        libvirt.native(path, release / "bin" / "qemu-system-x86_64")
