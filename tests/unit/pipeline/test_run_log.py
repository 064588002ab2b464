# SPDX-License-Identifier: Apache-2.0
"""build/log and VERBOSE=1: the record and the output of a run; a fault of the log never stops a run."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sevsnp.pipeline import run_log
from sevsnp.pipeline.run_log import DIRECTORY, RUNS, RunLog
from sevsnp.qemu import process
from sevsnp.qemu.confine import Access
from sevsnp.system import command, progress, record
from sevsnp.system.command_failed import CommandFailed
from tests.support.cpu_limit import TooMuchWork, cpu_limit
from tests.support.waiting import NET, wait_until

PROJECT = Path(__file__).resolve().parents[3]
SEEN = "import os, sys; print(os.getcwd(), os.environ.get('EXTRA'), ascii(sys.argv[1:]))"


class Run:
    """A run in this process: its log, and what it showed."""

    def __init__(self, words: Sequence[str] = ("first",)) -> None:
        self.running: set[str] = set()
        self.shown: list[str] = []
        self.log = RunLog(words, self.running, self.shown.append)
        record.tell(self.log)


def entries(event: str = "", directory: Path = DIRECTORY) -> list[dict[str, Any]]:
    """Of all runs, the oldest first."""
    texts = [path.read_bytes() for path in sorted(directory.glob("*.jsonl"))]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    return [line for line in lines if not event or line["event"] == event]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)
    made = Run()
    yield made
    record.tell(None)
    made.log.close()


@pytest.fixture
def verbose() -> Iterator[None]:
    run_log.configure(verbose=True)
    yield
    run_log.configure(verbose=False)


def test_the_log_file_is_made_with_its_first_line(run: Run, tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []
    run.log.task("first", "up to date", (0.0, 0.0))
    assert [line["event"] for line in entries()] == ["run", "task"]


def test_each_command_is_one_line_of_the_log(run: Run, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with progress.task("first"):
        command.run(["sh", "-c", "exit 0", "a b"], cwd=Path("inner"))
    (line,) = entries("command")
    assert line.pop("argv") == [str(command.find("sh")), "-c", "exit 0", "a b"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("started"))
    assert isinstance(line.pop("seconds"), float)
    assert line == {"event": "command", "cwd": str(tmp_path / "inner"), "task": "first", "code": 0}
    (head,) = entries("run")
    assert head["words"] == ["first"]
    (file,) = DIRECTORY.iterdir()
    assert (file.stat().st_mode & 0o777, DIRECTORY.stat().st_mode & 0o777) == (0o600, 0o700)
    assert run.shown == []


def test_the_output_of_a_failed_command_is_kept_completely(run: Run) -> None:
    script = "seq 1 5000; echo it broke >&2; exit 3"
    with pytest.raises(CommandFailed) as failed:
        command.run(["sh", "-c", script])
    (line,) = entries("command")
    assert line["code"] == 3
    assert failed.value.message.splitlines()[-1] == f"whole output: {line['output']}"
    kept = Path(line["output"])
    assert kept.parent == DIRECTORY and kept.stat().st_mode & 0o777 == 0o600
    numbers = "".join(f"{number}\n" for number in range(1, 5001))
    assert kept.read_text() == (
        f"{command.find('sh')} -c '{script}'\n\nstandard error:\nit broke\n\nstandard output:\n{numbers}"
    )


def test_a_command_that_cannot_be_started_has_no_exit_code(run: Run, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="No such file"):
        command.run(["true"], cwd=tmp_path / "none")
    (line,) = entries("command")
    assert line["code"] is None


@pytest.mark.usefixtures("verbose")
def test_qemu_is_a_command(run: Run, tmp_path: Path) -> None:
    """Its messages are kept if it failed, and not if this program ended it."""
    shell, messages = command.find("sh"), tmp_path / "messages"
    assert shell
    for script in ("echo wrong >&2; exit 3", "echo fine >&2; exec sleep 60"):
        qemu = process.start(shell, ["-c", script], Access(), terminal=False, messages=messages)
        wait_until(lambda: messages.read_bytes().endswith(b"\n"))
        if "exit" in script:
            qemu.wait(NET)
        process.stop(qemu)
    failed, ended = entries("command")
    assert (failed["code"], ended["code"]) == (3, -signal.SIGTERM) and "output" not in ended
    assert Path(failed["output"]).read_text().endswith("standard error:\nwrong\n")
    assert failed["argv"][:3] == [str(shell), "-c", "echo wrong >&2; exit 3"]
    pasted = subprocess.run(["sh", "-c", run.shown[0]], capture_output=True, timeout=NET, check=False)
    assert (pasted.returncode, pasted.stderr) == (3, b"wrong\n")


def test_a_command_of_a_thread_without_a_task_belongs_to_the_only_running_task(run: Run) -> None:
    run.running.add("only")
    command.run(["true"])
    run.running.add("another")
    command.run(["true"])
    with progress.task("own"):
        command.run(["true"])
    assert [line["task"] for line in entries("command")] == ["only", "", "own"]


ODD = [
    "plain",
    "a b",
    "",
    "$HOME",
    "it's",
    "`x`",
    "two\nlines",
    "\x1b[31m'red\\",
    "é",
    os.fsdecode(b"\xff0a"),
    "*",
    "a=b",
]


@pytest.mark.usefixtures("verbose")
@pytest.mark.parametrize("cwd", [None, "inner 'place"])
@pytest.mark.parametrize("env", [None, {"EXTRA": "x 'y'"}])
def test_a_printed_command_can_be_pasted_into_a_shell(
    run: Run, tmp_path: Path, cwd: str | None, env: dict[str, str] | None
) -> None:
    if cwd:
        (tmp_path / cwd).mkdir()
    printed = command.run([sys.executable, "-c", SEEN, *ODD], cwd=Path(cwd) if cwd else None, env=env)
    line, end = run.shown
    assert all(character.isprintable() or character == "\n" for character in line)
    pasted = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, timeout=NET, check=True)
    assert pasted.stdout == printed
    # Control: it is those that make the difference.
    assert (b"x 'y'" in printed, b"inner" in printed) == (bool(env), bool(cwd))
    assert re.fullmatch(rf"  # exit code 0 after \d+\.\d s: {Path(sys.executable).name}\n", end)


@pytest.mark.usefixtures("verbose")
def test_a_variable_with_the_same_value_in_our_environment_is_not_printed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXTRA", "1")
    command.run(["true"], env=dict(os.environ))
    command.run(["true"], env={"EXTRA": "2"})
    assert [line.split()[0] for line in run.shown[::2]] == [str(command.find("true")), "EXTRA=2"]


@pytest.mark.usefixtures("verbose")
def test_no_secret_is_shown_or_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # By name, in an address, and by what it is; of each the control has another name, or none.
    words = [
        "LUKS_KEY=hidden one",
        "sh LUKS_KEY=hidden",
        "http://me:hidden@a.example/b",
        "oci://me:hid/den@a.example/b",
    ]
    controls = ["LUKS_KEY_FILE=seen", "http://a.example/seen@b"]
    monkeypatch.setenv("LUKS_KEY", "k3y")
    script = "echo k3y http://me:hidden@c.example seen; exit 1"
    with pytest.raises(CommandFailed):
        command.run(["sh", "-c", script, *words, *controls], env={"LUKS_KEY": "hidden", "OTHER": "seen"})
    run.log.task("first", "failed", (0.0, 0.0), error="http://me:hidden@d.example: no answer")
    monkeypatch.setenv("LUKS_KEY", "another")
    kept = {path.name: path.read_text() for path in DIRECTORY.iterdir()}
    assert len(kept) == 2
    for name, text in {**kept, "shown": run.shown[0]}.items():
        assert not re.search("hid|den|k3y", text.replace("hidden", "hid")), name
        assert "LUKS_KEY=… " in text.replace('"', " ").replace("'", " "), name
        for control in (*controls, "//…@a.example/b", "//…@c.example", "seen; exit 1"):
            assert control in text, name
    assert "OTHER=seen" in run.shown[0]
    assert "http://…@d.example: no answer" in entries("task")[0]["error"]


def test_the_last_ten_runs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    DIRECTORY.mkdir(parents=True)
    (DIRECTORY / "notes.txt").write_text("mine")
    for number in range(RUNS + 3):
        run = Run([str(number)])
        with pytest.raises(CommandFailed):
            command.run(["false"])
        record.tell(None)
        run.log.close()
    left = [str(number) for number in range(3, RUNS + 3)]
    assert [line["words"][0] for line in entries("run")] == left
    runs = {path.stem for path in DIRECTORY.glob("*.jsonl")}
    files = {f"{run}{suffix}" for run in runs for suffix in (".jsonl", ".1.txt")}
    assert {path.name for path in DIRECTORY.iterdir()} == {*files, "notes.txt"}


def test_a_full_disk_ends_the_log_and_nothing_else(run: Run) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        for _ in range(10):
            with pytest.raises(CommandFailed) as failed:
                command.run(["sh", "-c", "seq 1 1000; exit 3"])
        with pytest.raises(OSError):  # control
            Path("full").write_bytes(bytes(701))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "whole output" not in failed.value.message
    (file,) = DIRECTORY.iterdir()
    *whole, part = file.read_bytes().split(b"\n")
    assert len(whole) > 1 and [json.loads(line)["event"] for line in whole[:2]] == ["run", "command"]
    with pytest.raises(ValueError):
        json.loads(part)


@pytest.mark.parametrize("place", ["build", "build/log"])
def test_without_a_writable_directory_there_is_no_log(run: Run, place: str) -> None:
    Path(place).parent.mkdir(exist_ok=True)
    Path(place).write_text("a file")
    with pytest.raises(CommandFailed) as failed:
        command.run(["false"])
    assert "whole output" not in failed.value.message
    assert Path(place).read_text() == "a file"


def test_threads_write_whole_lines(run: Run) -> None:
    def work(number: int) -> None:
        with progress.task(f"task {number}"):
            for _ in range(50):
                told = record.starting(["x" * 5000])
                assert told.keep(b"said") is not None
                told.ended(0)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(NET)
    found = entries("command")
    assert {line["task"] for line in found} == {f"task {number}" for number in range(8)}
    assert len({line["output"] for line in found}) == len(found) == 400


def test_the_output_of_a_program_is_cleaned_in_linear_time() -> None:
    """A program may print text that comes from a hostile file."""
    line = "oci://" * 20000
    with cpu_limit(2.0):
        assert run_log.redacted(line) == line
        assert run_log.redacted(f"{line}me:p/w@host/x\nhttps://me:pw@host") == "oci://…@host/x\nhttps://…@host"
    pattern = re.compile(r"((?:oci://.*|://[^/\s]*))@")
    with pytest.raises(TooMuchWork), cpu_limit(2.0):  # control: one pattern, which tries each oci:// again
        pattern.sub("", line)
