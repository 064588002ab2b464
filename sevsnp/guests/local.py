# SPDX-License-Identifier: Apache-2.0
"""The guests that run on this machine, each in a state directory: their ports, boot stage, console, login and end."""

import contextlib
import ipaddress
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.host.console import boot_failure, boot_stage, printable_lines, read_console
from sevsnp.host.state import CONSOLE, Run, running
from sevsnp.owner import kept
from sevsnp.system import progress
from sevsnp.system.command import run, run_attached
from sevsnp.system.files import short_name
from sevsnp.system.locks import held

_STOP_SECONDS = 60.0
_END_SECONDS = 20.0
# The key that leaves the console: Ctrl-].
_LEAVE = b"\x1d"


@dataclass(frozen=True)
class Guest:
    """A guest by its name; ``state`` is its directory, ``run`` its running instance, or None."""

    name: str
    state: Path
    run: Run | None

    @classmethod
    def of(cls, runs: Path, name: str) -> "Guest":
        return cls(name, runs / name, running(runs / name))

    @property
    def ssh_config(self) -> Path:
        return self.state / "ssh_config"

    @property
    def console(self) -> Path:
        return self.state / "serial.log"

    @property
    def logs(self) -> list[Path]:
        """The existing logs: the console's, QEMU's, and the output of `run_… DETACH=yes`."""
        names = (self.console.name, "qemu.log", "run.log")
        return [path for name in names if (path := self.state / name).exists()]

    def attested(self) -> str:
        """When the running guest was accepted, and under which trust; empty if it was not."""
        for emulated in (False, True):
            with contextlib.suppress(UserError):
                talk = kept.read(self.state, emulated=emulated)
                if talk and self.run and talk.at.timestamp() >= self.run.since and self.ssh_config.exists():
                    return f"{talk.at.astimezone():%H:%M:%S}{' as emulated' if emulated else ''}"
        return ""

    def require(self) -> Run:
        """The running instance. Raises UserError if there is none."""
        if self.run is None:
            others = ", ".join(each.name for each in all_guests(self.state.parent) if each.run)
            raise UserError(
                f"no guest {self.name} runs here" + (f"; those that do: {others}" if others else ""),
                f"choose with NAME=…, or start it: {start_command(self.name)}",
            )
        return self.run


def start_command(name: str) -> str:
    """The command that starts a guest of that name."""
    if name in ("verity", "luks"):
        return f"./doitw run_sev_snp_{name}"
    return "./doitw run_guest" if name == "guest" else f"./doitw run_sev_snp_verity NAME={name}"


def all_guests(runs: Path) -> list[Guest]:
    """Every guest that has a state directory below ``runs``, by name."""
    names = sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    return [Guest.of(runs, name) for name in names]


def only_guest(runs: Path, name: str) -> Guest:
    """The guest ``name``; without a name, the running one. Raises UserError if there is not exactly one."""
    if name:
        return Guest.of(runs, name)
    found = [each for each in all_guests(runs) if each.run]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError("no guest runs here", f"start one: {start_command('verity')}")
    raise UserError(
        f"{len(found)} guests run here: {', '.join(each.name for each in found)}", f"choose one: NAME={found[0].name}"
    )


def stop(*, runs: Path, name: str) -> None:
    """`stop`: have the guest power itself off if its sshd was attested, else end QEMU. Raises UserError."""
    guest = only_guest(runs, name)
    found = guest.require()
    process = os.pidfd_open(found.pid)
    try:
        if running(guest.state) != found:
            raise UserError(f"the guest {guest.name} has just ended")
        if guest.attested():
            progress.step("the guest powers off")
            with contextlib.suppress(UserError):
                run(_ssh(guest.ssh_config, "sudo systemctl poweroff"), timeout=30)
            if _ended(process, _STOP_SECONDS):
                print(f"the guest {guest.name} has powered off")
                return
        else:
            print(f"the guest {guest.name} was not attested, so nobody can log in to power it off: QEMU is ended")
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not _ended(process, _END_SECONDS):
            raise UserError(f"process {found.pid} did not end in {_END_SECONDS:.0f} s", f"end it: kill -9 {found.pid}")
        print(f"QEMU of the guest {guest.name} was ended, as if its power had been cut")
    finally:
        os.close(process)


def _ended(process: int, seconds: float) -> bool:
    ready, _, _ = select.select([process], [], [], seconds)
    return bool(ready)


def _ssh(config: Path, *words: str) -> list[str | Path]:
    return ["ssh", "-F", config, "guest", *words]


def login(*, runs: Path, name: str, command: str = "") -> None:
    """`ssh`: log in to the guest that was last attested under this name, or run ``command`` in it.

    A plain guest of our own image is logged in to without an attestation, and the output says so. Raises UserError if
    there is no ssh configuration, and for an exit code other than 0.
    """
    guest = only_guest(runs, name)
    plain = guest.run is not None and guest.run.workflow == "plain"
    if guest.run and plain and not guest.ssh_config.exists():
        raise UserError(
            f"the guest {guest.name} boots a disk image of yours, whose accounts are not known here",
            f"log in with one of them: ssh -p {guest.run.ssh_port} ACCOUNT@127.0.0.1",
        )
    if plain:
        print(f"the guest {guest.name} is not attested: nothing proves which guest answers", file=sys.stderr)
    if not guest.ssh_config.exists():
        workflow = guest.run.workflow if guest.run else "verity"
        emulated = " PLATFORM=emulated" if guest.run and guest.run.platform == "emulated" else ""
        raise UserError(
            f"the guest {guest.name} was not attested: there is no {guest.ssh_config}",
            f"attest it first: ./doitw attest_{workflow} NAME={guest.name}{emulated}",
        )
    code = run_attached([str(word) for word in _ssh(guest.ssh_config, *([command] if command else []))])
    if code:
        raise UserError(f"ssh: exit code {code}")


def logs(*, runs: Path, name: str, lines: int = 40) -> None:
    """`logs`: the last ``lines`` of the guest's console, and QEMU's messages. Raises UserError if there is no log."""
    guests = [each for each in ([Guest.of(runs, name)] if name else all_guests(runs)) if each.logs]
    if not guests:
        raise UserError(
            f"{runs / name if name else runs}: no log of a guest", f"start one: {start_command(name or 'verity')}"
        )
    for guest in guests:
        for path in guest.logs:
            text = printable_lines(read_console(path).strip())
            if any(text):
                print(f"── {path}")
                print("\n".join(text[-lines:]))


def console(*, runs: Path, name: str) -> None:
    """`console`: the serial console of a guest that was started with DETACH=yes, on this terminal.

    Raises UserError if the guest has its own terminal, or if another process uses the console: QEMU would accept a
    second connection only after the first has ended, and show nothing until then.
    """
    guest = only_guest(runs, name)
    found = guest.require()
    if not found.console:
        raise UserError(
            f"the guest {guest.name} has its console in the terminal that it was started from",
            f"look at it: ./doitw logs NAME={guest.name}",
        )

    def taken(process: str) -> UserError:
        return UserError(
            f"the console of the guest {guest.name} is in use by process {process}, which leaves it with Ctrl-]",
            f"look at it: ./doitw logs NAME={guest.name}",
        )

    with (
        held(guest.state / "console.lock", taken) as note,
        short_name(guest.state) as short,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line,
    ):
        note(str(os.getpid()))
        line.connect(str(short / CONSOLE))
        print(f"console of the guest {guest.name}; Ctrl-] leaves it\r", flush=True)
        with progress.paused(), _raw_terminal():
            _bridge(line)
    print("\nleft the console; the guest runs on" if running(guest.state) else "\nthe guest has ended")


def _bridge(line: socket.socket) -> None:
    ends = [line, sys.stdin.fileno()]
    while True:
        ready, _, _ = select.select(ends, [], [])
        if line in ready:
            data = line.recv(65536)
            if not data:
                return
            os.write(sys.__stdout__.fileno() if sys.__stdout__ else 1, data)
        if sys.stdin.fileno() in ready:
            typed = os.read(sys.stdin.fileno(), 4096)
            if not typed:
                ends.remove(sys.stdin.fileno())  # no terminal: the guest's output is still shown
            if _LEAVE in typed:
                return
            line.sendall(typed)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    import termios
    import tty

    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def sshd_answers(host: str, port: int, seconds: float = 5.0) -> bool:
    """Whether an SSH server answers. A connection alone proves nothing: QEMU accepts it before the guest does."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=seconds) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def wait_for_login(guest: Guest, host: str, port: int, seconds: float) -> bool:
    """Wait until sshd answers; return whether it does within ``seconds``."""
    deadline = time.monotonic() + seconds
    while not sshd_answers(host, port):
        if time.monotonic() > deadline or (guest.run and not running(guest.state)):
            return False
        progress.step(f"boot: waiting for sshd at {host}:{port}")
        time.sleep(0.5)
    return True


def follow_boot(guest: Guest, where: str) -> None:
    """Report the guest's boot stage. Raises UserError if the guest ran on this machine and has ended."""
    if guest.run is None:
        progress.step(f"waiting for a guest at {where}")
        return
    if running(guest.state) is None:
        failed = boot_failure(read_console(guest.console))
        why = f": {failed}" if failed else ""
        raise UserError(f"the guest {guest.name} has ended{why}", f"see why: ./doitw logs NAME={guest.name}")
    progress.step(f"boot: {boot_stage(read_console(guest.console))}")


def meant(guest: Guest, host: str) -> Guest:
    """The guest, without its running instance if ``host`` is not this machine.

    What is known of a guest on this machine says nothing about a guest of the same name elsewhere.
    """
    return guest if _is_here(host) else replace(guest, run=None)


def _is_here(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def ports_of(guest: Guest, asked: Mapping[str, int | str], host: str, port: int, ssh_port: int) -> tuple[int, int]:
    """The ports of the agent and of sshd: as given, else those of the guest of this name on this machine."""
    if guest.run is None or "HOST" in asked or not _is_here(host):
        return port, ssh_port
    return (
        port if {"PORT", "ATTEST_PORT"} & asked.keys() else guest.run.attest_port,
        ssh_port if "SSH_PORT" in asked else guest.run.ssh_port,
    )
