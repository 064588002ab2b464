"""Both workflows, unattended: host and owner as two machines would do it, and what each step proved."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.attestation.appraisal import Refused
from sevsnp.e2e.stages import Stages
from sevsnp.errors import UserError
from sevsnp.host.console import MARKER, boot_stage, read_console
from sevsnp.host.run import config_of
from sevsnp.owner.attestation import attest, attest_guest
from sevsnp.owner.client import NONCE_SIZE, ask
from sevsnp.owner.kept import places
from sevsnp.pipeline.reporter import remarks, timings
from sevsnp.qemu.platforms import choose
from sevsnp.system import progress
from sevsnp.system.command import run, spawned, temporary_directory
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


_CHECKS = r"""
set -u
state() { if "$@" 2>/dev/null; then echo yes; else echo no; fi; }
writable() { state sudo touch "$1/.probe"; }
echo "root_writable=$(writable /)"
echo "usr_writable=$(writable /usr)"
for d in etc home var tmp; do echo "${d}_writable=$(writable /$d)"; done
echo "root=$(findmnt -no SOURCE,OPTIONS / | tr ' ' ';')"
for d in etc home var tmp; do echo "${d}_type=$(findmnt -no FSTYPE /$d)"; done
echo "system=$(systemctl is-system-running || true)"
"""


def look_inside(config: Path) -> dict[str, str]:
    """What the running guest says of its mounts, once it has finished starting."""
    output = ssh(
        config, "sh -c 'systemctl is-system-running --wait >/dev/null; exec sh -s' <<'END'\n" + _CHECKS + "END"
    )
    return dict(re.findall(r"^([a-z_]+)=(.*)$", output, re.MULTILINE))


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


def e2e(
    *,
    bundle: Path,
    luks_bundle: Path,
    directory: Path,
    luks_directory: Path,
    qemu: Path,
    platform: str,
    memory: int,
    answers: Path,
    identity: Path,
    user: str,
    template: Path,
    output: Path,
    results: Path,
    luks: Mapping[str, Any],
) -> None:
    """Run both workflows end to end and write what was shown to ``results`` (JSON).

    The host side runs in a directory that holds only a bundle; ``output`` gets a directory for each workflow, with its
    logs, evidence and verdict. ``luks`` is what else the release of a key needs (:func:`sevsnp.e2e.luks.run_luks`).
    """
    from sevsnp.e2e.luks import run_luks

    # A failure must not leave an earlier run's success behind.
    results.unlink(missing_ok=True)
    stages = Stages()
    for name, seconds in timings.items():
        stages.add(name, seconds, remarks.get(name, "built"))
    name = choose(platform, read_vm_config(config_of(directory, "verity", "snp")).launch, qemu, answers).name
    workflows: dict[str, dict[str, Any]] = {}
    for workflow, source, configs in (("luks", luks_bundle, luks_directory), ("verity", bundle, directory)):
        there = output / workflow
        shutil.rmtree(there, ignore_errors=True)
        with temporary_directory("sevsnp-host-") as host:
            copy = host / "bundle"
            with stages.stage(f"{workflow}: hand the bundle to the host") as shown:
                run(["cp", "-r", "--reflink=auto", "--sparse=always", "--", source, copy])
                shown.append("no key and no policy in it")
            config_path = config_of(configs, workflow, name)
            attempt = Attempt(stages, copy, config_path, qemu, name, memory, identity, user, template, there)
            try:
                workflows[workflow] = _verity(attempt) if workflow == "verity" else run_luks(attempt, **luks)
            except UserError as error:
                raise UserError(f"{error.message}\nlogs and evidence: {there}", error.hint) from error
    taken = {stage: round(seconds, 3) for stage, seconds, _ in stages.rows}
    document = {"platform": name, "workflows": workflows, "timings": taken}
    write_atomic(results, json.dumps(document, indent=2) + "\n")
    stages.table(f"end to end, platform {name}" + (" (EMULATED – NOT CONFIDENTIAL)" if name == "emulated" else ""))


def _verity(attempt: Attempt) -> dict[str, Any]:
    stages, config = attempt.stages, read_vm_config(attempt.config_path)
    with attempt.running() as (process, ssh_port, attest_port):
        with stages.stage("verity: boot with measured boot") as shown:
            wait_for_evidence(process, attest_port, BOOT_SECONDS, attempt.console)
            log = attempt.console.read_text(errors="replace")
            if MARKER not in log:
                raise UserError(f"the console log lacks the line {MARKER!r}")
            shown.append("the firmware accepted kernel, initramfs and command line by hash")
        with stages.stage("verity: attest") as shown:
            attest_guest(
                vm_config=attempt.config_path,
                host="127.0.0.1", port=attest_port, ssh_port=ssh_port, emulated_root=attempt.emulated_root,
                identity=attempt.identity, user=attempt.user, template=attempt.template, output=attempt.output,
            )  # fmt: skip
            verdict = json.loads(attempt.verdict.read_text())
            shown.append("evidence for a fresh nonce, launch digest as computed from the files")
        if attempt.platform == "emulated":
            with stages.stage("verity: refuse emulated evidence in production") as shown:
                shown.append(_refused_in_production(attempt.config_path, attest_port, attempt.emulated_root))
        with stages.stage("verity: log in") as shown:
            wait_for_login(attempt.ssh_config)
            found = look_inside(attempt.ssh_config)
            _expect(found)
            shown.append("the attested host key; root read-only and verified; /etc /home /var /tmp writable in memory")
        attempt.shut_down(process)
    reference = config.require_reference()
    return {
        "measured_boot": verdict["measurement"] == reference.launch_digest.hex(),
        "launch_digest": verdict["measurement"],
        "verdict": accepted_as(verdict),
        "ssh_login": True,
        "tmpfs_writable": True,
        "root_read_only": True,
    }


def accepted_as(verdict: Mapping[str, Any]) -> str:
    """A verdict in the words of the results."""
    return "accepted" if verdict["trust_domain"] == "amd" else "accepted as emulated"


def _refused_in_production(config_path: Path, port: int, emulated_root: Path) -> str:
    """The very same guest before the production verifier must fail for want of a root, and for nothing else."""
    production = read_vm_config(config_path)
    launch = type(production.launch)(**{**vars(production.launch), "platform": "snp"})
    try:
        attest(type(production)(production.source, launch, production.reference), "127.0.0.1", port, emulated_root)
    except Refused as refused:
        if refused.reason != "unknown-root":
            raise UserError(f"refused for {refused.reason}, expected unknown-root") from None
        return "refused: unknown root"
    raise UserError("the production verifier accepted emulated evidence")


def _expect(found: dict[str, str]) -> None:
    wanted = {"root_writable": "no", "usr_writable": "no"}
    wanted |= {f"{name}_writable": "yes" for name in ("etc", "home", "var", "tmp")}
    wanted |= {"tmp_type": "tmpfs", "system": "running"}
    for name in ("etc", "home", "var"):
        if found.get(f"{name}_type") not in ("overlay", "tmpfs"):
            raise UserError(f"in the guest, /{name} is {found.get(f'{name}_type')!r}, expected overlay or tmpfs")
    for name, value in wanted.items():
        if found.get(name) != value:
            raise UserError(f"in the guest, {name}: found {found.get(name)!r}, expected {value!r}")
    if not re.match(r"/dev/(mapper/root|dm-0);ro\b", found.get("root", "")):
        raise UserError(f"in the guest, the root is {found.get('root')!r}, expected the verity mapping, read-only")
