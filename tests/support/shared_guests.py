# SPDX-License-Identifier: Apache-2.0
"""Guests that many tests share: an attested one, and one that an attacker runs. Each boots once in a session."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevsnp.e2e.guest import wait_for_evidence
from sevsnp.errors import UserError
from sevsnp.guests.local import sshd_answers
from sevsnp.owner.attestation import attest_guest
from sevsnp.system.command import run, spawned
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import Disk, VmConfig
from tests.conftest import Built, until_last_use
from tests.support.configs import honest, other_words, without_stage
from tests.support.hands import Hands, hands_on, sockets
from tests.support.harness import BOOT_SECONDS, Guest, boot
from tests.support.waiting import wait_until


class Login:
    """One ssh connection for all commands in a guest: on an emulated processor each login takes a second."""

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._socket, self._stack = directory / "login", stack
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, config: Path, command: str) -> str:
        """Run a command in the guest through an ssh configuration. If the connection has ended, ssh logs in again."""
        if self._process is None:
            words: list[str | Path] = ["ssh", "-F", config, "-M", "-N", "-S", self._socket, "guest"]
            self._process = process = self._stack.enter_context(spawned(words))
            wait_until(lambda: self._socket.exists() or process.poll() is not None, lambda: "no login", BOOT_SECONDS)
        return run(["ssh", "-F", config, "-S", self._socket, "guest", command], timeout=60).decode()


@dataclass(frozen=True)
class Running:
    """A running guest, the VM config from which it was started, a host's access to it, and its owner's."""

    built: Built
    config: VmConfig
    guest: Guest
    hands: Hands
    login: Login

    @property
    def port(self) -> int:
        """Its agent's port at 127.0.0.1."""
        return self.guest.options.attest_port

    @property
    def ssh_port(self) -> int:
        return self.guest.options.ssh_port

    def attest_into(self, output: Path, *, port: int | None = None, ssh_port: int | None = None) -> None:
        """`attest_verity`, at other ports if an attacker is in between."""
        attest_guest(
            vm_config=self.config.source,
            host="127.0.0.1",
            port=port or self.port,
            ssh_port=ssh_port or self.ssh_port,
            emulated_root=self.guest.root,
            identity=self.built.keys.user_private,
            user="user",
            template=self.built.project / "templates" / "ssh_config.j2",
            output=output,
        )


@dataclass(frozen=True)
class Attested:
    """A guest whose evidence was accepted; ``directory`` has the files that attestation wrote."""

    running: Running
    directory: Path

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"

    def ssh(self, command: str) -> str:
        return self.running.login.run(self.ssh_config, command)


@contextlib.contextmanager
def started(
    built: Built, config: VmConfig, state: Path, extra: tuple[str, ...] = (), accelerator: str = ""
) -> Iterator[Running]:
    """Boot an untampered config with the host's own QEMU options ``extra``; yields early in the boot."""
    with (
        sockets() as where,
        boot(config.launch, built.qemu, state, extra=(*where.arguments, *extra), accelerator=accelerator) as guest,
        hands_on(where) as hands,
        contextlib.ExitStack() as stack,
    ):
        yield Running(built, config, guest, hands, Login(where.directory, stack))


def attested(running: Running) -> Attested:
    """Wait for evidence, verify it, and wait until sshd answers."""
    wait_for_evidence(running.guest.process, running.port, BOOT_SECONDS)
    directory = running.guest.options.state / "attested"
    directory.mkdir(exist_ok=True)
    running.attest_into(directory)
    wait_for_sshd(running)
    return Attested(running, directory)


# Seconds for one try: QEMU's user network lets a connection hang that came too early.
TRY = 10.0


def wait_for_sshd(running: Running, seconds: float = BOOT_SECONDS) -> None:
    """Wait until sshd sends its banner. A connection alone proves nothing: QEMU accepts it before the guest does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and running.guest.process.poll() is None:
        if sshd_answers("127.0.0.1", running.ssh_port, TRY):
            return
        time.sleep(0.3)
    raise AssertionError(f"no sshd in {seconds:.0f} s:\n{running.guest.log()[-3000:]}")


def ssh_unchecked(built: Built, port: int, *words: str) -> "subprocess.CompletedProcess[str]":
    """ssh of a careless user: it accepts any host key."""
    return subprocess.run(
        [
            "ssh",
            "-v",
            *("-F", os.devnull),
            *("-o", "StrictHostKeyChecking=no"),
            *("-o", f"UserKnownHostsFile={os.devnull}"),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", "BatchMode=yes"),
            *("-o", "ConnectTimeout=120"),
            *("-i", str(built.keys.user_private)),
            *("-p", str(port)),
            "user@127.0.0.1",
            *words,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def variant(
    built: Built,
    directory: Path,
    *,
    words: Mapping[str, str] | None = None,
    disks: Mapping[str, Path] | None = None,
    vcpus: int = 1,
    acpi: str = "own",
) -> VmConfig:
    """The emulated VM config with other words on the command line (by old text), disks (by role) or vCPUs.

    A complete and consistent config, with its own launch digest, in ``directory``. ``acpi`` is the setting ACPI; the
    stage is for one vCPU.
    """
    assert vcpus == 1 or acpi == "on"
    config = built.config("emulated")
    if acpi != "own":
        config = without_stage(built.build, config, directory / "acpi", acpi=acpi == "on")

    def disk(old: Disk) -> Disk:
        path = (disks or {}).get(old.role, old.path)
        return old if path == old.path else Disk(old.role, path, path.stat().st_size, sha256_file(path))

    return honest(
        config,
        directory,
        cmdline=other_words(config, directory, words or {}),
        disks=tuple(disk(old) for old in config.launch.disks),
        vcpus=vcpus,
    )


_STARTED = pytest.StashKey[dict[str, Running]]()


def shared(
    request: pytest.FixtureRequest, name: str, make: Callable[[Path], VmConfig], accelerator: str = ""
) -> Running:
    """The single guest of that name, from the first fixture that asks for it to the last test that uses it."""
    running = request.config.stash.setdefault(_STARTED, {})
    if name not in running:
        directory = request.getfixturevalue("tmp_path_factory").mktemp(name)
        built = request.getfixturevalue("built")
        running[name] = until_last_use(request.config, name).enter_context(
            started(built, make(directory), directory / "state", (), accelerator)
        )
    return running[name]


@pytest.fixture(scope="session")
def guest(request: pytest.FixtureRequest, built: Built) -> Attested:
    """The guest of the emulated VM config, untampered, attested and reachable by ssh."""
    # One boot of each workflow uses QEMU's own emulation, on every machine.
    return attested(shared(request, "guest", lambda _: built.config("emulated"), "tcg"))


@pytest.fixture(scope="session")
def impostor(request: pytest.FixtureRequest, built: Built) -> Running:
    """A guest of the production VM config, here without SNP: the same image and the same users, but no evidence."""
    running = shared(request, "impostor", lambda _: built.config("snp"))
    wait_for_sshd(running)
    return running


@pytest.fixture(scope="session")
def copied(request: pytest.FixtureRequest, built: Built) -> Attested:
    """The same image with another measured command line: writable directories by copy."""
    words = {"sevsnp.writable=overlay": "sevsnp.writable=copy"}
    return attested(shared(request, "copied", lambda directory: variant(built, directory, words=words)))


def refusal(call: Callable[[], object], *words: str) -> str:
    """The message of the UserError that ``call`` raises; it must have all ``words``."""
    with pytest.raises(UserError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)
