# SPDX-License-Identifier: Apache-2.0
"""Recording a host and reading the record: incomplete, malformed and hostile records."""

import json
import os
import shutil
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.host_setup import recorded
from sevsnp.host_setup.judge import judge
from sevsnp.host_setup.record import record_host
from sevsnp.host_setup.recorded import KERNEL_LOG, QEMU_VERSION, RECORD, read_host
from sevsnp.system import command
from tests.support.hosts import HOSTS, host, not_ok

GOOD = "good-genoa"
QEMU = 'echo "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"\necho Copyright\n'


class Machine:
    """The root directory of a good host, and the programs that a recorder starts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.into, self._bin = folder / "root", folder / "record", folder / "bin"
        shutil.copytree(HOSTS / GOOD, self.root)
        for name in (RECORD, recorded.STATUS, QEMU_VERSION):
            (self.root / name).unlink()
        self.log = (self.root / KERNEL_LOG).rename(folder / "log")
        (self.root / "dev").mkdir()
        for name in ("kvm", "sev"):
            (self.root / "dev" / name).touch()
        self._bin.mkdir()
        monkeypatch.setattr(command, "_SBIN", ())
        monkeypatch.setenv("PATH", f"{self._bin}:/usr/bin:/bin")
        self.add("dmesg", f"cat {self.log}\n")
        self.add("journalctl", "exit 1\n")
        self.qemu = self.add("qemu-system-x86_64", QEMU)

    def add(self, name: str, text: str) -> Path:
        (self._bin / name).write_text(f"#!/bin/sh\n{text}")
        (self._bin / name).chmod(0o755)
        return self._bin / name

    def record(self) -> recorded.Host:
        record_host(self.into, [self.into / "none", self.qemu], self.root)
        return read_host(self.into)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_record_gives_the_same_verdict_as_its_host(machine: Machine) -> None:
    found, good = machine.record(), host(GOOD)
    # An ordinary file stands for /dev/sev: it has no answer, and that is recorded, too.
    assert set(found.unreadable) == {recorded.STATUS} and "SNP_PLATFORM_STATUS" in found.unknown(recorded.STATUS)
    for part in (*recorded.FILES, recorded.CPUINFO, recorded.IOMMU_FEATURES, KERNEL_LOG, QEMU_VERSION):
        assert found.text(part) == good.text(part), part
    assert found.devices == good.devices
    assert judge(found).good  # the kernel log says what the status would


def test_the_status_is_recorded(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = host(GOOD).text(recorded.STATUS)
    monkeypatch.setattr("sevsnp.host_setup.record.read_status", lambda device: bytes.fromhex(answer))
    found = machine.record()
    assert found.text(recorded.STATUS) == answer and found.unreadable == {}


def test_unrelated_lines_of_the_kernel_log_and_processors_are_not_recorded(machine: Machine) -> None:
    with machine.log.open("a") as log:
        log.write("[    9.000000] usb 1-1: SerialNumber: 4711\n[   10.0] EXT4-fs (sda1): mounted\n")
    (machine.root / recorded.CPUINFO).write_text(host(GOOD).texts[recorded.CPUINFO] + "\nprocessor\t: 1\n")
    found = machine.record()
    assert "4711" not in found.texts[KERNEL_LOG] and "EXT4" not in found.texts[KERNEL_LOG]
    assert "processor\t: 1" not in found.texts[recorded.CPUINFO]
    names = {path.relative_to(machine.into).as_posix() for path in machine.into.rglob("*") if path.is_file()}
    features = {name for name in names if Path(name).match(recorded.IOMMU_FEATURES)}
    assert len(features) == 1 and names - features <= {*recorded.PARTS, RECORD}


def test_missing_files_are_recorded_as_absent(machine: Machine) -> None:
    shutil.rmtree(machine.root / "sys")
    shutil.rmtree(machine.root / "dev")
    machine.qemu.unlink()
    found = machine.record()
    assert {recorded.EFI, recorded.IOMMU_FEATURES, recorded.ASIDS, QEMU_VERSION} <= found.absent
    assert set(found.devices.values()) == {"absent"}
    assert not_ok(judge(found), "failed") == {"kvm_amd", "/dev/kvm", "/dev/sev"}


def test_unreadable_files_are_recorded_with_the_reason(machine: Machine) -> None:
    machine.add("dmesg", "echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1\n")
    (machine.root / recorded.PARAMETERS["sev"]).unlink()
    (machine.root / recorded.PARAMETERS["sev"]).mkdir()  # cannot be read as a file, for root neither
    found = machine.record()
    assert set(found.unreadable) == {KERNEL_LOG, recorded.STATUS, recorded.PARAMETERS["sev"]}
    assert "Operation not permitted" in found.unknown(KERNEL_LOG)
    verdict = judge(found)
    assert not verdict.good and not_ok(verdict, "failed") == set()
    assert {"firmware", "initialization", "kvm_amd.sev"} <= not_ok(verdict, "unknown")


def test_devices_without_rights(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: str(path).endswith("kvm"))  # root may always
    assert machine.record().devices == {"/dev/kvm": "usable", "/dev/sev": "no rights"}


def test_lines_that_the_kernel_buffer_lost_are_read_from_the_journal(machine: Machine) -> None:
    lines = machine.log.read_text().splitlines(keepends=True)
    late = machine.log.with_name("late")
    late.write_text("".join(line for line in lines if "Linux version" not in line and "RMP" not in line))
    machine.add("dmesg", f"cat {late}\n")
    found = machine.record()
    assert "RMP" not in found.texts[KERNEL_LOG]  # control: without a journal that part is all there is
    machine.add("journalctl", f"cat {machine.log}\n")
    assert machine.record().text(KERNEL_LOG) == host(GOOD).text(KERNEL_LOG)


def test_a_recording_replaces_an_earlier_one(machine: Machine) -> None:
    machine.record()
    (machine.into / recorded.QEMU_LOG).write_text("of a launch\n")
    assert recorded.QEMU_LOG not in machine.record().texts
    assert [path.name for path in machine.into.parent.iterdir() if path.name.startswith(".")] == []


def test_a_directory_that_is_not_a_record_is_left_unchanged(machine: Machine) -> None:
    machine.into.mkdir()
    (machine.into / "mine").touch()
    with pytest.raises(UserError, match="not a recorded host, so it is left as it is"):
        machine.record()
    assert (machine.into / "mine").exists()


# Recordings of other people.


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(HOSTS / GOOD, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not the JSON"),
        ("[" * 100_000, "not the JSON"),
        ("[]", "format"),
        ("{}", "format"),
        ('{"format": 2}', "format"),
        ('{"format": 1, "format": 1}', "twice"),
        ('{"format": 1, "absent": {}}', "absent"),
        ('{"format": 1, "absent": ["etc/shadow"]}', "absent"),
        ('{"format": 1, "absent": [["dmesg"]]}', "absent"),
        ('{"format": 1, "unreadable": ["dmesg"]}', "unreadable"),
        ('{"format": 1, "unreadable": {"dmesg": 1}}', "unreadable"),
        ('{"format": 1, "devices": {"/dev/sda": "usable"}}', "devices"),
        ('{"format": 1, "devices": {"/dev/kvm": "perhaps"}}', "devices"),
        ('{"format": 1, "devices": {"/dev/kvm": []}}', "devices"),
    ],
)
def test_a_malformed_record_is_refused(copy: Path, text: str, words: str) -> None:
    read_host(copy)  # control
    (copy / RECORD).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_host(copy)
    assert str(copy / RECORD) in caught.value.message


def test_a_minimal_record_is_read_and_does_not_pass(copy: Path) -> None:
    (copy / RECORD).write_text(json.dumps({"format": 1}))
    assert read_host(copy).devices == {} and not judge(read_host(copy)).good


def test_a_directory_without_a_record_is_refused(tmp_path: Path) -> None:
    for tree, words in ((tmp_path, "expected the record of a host"), (tmp_path / "none", "no such directory")):
        with pytest.raises(UserError, match=words):
            read_host(tree)


@pytest.mark.parametrize("part", [recorded.RELEASE, recorded.RECORD])
def test_links_that_lead_out_of_a_record_are_refused(copy: Path, tmp_path: Path, part: str) -> None:
    outside, inside = tmp_path / "outside", copy / "inside"
    outside.write_bytes((copy / part).read_bytes())
    (copy / part).rename(inside)
    (copy / part).symlink_to(inside)
    read_host(copy)  # control: a link that stays inside
    for place in (outside, Path("/dev/zero")):
        (copy / part).unlink()
        (copy / part).symlink_to(place)
        with pytest.raises(UserError, match="not a file of the recording"):
            read_host(copy)
    (copy / part).unlink()
    inside.write_bytes(b"x" * ((1 << 20) + 1))
    inside.rename(copy / part)
    with pytest.raises(UserError, match="larger than"):
        read_host(copy)


def test_parts_of_a_record_that_are_not_plain_text_are_handled(copy: Path) -> None:
    (copy / recorded.CMDLINE).write_bytes(b"\xff\xfe\0quiet")
    assert judge(read_host(copy)).good
    (copy / recorded.CMDLINE).unlink()
    os.mkfifo(copy / recorded.CMDLINE)
    with pytest.raises(UserError, match="not a file of the recording"):
        read_host(copy)
