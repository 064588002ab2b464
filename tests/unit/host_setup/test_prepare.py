# SPDX-License-Identifier: Apache-2.0
"""prepare_host: its plan, its question, its changes in a root directory, and that all changes are undone."""

import json
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.host_setup.changes import RECORD, Changes, read_changes
from sevsnp.host_setup.kernel_package import KERNELS, simulate
from sevsnp.host_setup.plan import GRUB_FILE, PARAMETERS, UDEV_FILE, Machine, make_plan
from sevsnp.host_setup.prepare import look, prepare_host
from sevsnp.host_setup.recorded import CPUINFO
from tests.support.host_machine import DEBIAN_12, NEW, OLD, UBUNTU_24, HostMachine
from tests.support.hosts import host


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostMachine:
    return HostMachine(tmp_path, monkeypatch)


def run(machine: HostMachine, *, dry_run: bool = False, undo: bool = False, yes: bool = False) -> None:
    prepare_host(dry_run=dry_run, undo=undo, yes=yes, root=machine.root)


MACHINE = Machine(DEBIAN_12, OLD, "quiet", "kvm:x:104:\n", "somebody", True, {})


def test_the_plan_for_a_new_machine() -> None:
    plan = make_plan(MACHINE)
    assert plan.package and (plan.package.name, plan.package.suite) == ("linux-image-amd64", "bookworm-backports")
    assert (set(plan.files), plan.user, plan.notes) == ({GRUB_FILE, UDEV_FILE}, "somebody", ())
    assert plan.reboot and not plan.empty and len(plan.lines()) == 4
    assert make_plan(Machine(UBUNTU_24, "6.8.0-90-generic", "", "", "", True, {})).package == KERNELS["ubuntu", "24.04"]


def test_the_plan_for_a_machine_that_is_ready() -> None:
    files = make_plan(MACHINE).files
    ready = Machine(DEBIAN_12, NEW, " ".join(PARAMETERS), "kvm:x:104:other,somebody\n", "somebody", True, files)
    plan = make_plan(ready)
    assert plan.empty and not plan.reboot and plan.lines() == [] and plan.notes == ()


@pytest.mark.parametrize(
    ("kernel", "wanted"), [("6.1.0-40-amd64", True), ("6.10.9", True), ("6.11.0", False), ("7.0.1", False), ("", True)]
)
def test_a_new_kernel_only_where_it_is_needed(kernel: str, wanted: bool) -> None:
    plan = make_plan(Machine(DEBIAN_12, kernel, "", "", "", True, {}))
    assert (plan.package is not None) is wanted


def test_the_plan_names_what_only_the_user_can_do() -> None:
    plan = make_plan(Machine(DEBIAN_12, NEW, "amd_iommu=off iommu=nopt", "", "", False, {}))
    assert plan.notes == (
        "by hand: take amd_iommu=off out of the kernel command line",
        "by hand, because there is no update-grub: put on the kernel command line: "
        "kvm_amd.sev=1 kvm_amd.sev_es=1 kvm_amd.sev_snp=1",
    )
    assert GRUB_FILE not in plan.files


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('PRETTY_NAME="Fedora Linux 42"\nID=fedora\nVERSION_ID=42\n', "Fedora Linux 42"),
        ("PRETTY_NAME='Ubuntu 22.04.5 LTS'\nID=ubuntu\nVERSION_ID=\"22.04\"\n", "Ubuntu 22.04.5 LTS"),
        ('PRETTY_NAME="Debian GNU/Linux forky/sid"\nID=debian\n', "Debian GNU/Linux forky/sid"),
        ("", "a system without a name in os-release"),
    ],
)
def test_an_unknown_distribution_is_refused_in_one_line(machine: HostMachine, text: str, name: str) -> None:
    machine.write("etc/os-release", text)
    with pytest.raises(UserError, match="not known to prepare_host") as caught:
        run(machine, yes=True)
    assert caught.value.message.startswith(f"{name}: ") and "\n" not in caught.value.message
    assert machine.calls() == []


def test_a_machine_that_cannot_start_snp_guests_is_named(
    machine: HostMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, words in (("intel", "not AMD's"), ("virtual-machine", "in a virtual machine"), ("good-genoa", "")):
        machine.write(CPUINFO, host(name).texts[CPUINFO])
        run(machine, dry_run=True)
        shown = capsys.readouterr().out
        assert ("no SEV-SNP guest will start here" in shown) is bool(words) and words in shown


def test_a_dry_run_changes_nothing(machine: HostMachine, capsys: pytest.CaptureFixture[str]) -> None:
    before = machine.content()
    machine.answer("y\n")
    run(machine, dry_run=True)
    shown = capsys.readouterr().out
    for words in (
        "linux-image-amd64 from bookworm-backports",
        GRUB_FILE,
        UDEV_FILE,
        "add somebody",
        "nothing was changed",
    ):
        assert words in shown
    assert (machine.content(), machine.calls()) == (before, [])


@pytest.mark.parametrize("answer", ["\n", "n\n", "no\n", "", "maybe\n"])
def test_without_consent_nothing_is_changed(machine: HostMachine, answer: str) -> None:
    before = machine.content()
    machine.answer(answer)
    with pytest.raises(UserError, match="nothing was changed"):
        run(machine)
    assert (machine.content(), machine.calls()) == (before, [])
    machine.answer("y\n")  # control
    run(machine)
    assert machine.content() != before


def test_without_a_terminal_changes_need_the_option_yes(machine: HostMachine) -> None:
    before = machine.content()
    with pytest.raises(UserError, match="no terminal to ask on"):
        run(machine)
    assert (machine.content(), machine.calls()) == (before, [])
    run(machine, yes=True)
    with pytest.raises(UserError, match="no terminal to ask on"):
        run(machine, undo=True)
    assert (machine.root / GRUB_FILE).exists()


def test_all_planned_changes_are_made(machine: HostMachine, capsys: pytest.CaptureFixture[str]) -> None:
    run(machine, yes=True)
    apt_get = "apt-get -o DPkg::Lock::Timeout=300"
    options = "install --yes --no-install-recommends --target-release bookworm-backports linux-image-amd64"
    assert machine.calls() == [
        f"{apt_get} --quiet update", f"{apt_get} {options}", "usermod --append --groups kvm somebody", "update-grub ",
        "udevadm control --reload", "udevadm trigger --name-match=sev",
    ]  # fmt: skip
    assert "reboot this machine now" in capsys.readouterr().out
    for path in (GRUB_FILE, UDEV_FILE, RECORD):
        assert (machine.root / path).stat().st_mode & 0o777 == 0o644
    assert 'KERNEL=="sev", GROUP="kvm", MODE="0660"' in (machine.root / UDEV_FILE).read_text()
    assert "kvm:x:104:somebody\n" in (machine.root / "etc/group").read_text()


def test_the_kernel_parameters_come_after_all_others(machine: HostMachine) -> None:
    """The kernel uses the last word: it overrides iommu=pt in the user's own file."""
    run(machine, yes=True)
    assert (machine.root / "boot-cmdline").read_text().split() == ["console=ttyS0", "quiet", "iommu=pt", *PARAMETERS]


def test_a_second_run_finds_nothing(machine: HostMachine, capsys: pytest.CaptureFixture[str]) -> None:
    run(machine, yes=True)
    machine.reboot()
    done = machine.calls()
    capsys.readouterr()
    run(machine)
    assert "nothing to change" in capsys.readouterr().out and machine.calls() == done
    assert make_plan(look(machine.root)).empty


def test_all_is_undone_and_nothing_else(machine: HostMachine) -> None:
    before = machine.content()
    run(machine, yes=True)
    assert machine.content() != before
    assert (machine.root / "dpkg/linux-image-amd64").exists()
    run(machine, undo=True, yes=True)
    assert machine.content() == before
    assert not (machine.root / RECORD).parent.exists()
    machine.reboot(OLD)
    assert (machine.root / "proc/cmdline").read_text().split() == ["console=ttyS0", "quiet", "iommu=pt"]


def test_undo_without_anything_done(machine: HostMachine, capsys: pytest.CaptureFixture[str]) -> None:
    run(machine, undo=True)
    assert "nothing to undo" in capsys.readouterr().out and machine.calls() == []


def test_undo_as_a_dry_run(machine: HostMachine, capsys: pytest.CaptureFixture[str]) -> None:
    run(machine, yes=True)
    content, calls = machine.content(), machine.calls()
    capsys.readouterr()
    run(machine, undo=True, dry_run=True)
    shown = capsys.readouterr().out
    assert f"remove /{GRUB_FILE}" in shown and f"linux-image-{NEW}" in shown and "take somebody out" in shown
    assert (machine.content(), machine.calls()) == (content, calls)


def test_the_running_kernel_stays(machine: HostMachine, capsys: pytest.CaptureFixture[str]) -> None:
    before = machine.content()
    run(machine, yes=True)
    machine.reboot()
    run(machine, undo=True, yes=True)
    assert f"this machine runs Linux {NEW}" in capsys.readouterr().out
    assert (machine.root / "lib/modules" / NEW).is_dir() and not (machine.root / GRUB_FILE).exists()
    machine.reboot(OLD)
    run(machine, undo=True, yes=True)
    assert machine.content() == before


def test_undo_restores_the_version_of_an_installed_package(
    machine: HostMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    """Debian 12 already has the metapackage. It must stay installed: it brings the updates of the old kernel."""
    machine.apt(new=f"linux-image-{NEW} linux-image-amd64 linux-base")
    machine.write("dpkg/linux-image-amd64", "6.1.140-1\n")
    machine.write("dpkg/linux-base", "4.9\n")
    before = machine.content()
    run(machine, yes=True)
    changes = read_changes(machine.root)
    assert changes.packages == (f"linux-image-{NEW}",)
    assert changes.upgraded == {"linux-image-amd64": "6.1.140-1", "linux-base": "4.9"}
    run(machine, yes=True)  # again, before the reboot: the versions from before the first run stay the ones to restore
    assert read_changes(machine.root) == changes
    run(machine, undo=True, yes=True)
    assert "left: newer versions of linux-base" in capsys.readouterr().out
    assert machine.content() == {**before, "dpkg/linux-base": b"new\n"}
    assert machine.calls()[-1].endswith(f"linux-image-amd64=6.1.140-1 linux-image-{NEW}-")


def test_undo_keeps_a_file_that_was_changed_later(machine: HostMachine, capsys: pytest.CaptureFixture[str]) -> None:
    run(machine, yes=True)
    (machine.root / GRUB_FILE).write_text("# the user's own\n")
    run(machine, undo=True, yes=True)
    assert "left: " in capsys.readouterr().out
    assert (machine.root / GRUB_FILE).read_text() == "# the user's own\n" and not (machine.root / UDEV_FILE).exists()


def test_undo_keeps_an_earlier_member_of_the_group(machine: HostMachine) -> None:
    machine.write("etc/group", "kvm:x:104:somebody\n")
    run(machine, yes=True)
    run(machine, undo=True, yes=True)
    assert (machine.root / "etc/group").read_text() == "kvm:x:104:somebody\n"
    assert not any("gpasswd" in call for call in machine.calls())


def test_a_file_of_another_origin_is_not_overwritten(machine: HostMachine) -> None:
    machine.write(UDEV_FILE, "# the administrator's\n")
    with pytest.raises(UserError, match="found a file that prepare_host did not write"):
        run(machine, yes=True)
    assert machine.calls() == [] and (machine.root / UDEV_FILE).read_text() == "# the administrator's\n"


def test_an_installation_that_fails_can_be_undone(machine: HostMachine) -> None:
    before = machine.content()
    machine.apt(install=100)
    with pytest.raises(UserError, match="exit code 100") as caught:
        run(machine, yes=True)
    assert "--undo" in caught.value.hint
    assert read_changes(machine.root).packages == (f"linux-image-{NEW}", "linux-image-amd64")
    run(machine, undo=True, yes=True)
    assert machine.content() == before


def test_the_kernel_that_apt_has_is_too_old(machine: HostMachine) -> None:
    machine.apt(new="linux-image-6.1.0-41-amd64 linux-image-amd64")
    before = machine.content()
    with pytest.raises(UserError, match=r"would install linux-image-6\.1\.0-41-amd64.*expected Linux 6\.11"):
        run(machine, yes=True)
    assert machine.content() == before
    machine.write("lib/modules/6.12.9/kernel", "")  # installed already, and not booted
    assert simulate(KERNELS["debian", "12"], machine.root).new


SIMULATION = """\
Reading package lists...
The following NEW packages will be installed:
  linux-image-6.12.43+deb12-amd64
Inst linux-base [4.9] (4.12.1~deb12u1 Debian:12.15/oldstable, Debian-Security:12/oldstable-security [all])
Inst linux-image-6.12.43+deb12-amd64 (6.12.43-1~bpo12+1 Debian Backports:stable-backports [amd64])
Inst linux-image-amd64 [6.1.140-1] (6.12.43-1~bpo12+1 Debian Backports:stable-backports [amd64]) []
Conf linux-base (4.12.1~deb12u1 Debian:12.15/oldstable [all])
"""


def test_the_simulation_of_apt_is_parsed(machine: HostMachine) -> None:
    machine.add("apt-get", f"#!/bin/sh\nwhile read -r line; do echo \"$line\"; done <<'END'\n{SIMULATION}END\n")
    found = simulate(KERNELS["debian", "12"], machine.root)
    assert found.new == ("linux-image-6.12.43+deb12-amd64",)
    assert found.upgraded == {"linux-base": "4.9", "linux-image-amd64": "6.1.140-1"}


def test_a_suite_that_apt_does_not_know(machine: HostMachine) -> None:
    machine.apt(no_suite=True, update=100)
    with pytest.raises(UserError, match="apt-get finds no linux-image-amd64") as caught:
        run(machine, yes=True)
    assert "bookworm-backports" in caught.value.hint


def test_a_failed_update_of_the_package_lists_is_not_fatal(
    machine: HostMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.apt(update=100)
    run(machine, yes=True)
    assert "going on with the present ones" in capsys.readouterr().out and (machine.root / GRUB_FILE).exists()


def test_an_ordinary_user_becomes_root_through_sudo(machine: HostMachine) -> None:
    machine.ordinary(sudo=":")
    run(machine, yes=True)
    changing = [call for call in machine.calls() if not call.startswith("sudo:")]
    assert changing == [] and len(machine.calls()) == 6


@pytest.mark.parametrize(("sudo", "words"), [(None, "sudo: command not found"), ("exit 1", "sudo needs a password")])
def test_a_user_who_cannot_become_root(machine: HostMachine, sudo: str | None, words: str) -> None:
    machine.ordinary(sudo=sudo)
    before = machine.content()
    with pytest.raises(UserError, match=words) as caught:
        run(machine, yes=True)
    assert caught.value.hint.startswith("run as root: ") and machine.content() == before


def test_the_record(tmp_path: Path) -> None:
    assert not read_changes(tmp_path)
    changes = Changes({}).plus(files={"etc/a": "x"}, packages=("p",), upgraded={"q": "1"}, users=("u",))
    changes = changes.plus(files={"etc/b": ""}, packages=("p",), upgraded={"p": "1", "q": "2", "r": "3"}, users=("u",))
    (tmp_path / RECORD).parent.mkdir(parents=True)
    (tmp_path / RECORD).write_text(changes.text())
    assert read_changes(tmp_path) == changes and set(changes.files) == {"etc/a", "etc/b"}
    # What the first run has added is to be removed, and what it has upgraded is to be as it was before that.
    assert (changes.packages, changes.users, changes.upgraded) == (("p",), ("u",), {"q": "1", "r": "3"})


REST = '"packages": [], "upgraded": {}, "users": []'
DAMAGED = (
    "", "[]", "{}", "\0", '{"format": 1, "files": {}}', '{"format": 1, "format": 1}',
    f'{{"format": 2, "files": {{}}, {REST}}}',
    f'{{"format": 1, "files": {{"a": 1}}, {REST}}}',
    f'{{"format": 1, "files": [1], {REST}}}',
)  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record(machine: HostMachine, text: str) -> None:
    machine.write(RECORD, text)
    for undo in (False, True):
        with pytest.raises(UserError, match="not a record of prepare_host"):
            run(machine, undo=undo, yes=True)
    assert machine.calls() == []


def test_undo_removes_only_files_with_the_recorded_content(machine: HostMachine) -> None:
    """A file that the record names with another content is not removed, whatever file it is."""
    document = {"format": 1, "files": {"etc/default/grub": "0" * 64}, "packages": [], "upgraded": {}, "users": []}
    machine.write(RECORD, json.dumps(document))
    run(machine, undo=True, yes=True)
    assert (machine.root / "etc/default/grub").exists()
