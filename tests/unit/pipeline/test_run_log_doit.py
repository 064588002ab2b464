# SPDX-License-Identifier: Apache-2.0
"""build/log and VERBOSE=1 of whole runs, with the project's reporter and settings."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.pipeline.run_log import DIRECTORY
from tests.support.waiting import NET, wait_until
from tests.unit.pipeline.test_run_log import PROJECT, entries

DODO = """
from tasks.project import end_cleanly
from tasks.project import settings
from os.path import exists
from tasks.graph import command
from sevsnp.pipeline.commands import adopt
from sevsnp.pipeline.reporter import Reporter

adopt()
end_cleanly()
settings()
DOIT_CONFIG = {"backend": "sqlite3", "par_type": "thread", "reporter": Reporter, "verbosity": 2}


class Looked:
    # As an artefact does, it says what it found.

    reason = []

    def __call__(self, task, values):
        self.reason[:] = [] if exists("kept") else ["other inputs", "other tools"]
        return not self.reason


def task_kept():
    make = lambda: open("kept", "w").close()
    return {"actions": [make], "targets": ["kept"], "file_dep": ["dodo.py"], "uptodate": [Looked()]}


def task_works():
    return command("work:works")


def task__helper():
    return command("work:helps")


def task_breaks():
    return command("work:breaks")


def task_wrong():
    return command("work:wrong")


def task_sleeps():
    return command("work:sleeps")


def task_group():
    return {"actions": None, "task_dep": ["works"]}
"""
WORK = """
from sevsnp.system.command import run


def works():
    run(["sh", "-c", "exit 0", "$x"])


def helps():
    pass


def breaks():
    run(["sh", "-c", "echo it broke >&2; exit 3"], hint="mend it")


def sleeps():
    run(["sh", "-c", "touch ready; exec sleep 600"])


def wrong():
    raise ZeroDivisionError("wrong")
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dodo.py").write_text(DODO)
    (tmp_path / "work.py").write_text(WORK)
    (tmp_path / ".cache").mkdir()
    return tmp_path


def start(project: Path, *words: str, **variables: str) -> "subprocess.Popen[str]":
    kept = {name: text for name, text in os.environ.items() if name != "VERBOSE"}
    return subprocess.Popen(
        [sys.executable, "-m", "doit", *words],
        cwd=project,
        env={**kept, "PYTHONPATH": f"{PROJECT}:{project}", **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def doit(project: Path, *words: str, **variables: str) -> str:
    return start(project, *words, **variables).communicate(timeout=NET)[0]


def outcomes(project: Path) -> dict[str, str]:
    return {line["task"]: line["outcome"] for line in entries("task", project / DIRECTORY)}


@pytest.mark.parametrize("threads", [(), ("-n", "2")], ids=["one", "threads"])
def test_a_run_logs_its_tasks_and_commands(project: Path, threads: tuple[str, ...]) -> None:
    said = doit(project, *threads, "--continue", "kept", "group", "breaks", "wrong")
    assert outcomes(project) == {"kept": "done", "works": "done", "breaks": "failed", "wrong": "failed"}
    tasks = {line["task"]: line for line in entries("task", project / DIRECTORY)}
    assert tasks["kept"]["reason"] == "other inputs, other tools" and "reason" not in tasks["works"]
    commands = {line["task"]: line for line in entries("command", project / DIRECTORY)}
    kept = commands["breaks"]["output"]
    message = f"sh: it broke\nexit code 3 from: sh -c 'echo it broke >&2; exit 3'\nwhole output: {kept}\n  mend it"
    assert tasks["breaks"]["error"] == message and f"✗ breaks: {message}\n" in said
    assert "it broke" in (project / kept).read_text()
    # A traceback is shown of what nobody foresaw; the log has the other one, too.
    assert "CommandFailed" in tasks["breaks"]["traceback"] and "CommandFailed" not in said
    assert "ZeroDivisionError: wrong" in tasks["wrong"]["error"] and "ZeroDivisionError: wrong" in said
    assert (commands["works"]["code"], commands["breaks"]["code"]) == (0, 3)
    doit(project, *threads, "kept")
    assert outcomes(project)["kept"] == "up to date"
    assert len(list((project / DIRECTORY).glob("*.jsonl"))) == 2


def test_verbose_shows_commands_and_tracebacks(project: Path) -> None:
    quiet = doit(project, "works")
    assert quiet.count("\n") == 2
    for said in (doit(project, "works", "VERBOSE=1"), doit(project, "works", VERBOSE="yes")):
        start, line, end, done = said.splitlines()
        assert (start, done[:7]) == ("▸ works", "✓ works") and line.endswith("sh -c 'exit 0' '$x'")
        assert re.fullmatch(r"  # exit code 0 after \d\.\d s: sh \(works\)", end)
    assert "Traceback" not in doit(project, "breaks")
    said = doit(project, "breaks", "VERBOSE=1")
    assert "Traceback" in said and said.index("work.py") < said.index("✗ breaks: sh: it broke")


def test_an_interrupted_run_is_logged_as_interrupted(project: Path) -> None:
    run = start(project, "sleeps")
    wait_until((project / "ready").exists)
    run.terminate()
    run.communicate(timeout=NET)
    assert outcomes(project) == {"sleeps": "interrupted"}
    (line,) = entries("command", project / DIRECTORY)
    assert line["code"] == -signal.SIGTERM


def test_a_command_that_runs_no_task_writes_no_log(project: Path) -> None:
    for words in (["list"], ["help", "works"], ["clean"], ["_helper"]):
        doit(project, *words)
        assert not (project / "build").exists(), words
    doit(project, "works")  # control
    assert (project / DIRECTORY).is_dir()


def test_clean_removes_the_log(project: Path) -> None:
    doit(project, "works")
    (project / "build" / "console").write_text("of a guest")
    doit(project, "clean", "--dry-run")
    doit(project, "clean", "works")
    assert (project / DIRECTORY).is_dir()
    assert doit(project, "clean").splitlines() == ["nothing to remove", "left in build: console"]


def test_a_run_goes_on_without_a_log(project: Path) -> None:
    (project / "build").write_text("a file")
    said = doit(project, "works", "breaks")
    assert "✓ works" in said and "✗ breaks: sh: it broke" in said and "whole output" not in said
