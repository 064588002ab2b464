# SPDX-License-Identifier: Apache-2.0
"""One guest of the end-to-end run: the host's ./run and its ports, and the owner's waiting and login."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.e2e.stages import Stages
from sevsnp.errors import UserError
from sevsnp.host.console import boot_stage, read_console
from sevsnp.owner.client import NONCE_SIZE, ask
from sevsnp.owner.kept import places
from sevsnp.system import progress
from sevsnp.system.command import run, spawned
from sevsnp.system.files import write_atomic
from sevsnp.vm_config.config import read_vm_config

BOOT_SECONDS = 300.0
_STOP_SECONDS = 120.0


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def hosted(bundle: Path, qemu: Path, arguments: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a bundle's ./run as a process; it and its QEMU end with the context, and also if this process ends."""
    run_script = (bundle / "run").absolute()
    variables = {"QEMU": str(qemu.absolute())}
    with spawned([run_script, *arguments], cwd=bundle, env=variables, stderr=subprocess.PIPE) as process:
        yield process


def wait_for_evidence(
    process: "subprocess.Popen[bytes]", port: int, seconds: float, console: Path | None = None
) -> None:
    """Wait until the guest's agent answers at the attestation port. Raises UserError if the guest ends or time is up.

    A connection alone proves nothing: QEMU's user network accepts it before the guest does. The progress display comes
    from the log ``console``.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            message = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
            raise UserError(f"the guest ended before it answered (exit code {process.returncode})\n{message}")
        if console:
            progress.step(f"boot: {boot_stage(read_console(console))}")
        try:
            ask("127.0.0.1", port, os.urandom(NONCE_SIZE), timeout=3)
            return
        except UserError as error:
            last = error.message
        time.sleep(0.3)
    raise UserError(
        f"no evidence from the guest in {seconds:.0f} s: {last}", f"its console: {console}" if console else ""
    )


def wait_for_login(config: Path, seconds: float = BOOT_SECONDS) -> None:
    """Wait until the guest's sshd answers; it starts after the agent. Raises UserError if time is up."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            ssh(config, "true", timeout=40)
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.5)


def ssh(config: Path, command: str, timeout: float = 60.0) -> str:
    """Run a command in the guest through the ssh configuration that attestation wrote."""
    return run(["ssh", "-F", config, "guest", command], timeout=timeout).decode()


@dataclass(frozen=True)
class Attempt:
    """The inputs of a workflow's run: the host's copy of the bundle, the owner's VM config, and the login user.

    ``output`` gets the files of the attestation, and at the end the logs of the host. ``memory`` is in bytes.
    """

    stages: Stages
    bundle: Path
    config_path: Path
    qemu: Path
    platform: str
    memory: int
    identity: Path
    user: str
    template: Path
    output: Path

    @property
    def console(self) -> Path:
        """The host's log of the guest's serial console."""
        return self.bundle / "state" / "serial.log"

    @property
    def emulated_root(self) -> Path:
        """The root certificate of the software secure processor, if there is one."""
        return self.bundle / "state" / "ark.pem"

    @property
    def ssh_config(self) -> Path:
        return self.output / "ssh_config"

    @property
    def verdict(self) -> Path:
        """The verdict file of the attestation."""
        return places(self.output, emulated=self.platform == "emulated")["verdict"]

    @contextlib.contextmanager
    def running(self) -> Iterator[tuple["subprocess.Popen[bytes]", int, int]]:
        """Run the host's ./run; yield it and the ports of sshd and of the agent at 127.0.0.1."""
        ssh_port, attest_port = free_port(), free_port()
        arguments = ["--platform", self.platform, "--memory", f"{self.memory >> 20}M", "--restricted"]
        arguments += ["--ssh-port", str(ssh_port), "--attest-port", str(attest_port)]
        try:
            with hosted(self.bundle, self.qemu, arguments) as process:
                yield process, ssh_port, attest_port
        finally:
            # The host's directory is removed after the run, but its logs must stay readable.
            self.output.mkdir(parents=True, exist_ok=True)
            for log in (self.console, self.console.with_name("qemu.log")):
                with contextlib.suppress(OSError):
                    write_atomic(self.output / log.name, log.read_bytes())

    def shut_down(self, process: "subprocess.Popen[bytes]") -> None:
        """Power off the guest from inside: this must end QEMU and the host's ./run."""
        with self.stages.stage(f"{read_vm_config(self.config_path).launch.workflow}: shut down") as shown:
            ssh(self.ssh_config, "sudo systemctl poweroff || true")
            if process.wait(timeout=_STOP_SECONDS):
                raise UserError(f"the host's ./run ended with exit code {process.returncode}")
            shown.append("the guest's own poweroff ended QEMU")


def accepted_as(verdict: Mapping[str, Any]) -> str:
    """The text for a verdict in the results."""
    return "accepted" if verdict["trust_domain"] == "amd" else "accepted as emulated"
