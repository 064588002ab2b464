# SPDX-License-Identifier: Apache-2.0
"""External commands: their environment, their end, and the messages when they fail."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from sevsnp.errors import UserError
from sevsnp.system import command, record
from sevsnp.system.command_failed import CommandFailed
from tests.support.waiting import NET, wait_until


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_output_and_input() -> None:
    assert command.run(["cat"], stdin=b"\x00\xff") == b"\x00\xff"


def test_input_that_is_written_while_the_command_runs() -> None:
    piece = bytes(range(256)) * 4096

    def feed(stream: IO[bytes]) -> None:
        for _ in range(8):
            stream.write(piece)

    assert command.run(["cat"], feed=feed) == 8 * piece


def test_a_command_that_stops_reading_fails_with_its_own_error() -> None:
    with pytest.raises(UserError, match="exit code 3"):
        command.run(["sh", "-c", "exit 3"], feed=lambda stream: [stream.write(bytes(1 << 20)) for _ in range(8)])


def test_an_error_while_the_input_is_made_is_raised() -> None:
    def feed(stream: IO[bytes]) -> None:
        raise UserError("the archive ends early")

    with pytest.raises(UserError, match="the archive ends early"):
        command.run(["cat"], feed=feed)
    assert command.run(["cat"]) == b""
    assert command.run(["sh", "-c", "echo noise >&2; echo out"]) == b"out\n"


def test_the_environment_is_made_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUKS_KEY", "secret")
    monkeypatch.setenv("LANG", "tr_TR.UTF-8")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    monkeypatch.setenv("http_proxy", "http://proxy.example")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    seen = command.run(["env", "-0"], env={"EXTRA": "1"}).decode()
    variables = dict(word.split("=", 1) for word in seen.split("\0") if word)
    assert set(variables) <= {"PATH", "HOME", "TMPDIR", "APT_CONFIG", "no_proxy", "https_proxy"} | {
        "http_proxy",
        "LC_ALL",
        "TZ",
        "EXTRA",
    }
    assert variables["http_proxy"] == "http://proxy.example"
    assert variables["LC_ALL"] == "C.UTF-8"
    assert variables["TZ"] == "UTC"
    assert variables["EXTRA"] == "1"
    assert variables["PATH"] == "/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


def test_sbin_is_added_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/sbin:/bin")
    once = command.environment()["PATH"]
    monkeypatch.setenv("PATH", once)
    assert command.environment()["PATH"] == once == "/sbin:/bin:/usr/local/sbin:/usr/sbin"


def test_programs_are_found_on_the_current_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "some-tool"
    tool.write_text("#!/bin/sh\necho found\n")
    tool.chmod(0o755)
    assert command.find("some-tool") is None
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert command.find("some-tool") == tool
    assert command.run(["some-tool"]) == b"found\n"


def test_a_relative_program_is_not_looked_for_under_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\npwd\n")
    tool.chmod(0o755)
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    assert command.run(["./tool"], cwd=Path("inner")).decode().strip() == str(tmp_path / "inner")


def test_a_missing_program_names_the_task_that_brings_it() -> None:
    with pytest.raises(UserError, match="no-such-tool: command not found") as refused:
        command.run(["no-such-tool"])
    assert refused.value.hint == "run: ./doitw install_dependencies"


def test_a_file_that_cannot_be_started_gives_a_clear_error(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("not a program\n")
    with pytest.raises(UserError, match="text: not executable"):
        command.run([text])
    text.chmod(0o755)
    with pytest.raises(UserError, match="Exec format error"):
        command.run([text])
    with pytest.raises(UserError, match="No such file or directory"):
        command.run(["true"], cwd=tmp_path / "none")


def test_a_failure_shows_the_last_output_first_and_the_command_last() -> None:
    argv = ["sh", "-c", "echo first >&2; echo 'it broke' >&2; exit 3", "a b", "$HOME", "it's"]
    with pytest.raises(CommandFailed) as failed:
        command.run(argv, hint="mend it")
    *lines, last = failed.value.message.splitlines()
    assert lines == ["sh: it broke", "before that:", "  first"]
    pasteable = last.removeprefix("exit code 3 from: ")
    assert shlex.split(pasteable) == argv
    assert (failed.value.hint, failed.value.said) == ("mend it", "first\nit broke")
    pasted = subprocess.run(pasteable, shell=True, capture_output=True, check=False)
    assert pasted.returncode == 3


def test_a_tool_that_prints_its_own_name_is_not_named_twice(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as failed:
        command.run(["ls", tmp_path / "none"])
    first = failed.value.message.splitlines()[0]
    assert re.fullmatch(rf"\S*ls: cannot access '{tmp_path}/none': No such file or directory", first)


class Shelf:
    """A recorder that keeps what a command said, and nothing else."""

    def __init__(self, place: Path) -> None:
        self.file = place / "said"

    def started(self, command: record.Command) -> None: ...

    def ended(self, command: record.Command, code: int | None) -> None: ...

    def keep(self, command: record.Command, error: bytes, output: bytes) -> Path:
        self.file.write_bytes(error + b"|" + output)
        return self.file


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(tmp_path)
    record.tell(made)
    yield made
    record.tell(None)


def test_a_long_command_is_shortened_if_it_is_kept_elsewhere(tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo 'it broke' >&2; exit 3", *(f"word-{number}" for number in range(200))]
    with pytest.raises(CommandFailed) as failed:
        command.run(argv)
    # Control: where there is no place to keep it, all of it is shown.
    assert failed.value.message.endswith(f"exit code 3 from: {shlex.join(argv)}")
    shelf = Shelf(tmp_path)
    record.tell(shelf)
    try:
        with pytest.raises(CommandFailed) as failed:
            command.run(argv)
    finally:
        record.tell(None)
    short, kept = failed.value.message.splitlines()[-2:]
    assert short.startswith("exit code 3 from: sh -c ") and short.endswith("word-199")
    assert " … " in short and len(short) < 320
    assert kept == f"whole output: {shelf.file}"


def test_an_error_on_standard_output_alone_is_shown(shelf: Shelf) -> None:
    with pytest.raises(CommandFailed) as failed:
        command.run(["sh", "-c", "echo 1; printf 'block 7\\033[31m is bad\\n'; exit 4"])
    assert failed.value.message.splitlines()[:3] == ["sh: block 7?[31m is bad", "before that:", "  1"]
    assert shelf.file.read_bytes() == b"|1\nblock 7\033[31m is bad\n"
    # What is said on standard error goes before it, and what is no text is only kept.
    with pytest.raises(CommandFailed) as failed:
        command.run(["sh", "-c", "echo 1; echo broken >&2; exit 4"])
    assert failed.value.message.splitlines()[:2] == [
        "sh: broken",
        "exit code 4 from: sh -c 'echo 1; echo broken >&2; exit 4'",
    ]
    with pytest.raises(CommandFailed) as failed:
        command.run(["sh", "-c", "printf 'a\\000b'; exit 4"])
    assert failed.value.message.startswith("exit code 4 from: ")
    assert shelf.file.read_bytes() == b"|a\0b"


def test_a_secret_that_a_failed_command_printed_is_neither_shown_nor_kept(shelf: Shelf) -> None:
    argv = ["sh", "-c", "printf %s sec ret; exit 4"]
    with pytest.raises(CommandFailed) as failed:
        command.run(argv, secret=True)
    assert "secret" not in failed.value.message and not shelf.file.exists()
    with pytest.raises(CommandFailed, match="sh: secret"):  # control
        command.run(argv)
    assert b"secret" in shelf.file.read_bytes()


def test_the_output_before_a_time_out_is_kept(shelf: Shelf) -> None:
    with pytest.raises(UserError, match=f"no end after 1 s: sh -c .*\nwhole output: {shelf.file}"):
        command.run(["sh", "-c", "echo out; echo err >&2; sleep 60; :"], timeout=1)
    assert shelf.file.read_bytes() == b"err\n|out\n"


def test_only_the_end_of_a_long_error_output_is_shown() -> None:
    with pytest.raises(UserError) as failed:
        command.run([sys.executable, "-c", "import sys; sys.exit('x' * 100_000 + 'the reason')"])
    assert len(failed.value.message) < 2300
    assert failed.value.message.splitlines()[0].endswith("the reason")


@pytest.mark.parametrize("trap", ["", "trap '' TERM; "], ids=["obedient", "deaf"])
def test_a_time_out_ends_the_whole_group(trap: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "GRACE", 0.3)
    pids = tmp_path / "pids"
    script = f"{trap}echo $$ > {pids}; sh -c '{trap.replace(chr(39), chr(34))}echo $$ >> {pids}; sleep 60; :' & wait; :"
    with pytest.raises(UserError, match="no end after 1 s: sh -c"):
        command.run(["sh", "-c", script], timeout=1)
    found = [int(line) for line in pids.read_text().split()]
    assert len(found) == 2
    wait_until(lambda: all(gone(pid) for pid in found))


def left_behind(pid_file: Path) -> list[str]:
    """A command that ends at once, and leaves a child with its output streams."""
    return ["sh", "-c", f"sleep 300 & echo $! > {pid_file}"]


def test_a_time_out_ends_what_an_ended_command_left(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(UserError, match="no end after 1 s: sh -c"):
        command.run(left_behind(pid_file), timeout=1)
    wait_until(lambda: gone(int(pid_file.read_text())))
    with (
        pytest.raises(UserError, match="no end after 1 s: sh -c"),
        command.spawned(left_behind(pid_file), stdout=subprocess.PIPE, timeout=1) as process,
    ):
        process.communicate()
    wait_until(lambda: gone(int(pid_file.read_text())))


def test_a_context_ends_what_an_ended_command_left(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    with command.spawned(left_behind(pid_file)) as process:
        wait_until(lambda: command._ended(process.pid))
        child = int(pid_file.read_text())
        assert not gone(child)
    wait_until(lambda: gone(child))


def test_a_command_that_handles_sigterm_may_clean_up(tmp_path: Path) -> None:
    mark = tmp_path / "cleaned"
    with pytest.raises(UserError):
        command.run(["sh", "-c", f"trap 'touch {mark}; exit 1' TERM; sleep 60 & wait"], timeout=0.5)
    assert mark.exists()


def test_an_interrupt_ends_the_command(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"

    def interrupt() -> None:
        wait_until(lambda: pid_file.exists() and pid_file.read_text().endswith("\n"))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        command.run(["sh", "-c", f"echo $$ > {pid_file}; exec sleep 60"])
    thread.join()
    wait_until(lambda: gone(int(pid_file.read_text())))


def test_end_all_ends_the_commands_of_other_threads() -> None:
    failures: list[UserError] = []

    def work() -> None:
        try:
            command.run(["sleep", "60"])
        except UserError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(command._running) == 3)
    command.end_all()
    for thread in threads:
        thread.join(NET)
    assert [error.message for error in failures] == ["exit code -15 from: sleep 60"] * 3
    assert command._running == set()


def test_attached_commands_share_our_output_and_group(capfd: pytest.CaptureFixture[str]) -> None:
    code = command.run_attached(["sh", "-c", "echo out; echo err >&2; ps -o pgid= -p $$; exit 7"], env={"A": "1"})
    assert code == 7
    out, err = capfd.readouterr()
    assert out.split() == ["out", str(os.getpgrp())]
    assert err == "err\n"


def test_an_attached_command_may_clean_up_when_we_are_ended(tmp_path: Path) -> None:
    mark, ready = tmp_path / "cleaned", tmp_path / "ready"
    child = f"trap 'touch {mark}; exit 1' INT; touch {ready}; while :; do sleep 0.1; done"
    script = (
        "import signal, sys\n"
        "from sevsnp.system.command import run_attached\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"run_attached(['sh', '-c', {child!r}])"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[3])
    wait_until(ready.exists)
    process.terminate()
    assert process.wait(NET) == 143
    assert mark.exists()
