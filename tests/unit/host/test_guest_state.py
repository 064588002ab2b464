# SPDX-License-Identifier: Apache-2.0
"""The state directory of a guest: one guest at a time, its record while it runs, its ports and its console."""

import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.guests import local as guests
from sevsnp.host.console import boot_stage, printable_lines
from sevsnp.host.session import Told, session
from sevsnp.host.state import CONSOLE, LOCK, Run, check_free, held, running
from sevsnp.qemu.process import check_options
from sevsnp.qemu.run_options import RunOptions
from tests.support.waiting import wait_until

RUN = Run("verity", "emulated", "vm-config.toml", 2222, 8088)
TOLD = Told("./doitw run NAME=second", "./doitw attest", "Linux version")
# Holds a state directory until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from sevsnp.host.state import Run, held
with held(Path(sys.argv[1]), Run("luks", "emulated", "c.toml", 1, 2), ""):
    print("held", flush=True)
    time.sleep(600)
"""


def options(directory: Path, **changes: Any) -> RunOptions:
    plain = RunOptions(Path("/nonsuch/qemu"), 1 << 28, ssh_port=2222, attest_port=8088, state=directory)
    return dataclasses.replace(plain, **changes)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_guest_is_recorded_while_it_runs(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    with held(tmp_path, dataclasses.replace(RUN, forwards=((8443, 443),)), ""):
        found = running(tmp_path)
        assert found and found.forward_lines == ["127.0.0.1:8443 leads to the guest's port 443"]
        assert (found.pid, found.workflow, found.ssh_port) == (os.getpid(), "verity", 2222)
        assert found.since > 0
    assert running(tmp_path) is None


def test_a_second_guest_is_refused_and_the_first_one_s_facts_stay(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    hint = "NAME=second"
    with (
        pytest.raises(UserError, match=rf"a guest runs here already \(process {holder.pid}, since ") as refused,
        held(tmp_path, RUN, hint),
    ):
        raise AssertionError("two guests at once")
    assert refused.value.hint == hint
    with pytest.raises(UserError, match=f"process {holder.pid}"):
        check_free(tmp_path, hint)
    found = running(tmp_path)
    assert found and (found.pid, found.workflow) == (holder.pid, "luks")
    with held(tmp_path / "second", RUN, ""):  # control
        pass


def test_a_killed_guest_leaves_no_lock(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == holder.pid  # what it wrote is still there
    assert running(tmp_path) is None
    with held(tmp_path, RUN, ""):
        pass


def test_a_new_guest_removes_the_ssh_files_of_the_last_one(tmp_path: Path) -> None:
    for name in ("ssh_config", "known_hosts", "verdict.json"):
        (tmp_path / name).write_text("of the guest before")
    with held(tmp_path, RUN, ""):
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "verdict.json"]


def test_a_port_in_use_is_replaced_only_if_the_user_did_not_set_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"SSH_PORT={port}: in use"):
            check_options(options(tmp_path, ssh_port=port, attest_port=port + 1))
        moved = check_options(
            options(tmp_path, ssh_port=port, attest_port=port + 1, movable=("SSH_PORT", "ATTEST_PORT"))
        )
        assert moved.ssh_port > port and moved.attest_port > port and moved.ssh_port != moved.attest_port
        assert moved.movable and moved.state == tmp_path


def test_the_console_of_a_guest_without_a_terminal(tmp_path: Path) -> None:
    state = tmp_path / ("long" * 30)  # a socket's own name has 107 bytes at most
    with session(options(state), RUN, TOLD) as given:
        assert given.console is not None and given.inherited == (given.console,)
        assert (state / CONSOLE).stat().st_mode & 0o777 == 0o600
        found = running(state)
        assert found and found.console
    assert not (state / CONSOLE).exists()
    with session(options(state, terminal=True), RUN, TOLD) as given:
        assert given.console is None and not (state / CONSOLE).exists()


def test_a_second_user_of_the_console_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU takes one connection at a time; the next one is established, but nobody reads from it."""
    used: list[str] = []

    def second(_: socket.socket) -> None:
        assert not used, "the second user has the console too"
        used.append("first")
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}") as refused:
            guests.console(runs=tmp_path, name="guest")
        assert refused.value.hint == "look at it: ./doitw logs NAME=guest"

    with session(options(tmp_path / "guest"), RUN, TOLD):
        monkeypatch.setattr(guests, "_bridge", second)
        guests.console(runs=tmp_path, name="guest")
        # Control: the first one has left it.
        monkeypatch.setattr(guests, "_bridge", lambda _: used.append("again"))
        guests.console(runs=tmp_path, name="guest")
    assert used == ["first", "again"]


def test_a_message_of_qemu_comes_before_the_error(tmp_path: Path) -> None:
    given = options(tmp_path, terminal=True)
    with pytest.raises(UserError) as failed, session(given, RUN, TOLD):
        given.messages.write_text(
            'warning: TCG doesn\'t support requested feature x\nqemu: Failed to get "write" lock\n'
        )
        raise UserError("the control socket was closed")
    assert failed.value.message == 'QEMU: qemu: Failed to get "write" lock\nthe control socket was closed'
    assert failed.value.hint == f"see the whole log: {given.messages}"


def test_the_ports_are_shown_again_after_the_firmware_cleared_the_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    given = options(tmp_path, terminal=True)
    with session(given, RUN, TOLD):
        before = screen.getvalue()
        assert before.count("ssh at 127.0.0.1:2222") == 1 and "next, in a second terminal: ./doitw attest" in before
        given.serial_log.write_text("\x1b[2J firmware")
        given.serial_log.write_text("[    0.0] Linux version 6.12")
        wait_until(lambda: screen.getvalue().count("ssh at 127.0.0.1:2222") == 2)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\x1b[2J\x1b[1;31mb\x1b[0m\r\nc", ["ab", "c"]),
        ("\x1b]0;title\x07bell", ["0;titlebell"]),
        ("\x9b31mx\x00", ["31mx"]),
    ],
)
def test_control_characters_are_removed_from_a_log(text: str, lines: list[str]) -> None:
    assert printable_lines(text) == lines
    assert not any(ord(character) < 32 or 126 < ord(character) < 160 for line in lines for character in line)


def test_the_stage_of_a_boot() -> None:
    assert boot_stage("") == "the firmware"
    assert boot_stage("Linux version 6\ninit: waiting for the disk key") == "the disk key"


def test_a_command_uses_the_only_running_guest_or_needs_its_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no guest runs here"):
        guests.only_guest(tmp_path, "")
    with held(tmp_path / "one", RUN, ""):
        assert guests.only_guest(tmp_path, "").name == "one"
        with held(tmp_path / "two", RUN, ""), pytest.raises(UserError, match="2 guests run here: one, two") as many:
            guests.only_guest(tmp_path, "")
        assert many.value.hint == "choose one: NAME=one"
        with pytest.raises(UserError, match="no guest three runs here; those that do: one"):
            guests.Guest.of(tmp_path, "three").require()


def test_ports_come_from_the_guest_that_runs_unless_they_are_given(tmp_path: Path) -> None:
    with held(tmp_path / "one", RUN, ""):
        guest = guests.Guest.of(tmp_path, "one")
        assert guests.ports_of(guest, {}, "127.0.0.1", 1, 2) == (8088, 2222)
        assert guests.ports_of(guest, {"PORT": 1}, "127.0.0.1", 1, 2) == (1, 2222)
        assert guests.ports_of(guest, {"SSH_PORT": 2}, "127.0.0.1", 1, 2) == (8088, 2)
        assert guests.ports_of(guest, {"HOST": "h"}, "h", 1, 2) == (1, 2)
    assert guests.ports_of(guests.Guest.of(tmp_path, "none"), {}, "127.0.0.1", 1, 2) == (1, 2)
