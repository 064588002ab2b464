# SPDX-License-Identifier: Apache-2.0
"""install_dependencies: which users may install, which are asked, and the message for those who cannot install.

apt-get and sudo are stand-ins on PATH: the real ones would change the machine that runs the tests.
"""

import io
import os
import shutil
import stat
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.project import dependencies
from sevsnp.project.dependencies import DEPENDENCIES, install_command, install_dependencies, is_ready, missing
from sevsnp.system import command, subordinate_ids

PROGRAMS = ("mmdebstrap", "newuidmap", "newgidmap", "ssh", "ssh-keygen")
# "Installs" a package's programs beside itself and notes its words.
APT_GET = """#!/bin/sh
echo "uid $FAKE_UID: apt-get $*" >> "$0.log"
case " $* " in
*" update "*) exit ${FAKE_UPDATE:-0} ;;
esac
for name in mmdebstrap newuidmap newgidmap ssh ssh-keygen; do
    printf '#!/bin/sh\\n' > "${0%/*}/$name" && chmod 755 "${0%/*}/$name"
done
exit ${FAKE_INSTALL:-0}
"""
SUDO = """#!/bin/sh
[ "$1" != -n ] || { shift; [ -n "$FAKE_NO_PASSWORD" ] || { echo "sudo: a password is required" >&2; exit 1; }; }
FAKE_UID=0 exec "$@"
"""


class Machine:
    """A PATH of one directory, a user, and perhaps a terminal to answer on."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        monkeypatch.setattr(command, "_SBIN", ())
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(command, "_KEPT", (*command._KEPT, *FAKES))
        for tool in ("sh", "env", "chmod", "true", "mount"):
            found = shutil.which(tool, path=os.defpath)
            assert found
            (folder / tool).symlink_to(found)
        self.subordinate = (folder / "subuid", folder / "subgid")
        for file in self.subordinate:
            file.write_text("1000:100000:65536\n")
        monkeypatch.setattr(subordinate_ids, "FILES", self.subordinate)
        self.user(0)
        self.answer(None)

    def add(self, name: str, text: str = "#!/bin/sh\n") -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def user(self, uid: int) -> None:
        self.monkeypatch.setattr(os, "geteuid", lambda: uid)
        self.monkeypatch.setenv("FAKE_UID", str(uid))

    def answer(self, text: str | None) -> None:
        """What is typed on the terminal; None where there is none."""
        stdin = io.StringIO(text or "")
        self.monkeypatch.setattr(stdin, "isatty", lambda: text is not None)
        self.monkeypatch.setattr("sys.stdin", stdin)

    def calls(self) -> list[str]:
        log = self.folder / "apt-get.log"
        return log.read_text().splitlines() if log.exists() else []


FAKES = ("FAKE_UID", "FAKE_UPDATE", "FAKE_INSTALL", "FAKE_NO_PASSWORD")
UPDATE = "uid 0: apt-get -o DPkg::Lock::Timeout=300 --quiet update"


def install_line(*packages: str) -> str:
    return f"uid 0: apt-get -o DPkg::Lock::Timeout=300 {' '.join(install_command(packages)[1:])}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path, monkeypatch)
    machine.add("apt-get", APT_GET)
    # Whether this machine has the keyring and ensurepip is its own business.
    here = [name for name in ("debian-archive-keyring", "python3-venv") if name in {d.package for d in missing()}]
    monkeypatch.setattr(dependencies, "DEPENDENCIES", tuple(d for d in DEPENDENCIES if d.package not in here))
    return machine


def test_every_package_has_a_reason() -> None:
    assert all(len(dependency.why) > 20 for dependency in DEPENDENCIES)
    assert len({dependency.package for dependency in DEPENDENCIES}) == len(DEPENDENCIES)


@pytest.mark.parametrize("uid", [0, 1000])
def test_no_rights_are_needed_if_nothing_is_missing(
    machine: Machine, uid: int, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in PROGRAMS:
        machine.add(name)
    machine.user(uid)
    (machine.folder / "apt-get").unlink()
    install_dependencies()
    assert capfd.readouterr().out == "install_dependencies: nothing is missing\n"


def test_only_an_ordinary_user_needs_uidmap(machine: Machine) -> None:
    assert [dependency.package for dependency in missing()] == ["mmdebstrap", "openssh-client"]
    machine.user(1000)
    assert [dependency.package for dependency in missing()] == ["mmdebstrap", "uidmap", "openssh-client"]


def test_any_executable_file_on_path_is_accepted_as_the_program(machine: Machine) -> None:
    machine.add("mmdebstrap")
    (machine.folder / "mmdebstrap").chmod(stat.S_IRUSR)
    assert "mmdebstrap" in [dependency.package for dependency in missing()]
    (machine.folder / "mmdebstrap").chmod(0o755)
    assert "mmdebstrap" not in [dependency.package for dependency in missing()]


def test_root_without_a_terminal_installs_at_once(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    install_dependencies()
    assert machine.calls() == [UPDATE, install_line("mmdebstrap", "openssh-client")]
    out = capfd.readouterr().out
    assert "missing: mmdebstrap: unpacks Debian packages" in out
    assert "missing: openssh-client: " in out
    assert "[Y/n]" not in out
    assert out.endswith("installed mmdebstrap, openssh-client\n")
    install_dependencies()
    assert len(machine.calls()) == 2


def test_the_present_package_lists_are_used_if_the_update_fails(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_UPDATE", "100")
    install_dependencies()
    assert "trying with the present package lists" in capfd.readouterr().out


@pytest.mark.parametrize("answer", ["\n", "y\n", "YES\n"])
def test_on_a_terminal_it_asks(machine: Machine, answer: str, capfd: pytest.CaptureFixture[str]) -> None:
    machine.answer(answer)
    install_dependencies()
    assert machine.calls()[-1] == install_line("mmdebstrap", "openssh-client")
    assert "Install with: apt-get install --yes --no-install-recommends mmdebstrap openssh-client [Y/n]" in (
        capfd.readouterr().out
    )


@pytest.mark.parametrize("answer", ["n\n", "no\n", "what?\n", ""])
def test_any_answer_but_yes_installs_nothing(machine: Machine, answer: str) -> None:
    machine.answer(answer)
    with pytest.raises(UserError, match="not installed: mmdebstrap, openssh-client") as refused:
        install_dependencies()
    assert refused.value.hint == f"run as root: {' '.join(install_command(['mmdebstrap', 'openssh-client']))}"
    assert machine.calls() == []


BY_HAND = "run as root: apt-get install --yes --no-install-recommends mmdebstrap uidmap openssh-client"


@pytest.mark.parametrize("answer", [None, "y\n"], ids=["unattended", "terminal"])
def test_an_ordinary_user_without_sudo_gets_the_command(machine: Machine, answer: str | None) -> None:
    machine.user(1000)
    machine.answer(answer)
    with pytest.raises(UserError, match="only root can install them: sudo: command not found") as refused:
        install_dependencies()
    assert refused.value.hint == BY_HAND
    assert machine.calls() == []


def test_sudo_with_a_password_and_no_terminal_gives_the_command(machine: Machine) -> None:
    machine.user(1000)
    machine.add("sudo", SUDO)
    with pytest.raises(UserError, match="sudo needs a password, and there is no terminal") as refused:
        install_dependencies()
    assert refused.value.hint == BY_HAND
    assert machine.calls() == []


def test_sudo_without_a_password_installs_without_a_question(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.user(1000)
    machine.add("sudo", SUDO)
    monkeypatch.setenv("FAKE_NO_PASSWORD", "1")
    install_dependencies()
    assert machine.calls() == [UPDATE, install_line("mmdebstrap", "uidmap", "openssh-client")]


def test_sudo_on_a_terminal_asks_for_its_password_itself(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.user(1000)
    machine.add("sudo", SUDO)
    machine.answer("y\n")
    install_dependencies()
    assert machine.calls() == [UPDATE, install_line("mmdebstrap", "uidmap", "openssh-client")]
    assert "Install with: sudo apt-get install" in capfd.readouterr().out


def test_a_failure_of_apt_get_is_an_error(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_INSTALL", "100")
    with pytest.raises(UserError, match=r"apt-get could not install mmdebstrap, openssh-client \(exit code 100\)"):
        install_dependencies()


def test_a_program_that_is_missing_after_the_installation_is_an_error(machine: Machine) -> None:
    machine.add("apt-get", "#!/bin/sh\nexit 0\n")
    with pytest.raises(UserError, match="still not found: mmdebstrap, openssh-client"):
        install_dependencies()


def test_a_machine_without_apt(machine: Machine) -> None:
    (machine.folder / "apt-get").unlink()
    with pytest.raises(UserError, match="expected Debian or Ubuntu") as refused:
        install_dependencies()
    assert refused.value.hint.endswith("what Debian calls: mmdebstrap, openssh-client")


@pytest.mark.parametrize("number", [0, 1])
def test_missing_subordinate_ids_are_reported_before_anything_is_fetched(
    machine: Machine, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    machine.user(1000)
    for program in PROGRAMS:
        machine.add(program)
    install_dependencies()  # control
    assert is_ready() and "nothing is missing" in capfd.readouterr().out
    machine.subordinate[number].write_text("another:100000:65536\n")
    assert not is_ready()
    with pytest.raises(UserError, match=r"no range of subordinate ids for \S+, expected one of 65536") as refused:
        install_dependencies()
    assert refused.value.hint.startswith("run as root: usermod --add-subuids ")
    assert capfd.readouterr().out == ""
    machine.user(0)  # who needs none
    assert is_ready()
