# SPDX-License-Identifier: Apache-2.0
"""Hints about a host for SEV-SNP guests, on recorded hosts and on a machine whose root is a directory."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.host_setup import recorded
from sevsnp.host_setup.changes import RECORD
from sevsnp.host_setup.check import check_host
from sevsnp.host_setup.plan import UDEV_FILE
from sevsnp.host_setup.prepare import prepare_host
from sevsnp.host_setup.record import record_host
from sevsnp.host_setup.recorded import read_host
from sevsnp.system.command import temporary_directory
from tests.support.host_machine import DEBIAN_12, GRUB, NEW, OLD, HostMachine
from tests.support.hosts import GOOD, HOSTS
from tests.support.table import Told, remedies

PROJECT = Path(__file__).resolve().parents[2]
PREPARE = "sevsnp.host_setup.prepare"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path / "machine", monkeypatch)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(HOSTS / GOOD[0], tmp_path / "a tree")
    return tmp_path / "a tree"


def check(tree: Path | str) -> None:
    with temporary_directory("host-") as work:
        check_host(tree=str(tree), record=work / "record", output=work / "check_host.json", qemus=[])


def follow(hint: str, machine: HostMachine) -> None:
    """What `./doitw prepare_host` at the end of a hint does, on the machine whose root is a directory."""
    words = shlex.split(hint.rpartition(": ")[2])
    assert words[:2] == ["./doitw", "prepare_host"]
    options = {"--yes": "yes", "--dry-run": "dry_run", "--undo": "undo"}
    given = {name: option in words for option, name in options.items()}
    assert len(words) == 2 + sum(given.values())
    prepare_host(root=machine.root, **given)


@remedies("sevsnp.host_setup.check", "{}; then check again: ./doitw check_host{}")
def test_a_check_that_fails(told: Told, tree: Path) -> None:
    words = (tree / recorded.CMDLINE).read_text()
    (tree / recorded.CMDLINE).write_text(f"{words.strip()} iommu=pt\n")
    hint = told.hint(lambda: check(tree))
    assert "take iommu=pt out of the kernel command line" in hint
    (tree / recorded.CMDLINE).write_text(words)
    again = shlex.split(hint.rpartition(": ")[2])
    assert again[:3] == ["./doitw", "check_host", "--from"]
    check(again[3])


@remedies(
    "sevsnp.host_setup.software_checks",
    "install a newer kernel, and reboot: ./doitw prepare_host",
    "set {}=1 on the kernel command line, and reboot: ./doitw prepare_host",
    "get the rights, and log in again: ./doitw prepare_host",
)
def test_problems_that_prepare_host_repairs(told: Told, tree: Path, machine: HostMachine) -> None:
    """The check names each of the three problems, prepare_host repairs it, and then the host passes the check."""
    parameter = recorded.PARAMETERS["sev_snp"]
    record = json.loads((tree / recorded.RECORD).read_text())
    files = {
        recorded.RELEASE: f"{OLD}\n",
        parameter: "N\n",
        recorded.RECORD: json.dumps({**record, "devices": {**record["devices"], "/dev/sev": "no rights"}}),
    }
    good = {name: (tree / name).read_text() for name in files}
    for name, text in files.items():
        (tree / name).write_text(text)
        machine.answer("y\n")
        with pytest.raises(UserError) as caught:
            check(tree)
        follow(told.read(caught.value.hint.partition("; then check again: ")[0]), machine)
        (tree / name).write_text(good[name])
        check(tree)
        machine.reboot()
        assert (machine.root / recorded.RELEASE).read_text().strip() == NEW
        assert "kvm_amd.sev_snp=1" in (machine.root / recorded.CMDLINE).read_text()
        assert "somebody" in (machine.root / "etc/group").read_text() and (machine.root / UDEV_FILE).exists()
        machine.answer("y\n")
        prepare_host(dry_run=False, undo=True, yes=True, root=machine.root)
        machine.reboot(OLD)


@remedies(
    PREPARE,
    "agree to the plan with: ./doitw prepare_host --yes",
    "look at the plan alone with: ./doitw prepare_host --dry-run",
    "run as root: ./doitw prepare_host --yes",
    "then check the host: ./doitw check_host",
)
def test_consent_to_the_changes_of_prepare_host(
    told: Told, machine: HostMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    def start() -> None:
        prepare_host(dry_run=False, undo=False, yes=False, root=machine.root)

    machine.answer("n\n")
    follow(told.hint(start), machine)
    assert "a dry run" in capsys.readouterr().out
    machine.answer("y\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sevsnp.system.as_root.os.geteuid", lambda: 1000)
        hint = told.hint(start)
    assert machine.calls() == []
    follow(hint, machine)
    follow("undo: ./doitw prepare_host --undo --yes", machine)
    machine.answer(None)
    capsys.readouterr()
    follow(told.hint(start), machine)
    told.read(capsys.readouterr().out)
    check(HOSTS / GOOD[0])


@remedies(
    PREPARE,
    "what was changed so far is taken back with: ./doitw prepare_host --undo",
    "prepare_host: the rest is undone; boot another kernel, and then: ./doitw prepare_host --undo",
    "move it away, as root: {}",
)
def test_changes_and_their_undo(told: Told, machine: HostMachine, capsys: pytest.CaptureFixture[str]) -> None:
    def start() -> None:
        prepare_host(dry_run=False, undo=False, yes=True, root=machine.root)

    before = machine.content()
    machine.apt(install=100)
    hint = told.hint(start)
    machine.answer("y\n")
    follow(hint, machine)
    assert machine.content() == before
    machine.apt()
    machine.write(UDEV_FILE, "# the administrator's\n")
    told.mends(start)
    (machine.root / f"{UDEV_FILE}.old").unlink()
    machine.reboot()
    capsys.readouterr()
    prepare_host(dry_run=False, undo=True, yes=True, root=machine.root)
    hint = told.read(capsys.readouterr().out)
    machine.reboot(OLD)
    machine.answer("y\n")
    follow(hint, machine)
    assert machine.content() == before


@remedies(
    "sevsnp.host_setup.kernel_package",
    "add {} to the sources of apt, then: ./doitw prepare_host",
    "update the sources of apt, or install Linux 6.11 or newer by hand, then: ./doitw check_host",
)
def test_no_new_kernel_in_apt(told: Told, machine: HostMachine, tree: Path) -> None:
    def start() -> None:
        prepare_host(dry_run=False, undo=False, yes=True, root=machine.root)

    machine.apt(no_suite=True)
    hint = told.hint(start)
    assert "bookworm-backports" in hint
    machine.apt(new="linux-image-6.1.0-41-amd64")
    told.hint(start)
    check(tree)
    machine.apt()
    machine.answer("y\n")
    follow(hint, machine)


@remedies(
    "sevsnp.host_setup.plan",
    "docs/hardware.md says what a host needs: set it up by hand, and look at it with: ./doitw check_host",
)
def test_another_distribution(told: Told, machine: HostMachine) -> None:
    machine.write("etc/os-release", DEBIAN_12.replace("debian", "another"))
    told.instead(
        lambda: prepare_host(dry_run=True, undo=False, yes=False, root=machine.root), lambda: check(HOSTS / GOOD[0])
    )
    assert "By hand" in (PROJECT / "docs/hardware.md").read_text()


@remedies(
    "sevsnp.host_setup.changes",
    "undo by hand what prepare_host has written (docs/hardware.md), and then remove this file",
)
def test_a_damaged_record_of_changes(told: Told, machine: HostMachine) -> None:
    machine.write(RECORD, "{")
    told.mended(
        lambda: prepare_host(dry_run=True, undo=True, yes=False, root=machine.root), (machine.root / RECORD).unlink
    )
    assert (machine.root / "etc/default/grub").read_text() == GRUB
    text = (PROJECT / "docs/hardware.md").read_text()
    assert UDEV_FILE in text and RECORD in text


@remedies(
    "sevsnp.host_setup.recorded",
    "record it on that host, where it is then in build/host_record: ./doitw check_host",
    "remove it from the recording",
    "shorten it to the lines that concern SEV-SNP",
)
@remedies("sevsnp.host_setup.record", "move it out of the way: {}")
def test_missing_and_bad_recordings(told: Told, tree: Path, tmp_path: Path) -> None:
    record = tmp_path / "build" / "host_record"
    record.mkdir(parents=True)
    told.hint(lambda: read_host(record))
    told.mends(lambda: record_host(record, []))
    assert recorded.RELEASE in read_host(record).texts
    log = tree / recorded.KERNEL_LOG
    text = log.read_text()
    log.unlink()
    log.symlink_to("/etc/passwd")
    told.mended(lambda: read_host(tree), log.unlink)
    log.write_text(text + "x" * (1 << 20))
    told.mended(lambda: read_host(tree), lambda: log.write_text(text))
