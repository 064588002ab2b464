# SPDX-License-Identifier: Apache-2.0
"""Hints about guests that run here: by their state directories, and with real guests that have just been started."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.guests import detach
from sevsnp.guests import local as guests
from sevsnp.guests.local import Guest, follow_boot
from sevsnp.host.session import Told as ToldOf
from sevsnp.host.session import session
from sevsnp.host.state import Run, check_free, held, running
from sevsnp.qemu.run_options import RunOptions
from tests.conftest import Built
from tests.support.pretended_guest import pretended
from tests.support.table import Told, remedies
from tests.support.waiting import NET, wait_until

RUN = Run("verity", "emulated", "c.toml", 1, 2)
# Has a guest's state directory, and does not mind a SIGTERM.
STUBBORN = """
import signal, sys, time
from pathlib import Path
from sevsnp.host.state import Run, held
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with held(Path(sys.argv[1]), Run("verity", "emulated", "c.toml", 1, 2), ""):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def runs(clone: Path) -> Path:
    """Where the guests of a checkout in which nothing is built are."""
    directory = clone / "build" / "run"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@remedies("sevsnp.guests.local", "end it: kill -9 {}")
def test_a_guest_that_does_not_end(told: Told, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "_END_SECONDS", 0.2)
    argv = [sys.executable, "-c", STUBBORN, str(runs / "stubborn")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == "held\n"
            told.obey(told.hint(lambda: guests.stop(runs=runs, name="stubborn")))
            assert holder.wait(NET) == -signal.SIGKILL
        finally:
            holder.kill()
    assert running(runs / "stubborn") is None


@remedies("sevsnp.guests.local", "look at it: ./doitw logs NAME={}", "see why: ./doitw logs NAME={}")
@remedies("sevsnp.host.session", "see the whole log: {}")
def test_commands_that_show_the_logs_of_a_guest(told: Told, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = runs / "looked-at"
    with held(state, RUN, ""):
        (state / "serial.log").write_text("its console\n")
        shown = told.shell(told.hint(lambda: guests.console(runs=runs, name="looked-at")).rpartition(": ")[2])
        assert shown.returncode == 0 and "its console" in shown.stdout
        was = Guest.of(runs, "looked-at")
    shown = told.shell(told.hint(lambda: follow_boot(was, "here")).rpartition(": ")[2])
    assert shown.returncode == 0 and "its console" in shown.stdout

    def fails() -> None:
        options = RunOptions(Path("qemu"), 1 << 28, 1, 2, state)
        with session(options, RUN, ToldOf("", "", "x")):
            options.messages.write_text("QEMU's words\n")
            check_failed()

    assert Path(told.hint(fails).removeprefix("see the whole log: ")).read_text() == "QEMU's words\n"


def check_failed() -> None:
    from sevsnp.errors import UserError

    raise UserError("QEMU ended with exit code 1")


@remedies("sevsnp.guests.detach", "see: ./doitw logs NAME={}")
def test_a_detached_guest_that_prints_nothing(
    told: Told, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretended(tmp_path, runs / "silent", monkeypatch)
    monkeypatch.setattr(detach, "_SECONDS", 0.01)

    def run() -> None:
        detach.run_detached(task="silent", words=(), state=runs / "silent", name="silent", variable="DETACHED")

    told.obey(told.hint(run))


@pytest.fixture
def started(checkout: Built, told: Told) -> Iterator[Path]:
    """The state directories of the built checkout, in which no guest is left."""
    runs = checkout.build / "run"
    told.variables |= {"PLATFORM": "emulated", "GUEST_NETWORK": "restricted", "MEMORY": "1G", "DETACH": "yes"}
    yield runs
    for state in runs.glob("*"):
        if run := running(state):
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGTERM)
            wait_until(lambda state=state: running(state) is None)  # type: ignore[misc]


@pytest.mark.full
@remedies(
    "sevsnp.guests.local",
    "start one: {}",
    "./doitw run_sev_snp_{}",
    "choose one: NAME={}",
    "choose with NAME=…, or start it: {}",
    "./doitw run_sev_snp_verity NAME={}",
    "./doitw run_guest",
)
@remedies("sevsnp.host.run", "run another one: ./doitw {} NAME=second; or end this one: ./doitw stop NAME={}")
@remedies("sevsnp.guests.detach", "./doitw logs, console, ssh or stop NAME={}")
def test_starting_and_stopping(told: Told, checkout: Built, started: Path) -> None:
    told.obey(told.hint(lambda: told.doitw("stop")))
    assert running(started / "verity")
    hint = told.hint(lambda: told.doitw("run_sev_snp_verity"))
    another, _, end = hint.removeprefix("run another one: ").partition("; or end this one: ")
    begun = told.shell(another)
    assert begun.returncode == 0, begun.stdout
    told.read(begun.stdout)
    name = told.hint(lambda: told.doitw("stop")).rpartition(": ")[2]
    assert told.doitw("logs", name).returncode == 0 and told.doitw("stop", name).returncode == 0
    assert told.shell(end).returncode == 0 and running(started / "verity") is None
    assert told.hint(lambda: told.doitw("stop", "NAME=second")).endswith(f"start it: {another}")
    told.obey(told.hint(lambda: told.doitw("stop", "NAME=guest")))
    assert running(started / "guest") and told.doitw("stop", "NAME=guest").returncode == 0
    check_free(started / "verity", "")


@pytest.mark.boot
@pytest.mark.full
@remedies("sevsnp.guests.local", "attest it first: ./doitw attest_{} NAME={}{}")
@remedies("sevsnp.guests.attesting", "attest it as an emulated guest: ./doitw attest_{}{}", "./doitw ssh NAME={}")
@remedies("sevsnp.guests.detach", "next: ./doitw attest_{}{}")
@remedies("sevsnp.host.run", "./doitw attest_{}{}")
@remedies(
    "sevsnp.guests.status",
    "./doitw attest_{}{}",
    "./doitw ssh NAME={}",
    "./doitw setup_verity",
    "./doitw run_sev_snp_{}",
)
def test_a_guest_from_its_start_to_its_login(told: Told, checkout: Built, started: Path, clone: Path) -> None:
    told.cwd = clone
    assert "./doitw setup_verity" in told.read(told.doitw("status").stdout)
    told.cwd = checkout.project
    del told.variables["PLATFORM"]
    assert told.doitw("setup_verity").returncode == 0
    begin = re.findall(r"\./doitw run_sev_snp_verity$", told.doitw("status").stdout, re.MULTILINE)
    begun = told.shell(f"{begin[0]} PLATFORM=emulated")
    assert begun.returncode == 0, begun.stdout
    told.seen.add("./doitw run_sev_snp_{}")
    same = {
        told.read(begun.stdout).rpartition(": ")[2],
        told.read((started / "verity" / "run.log").read_text()).rpartition(": ")[2],
        told.hint(lambda: told.doitw("attest_verity")).rpartition(": ")[2],
        told.hint(lambda: told.doitw("ssh", "-c", "true")).rpartition(": ")[2].replace(" NAME=verity", ""),
        told.read(told.doitw("status").stdout).removeprefix("next: ").strip(),
    }
    assert same == {"./doitw attest_verity PLATFORM=emulated"}
    done = told.shell(same.pop())
    assert done.returncode == 0, done.stdout
    said = re.findall(r"\./doitw ssh NAME=verity", done.stdout + told.doitw("status").stdout)
    assert len(said) == 2
    told.seen.add("./doitw ssh NAME={}")
    assert "hello from 6" in told.shell(f"{said[0]} -c 'echo hello from $((2*3))'").stdout
    assert told.doitw("stop", "NAME=verity").returncode == 0
