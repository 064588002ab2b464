# SPDX-License-Identifier: Apache-2.0
"""If doit is killed, in any way, the host's ./run and its QEMU end too, and their files in TMPDIR are removed.

The control starts the same ./run without sevsnp.system.command: it lives on.
"""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sevsnp.e2e.guest import free_port
from sevsnp.system import guardian
from tests.conftest import PROJECT, Built
from tests.support.waiting import wait_until

# A guest that boots in no time, and obeys nobody: its QEMU ignores all signals that can be ignored.
RUN = """#!/bin/sh
mktemp >/dev/null
mktemp -d >/dev/null
(trap '' TERM INT HUP; exec sleep 307) &
wait
"""
DODO = """
from pathlib import Path
from tasks.graph import command
from tasks.project import end_cleanly

DOIT_CONFIG = {{"default_tasks": ["host"], "verbosity": 2}}
end_cleanly()


def task_host():
    return command("tests.support.host_run:{function}", launches=True,
                   bundle=Path({bundle!r}), qemu=Path({qemu!r}), arguments={arguments!r})
"""


@dataclass
class Ground:
    """A directory with a dodo.py and a TMPDIR, which all that is started there has in its environment."""

    directory: Path
    started: list[int] = field(default_factory=list)

    @property
    def temporary(self) -> Path:
        return self.directory / "tmp"

    def write(
        self, function: str, bundle: Path, qemu: Path = Path("/bin/false"), arguments: list[str] | None = None
    ) -> None:
        text = DODO.format(function=function, bundle=str(bundle), qemu=str(qemu), arguments=arguments or [])
        (self.directory / "dodo.py").write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": str(PROJECT)}

    def start(self) -> "subprocess.Popen[bytes]":
        """The doit of this directory."""
        words = [sys.executable, "-m", "doit"]
        with (self.directory / "output").open("wb") as output:
            process = subprocess.Popen(
                words, cwd=self.directory, env=self.environment, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.started.append(process.pid)
        return process

    def start_at_terminal(self) -> tuple[int, int]:
        """The same on a terminal of its own; its process id, and our end of the terminal."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.chdir(self.directory)
            os.execve(sys.executable, [sys.executable, "-m", "doit"], self.environment)
        self.started.append(pid)
        return pid, terminal

    def living(self) -> dict[int, str]:
        """Processes with this TMPDIR, or one inside, by id, with their command lines."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"TMPDIR={self.temporary}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def await_process(self, words: str, seconds: float = 120.0) -> None:
        """Until a process with ``words`` in its command line runs, and ./run has made its temporary files."""
        wait_until(
            lambda: any(words in line for line in self.living().values()) and list(self.temporary.rglob("*")),
            (self.directory / "output").read_text,
            seconds,
        )

    def nothing_left(self, more: float = 30.0) -> bool:
        """Whether all is gone within the time that it has for ending in order, and ``more`` seconds."""
        deadline = time.monotonic() + guardian.GRACE + more
        while (self.living() or list(self.temporary.iterdir())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.living() and not list(self.temporary.iterdir())


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    made = Ground(tmp_path)
    made.temporary.mkdir()
    yield made
    for pid in made.living():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A stand-in for a host bundle."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "run").write_text(RUN)
    (directory / "run").chmod(0o755)
    return directory


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_run_and_qemu_end_with_a_doit_that_gets_a_signal(ground: Ground, bundle: Path, number: signal.Signals) -> None:
    ground.write("as_e2e", bundle)
    process = ground.start()
    ground.await_process("sleep 307")
    process.send_signal(number)
    code = process.wait(60)
    assert ground.nothing_left(), ground.living()
    assert code == (-number if number is signal.SIGKILL else 128 + number)


def test_run_and_qemu_end_with_a_killed_process_group(ground: Ground, bundle: Path) -> None:
    ground.write("as_e2e", bundle)
    process = ground.start()
    ground.await_process("sleep 307")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
    assert ground.nothing_left(), ground.living()


def test_run_and_qemu_end_with_a_closed_terminal(ground: Ground, bundle: Path) -> None:
    ground.write("as_e2e", bundle)
    pid, terminal = ground.start_at_terminal()
    ground.await_process("sleep 307")
    os.close(terminal)
    os.waitpid(pid, 0)
    assert ground.nothing_left(), ground.living()


def test_control_a_run_that_is_started_in_another_way_lives_on(ground: Ground, bundle: Path) -> None:
    ground.write("as_before", bundle)
    process = ground.start()
    ground.await_process("sleep 307")
    process.kill()
    process.wait(60)
    assert not ground.nothing_left(2.0)
    assert any("sleep 307" in line for line in ground.living().values())


def test_a_real_guest_ends_with_a_killed_doit(built: Built, ground: Ground) -> None:
    """A real bundle, whose guest is killed while its firmware runs."""
    state = str(ground.directory / "state")
    arguments = ["--platform", "emulated", "--restricted", "--memory", "512M", "--state", state]
    arguments += ["--ssh-port", str(free_port()), "--attest-port", str(free_port())]
    ground.write("as_e2e", built.build / "host-bundle", built.qemu, arguments)
    process = ground.start()
    ground.await_process("-netdev")
    assert any("run.py" in line for line in ground.living().values())
    process.kill()
    process.wait(60)
    assert ground.nothing_left(), ground.living()
