# SPDX-License-Identifier: Apache-2.0
"""One guest of end to end: the host's ./run with its ports, and what the owner waits for and does."""

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
    """A bundle's ./run as a process of its own; it and its QEMU end with the context, and with this process."""
    run_script = (bundle / "run").absolute()
    variables = {"QEMU": str(qemu.absolute())}
    with spawned([run_script, *arguments], cwd=bundle, env=variables, stderr=subprocess.PIPE) as process:
        yield process


def wait_for_evidence(
    process: "subprocess.Popen[bytes]", port: int, seconds: float, console: Path | None = None
) -> None:
    """Until the guest's agent answers at the attestation port, or the guest is gone, or time is up.

    A connection alone says nothing: QEMU's user network accepts it before the guest does. Progress is told by the log
    ``console``.
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
    """Until the guest's sshd answers: the agent is there before it."""
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
    """What a workflow is run with: the host's copy of its bundle, the owner's VM config, and who logs in.

    ``output`` gets what attestation writes, and at the end the logs of the host; ``memory`` is in bytes.
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
        """The guest's serial console, as the host keeps it."""
        return self.bundle / "state" / "serial.log"

    @property
    def emulated_root(self) -> Path:
        """The certificate of the software secure processor, where there is one."""
        return self.bundle / "state" / "ark.pem"

    @property
    def ssh_config(self) -> Path:
        return self.output / "ssh_config"

    @property
    def verdict(self) -> Path:
        """What attestation has written of its verdict."""
        return places(self.output, emulated=self.platform == "emulated")["verdict"]

    @contextlib.contextmanager
    def running(self) -> Iterator[tuple["subprocess.Popen[bytes]", int, int]]:
        """The host's ./run, and the ports of sshd and of the agent at 127.0.0.1."""
        ssh_port, attest_port = free_port(), free_port()
        arguments = ["--platform", self.platform, "--memory", f"{self.memory >> 20}M", "--restricted"]
        arguments += ["--ssh-port", str(ssh_port), "--attest-port", str(attest_port)]
        try:
            with hosted(self.bundle, self.qemu, arguments) as process:
                yield process, ssh_port, attest_port
        finally:
            # The host's directory ends with the run; how it went must be readable after that.
            self.output.mkdir(parents=True, exist_ok=True)
            for log in (self.console, self.console.with_name("qemu.log")):
                with contextlib.suppress(OSError):
                    write_atomic(self.output / log.name, log.read_bytes())

    def shut_down(self, process: "subprocess.Popen[bytes]") -> None:
        """The guest's own poweroff must end QEMU, and the host's ./run with it."""
        with self.stages.stage(f"{read_vm_config(self.config_path).launch.workflow}: shut down") as shown:
            ssh(self.ssh_config, "sudo systemctl poweroff || true")
            if process.wait(timeout=_STOP_SECONDS):
                raise UserError(f"the host's ./run ended with exit code {process.returncode}")
            shown.append("the guest's own poweroff ended QEMU")


def accepted_as(verdict: Mapping[str, Any]) -> str:
    """A verdict in the words of the results."""
    return "accepted" if verdict["trust_domain"] == "amd" else "accepted as emulated"
