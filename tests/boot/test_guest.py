# SPDX-License-Identifier: Apache-2.0
"""The guest that owners get: a fresh identity, evidence while it runs, writable directories, a clean power-off."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import Layer, make_rootfs
from sevsnp.images.filesystem import make_erofs
from sevsnp.images.verity import make_verity
from sevsnp.owner.attestation import attest
from sevsnp.vm_config.config import VmConfig
from sevsnp.vm_config.verity_word import fixed_salt
from tests.conftest import Built
from tests.support.firmware_machine import from_source
from tests.support.hands import prompts
from tests.support.harness import BOOT_SECONDS, FORWARDED
from tests.support.shared_guests import Attested, Running, attested, ssh_unchecked, started, variant

pytestmark = pytest.mark.boot

IDENTITY = "cat /etc/machine-id /etc/ssh/ssh_host_*_key.pub"
# What makes the root much smaller; and python and network tools, which the agent must not need.
UNNEEDED = ("usr/share/*", "usr/lib/locale", "var/lib/dpkg", "var/lib/apt", "var/cache", "usr/lib/apt", "usr/lib/gcc*")
PYTHON = ("usr/bin/python*", "usr/bin/py*", "usr/lib/python*", "usr/lib/x86_64-linux-gnu/libpython*")
NETWORK = ("usr/bin/ip", "usr/sbin/ip", "usr/bin/ss", "usr/sbin/bridge", "usr/sbin/tc", "usr/bin/ssh", "usr/bin/scp")


def accepted(running: Running) -> bool:
    return bool(attest(running.config, "127.0.0.1", running.port, running.guest.root))


def check_writable(guest: Attested, kind: str) -> None:
    """/etc, /home, /var and /tmp take files, / and /usr do not, and all of it is in memory."""
    for name in ("etc", "home", "var", "tmp"):
        guest.ssh(f"sudo sh -c 'echo kept > /{name}/.probe' && grep -qx kept /{name}/.probe")
        shown = guest.ssh(f"findmnt -no FSTYPE /{name}").strip()
        assert shown == ("tmpfs" if name == "tmp" else kind)
    for name in ("", "usr/", "usr/bin/", "boot/"):
        assert guest.ssh(f"sudo touch /{name}.probe 2>&1 || true").strip().endswith("Read-only file system")
    assert guest.ssh("findmnt -no OPTIONS /").startswith("ro,")


def check_poweroff(guest: Attested) -> None:
    """The guest's own poweroff ends QEMU, and nothing asks for a password on the way."""
    guest.ssh("sudo systemctl poweroff || true")
    log = guest.running.guest.wait_end(90)
    assert guest.running.guest.process.returncode == 0
    assert prompts(log) == []


def test_every_boot_has_its_own_identity(guest: Attested, copied: Attested, impostor: Running, built: Built) -> None:
    """Three boots of one image, byte for byte the same."""
    assert guest.running.config.launch.disks == copied.running.config.launch.disks == impostor.config.launch.disks
    shown = [guest.ssh(IDENTITY), copied.ssh(IDENTITY), ssh_unchecked(built, impostor.ssh_port, IDENTITY).stdout]
    machine_ids, host_keys = zip(*(one.strip().split("\n") for one in shown), strict=True)
    assert all(len(one) == 32 for one in machine_ids)
    assert all(one.startswith("ssh-ed25519 ") for one in host_keys)
    assert len(set(machine_ids)) == len(set(host_keys)) == len(shown)


def test_the_overlay_is_writable(guest: Attested) -> None:
    check_writable(guest, "overlay")


def test_the_copy_is_writable(copied: Attested) -> None:
    check_writable(copied, "tmpfs")
    # What was there came along, with owners and modes; the overlay, where nothing is copied, is the control.
    assert copied.ssh("stat -c '%n %u %g %a' /etc/shadow /home/user /var/tmp /etc/sudoers").splitlines() == [
        "/etc/shadow 0 42 640", "/home/user 1000 1000 700", "/var/tmp 0 0 1777", "/etc/sudoers 0 0 440",
    ]  # fmt: skip


def test_the_command_line_is_the_measured_one(guest: Attested) -> None:
    measured = guest.running.config.launch.cmdline.path.read_text()
    # The firmware puts this in front of what it was given and checked; the one from source puts it behind.
    words = (measured, "initrd=initrd") if from_source(guest.running.built) else ("initrd=initrd", measured)
    assert guest.ssh("cat /proc/cmdline").strip() == " ".join(words)


def answer(port: int) -> bytes:
    """What the guest sends at a port of 127.0.0.1; nothing if it closes the connection."""
    with (
        contextlib.suppress(ConnectionResetError),
        socket.create_connection(("127.0.0.1", port), timeout=BOOT_SECONDS) as connection,
    ):
        return connection.recv(100)
    return b""


def test_a_forwarded_port_reaches_the_guest(guest: Attested) -> None:
    """This works although the guest's own network is restricted."""
    options = guest.running.guest.options
    ((here, inside),) = options.forwards
    assert options.restricted and inside == FORWARDED
    assert answer(here) == b""  # nothing listens in the guest
    serve = f"import socket; s = socket.create_server(('', {inside})); s.accept()[0].sendall(b'from the guest')"
    guest.ssh(
        f'sudo systemd-run --quiet python3 -c "{serve}"; until ss -Hltn sport = :{inside} | grep -q .; do :; done'
    )
    assert answer(here) == b"from the guest"


def test_nothing_in_the_guest_failed_to_start(guest: Attested) -> None:
    assert guest.ssh("systemctl is-system-running --wait || systemctl --failed").strip() == "running"


def test_the_agent_survives_restarts_of_systemd_and_its_services(guest: Attested) -> None:
    """systemd does not know the agent's process, and the agent uses no file of the root."""
    assert accepted(guest.running)
    guest.ssh("sudo systemctl daemon-reexec")
    guest.ssh("sudo sh -c 'sync; echo 3 > /proc/sys/vm/drop_caches'")
    guest.ssh("sudo systemctl restart ssh systemd-networkd systemd-journald dbus")
    for _ in range(3):
        assert accepted(guest.running)
    assert float(guest.ssh("cut -d' ' -f1 /proc/uptime")) > 10


def small_root(built: Built, directory: Path) -> VmConfig:
    """A VM config with an EROFS root that has neither python nor network tools; with ACPI=off."""
    tools = built.build / "snp-release" / "bin"
    tar, image, tree = directory / "root.tar", directory / "root.img", directory / "tree.img"
    removed = Layer("small", [], remove=(*UNNEEDED, *PYTHON, *NETWORK))
    make_rootfs([Layer.from_tar(built.build / "guest" / "rootfs.tar"), removed], tar)
    make_erofs(tar, image, tools=tools)
    parameters = make_verity(image, tree, directory / "roothash", salt=fixed_salt("small"), tools=tools)
    line = built.config("emulated").launch.cmdline.path.read_text()
    old = next(word for word in line.split() if word.startswith("sevsnp.verity="))
    return variant(
        built,
        directory,
        words={old: f"sevsnp.verity={parameters.word()}", "sevsnp.rootfs=ext4": "sevsnp.rootfs=erofs"},
        disks={"verity-data": image, "verity-hash": tree},
        acpi="off",
    )


@pytest.fixture(scope="module")
def small(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attested]:
    directory = tmp_path_factory.mktemp("small")
    with started(built, small_root(built, directory), directory / "state") as running:
        yield attested(running)


@pytest.mark.full
def test_the_agent_needs_no_program_of_the_root(small: Attested, guest: Attested) -> None:
    look = "command -v python3 ip ss scp || echo none"
    assert small.ssh(look).strip() == "none"
    assert "none" not in guest.ssh(look)  # control: an ordinary root has them
    assert accepted(small.running)


@pytest.mark.full
def test_an_erofs_root_boots(small: Attested) -> None:
    assert small.ssh("findmnt -no FSTYPE /").strip() == "erofs"
    check_writable(small, "overlay")


@pytest.mark.full
def test_poweroff_ends_qemu_without_acpi(small: Attested) -> None:
    """This is the last test that uses the guest ``small``."""
    assert "acpi=off" in small.ssh("cat /proc/cmdline").split()
    check_poweroff(small)


@pytest.mark.full
def test_two_vcpus_with_acpi(built: Built, tmp_path: Path) -> None:
    config = variant(built, tmp_path, acpi="on", vcpus=2)
    with started(built, config, tmp_path / "state") as running:
        two = attested(running)
        assert two.ssh("nproc").strip() == "2"
        assert accepted(running)
        check_poweroff(two)
