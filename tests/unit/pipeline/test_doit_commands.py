# SPDX-License-Identifier: Apache-2.0
"""This project's versions of doit clean, forget, info and list, compared with doit's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sevsnp.settings.table import SETTINGS

PROJECT = Path(__file__).resolve().parents[3]

DODO = """
from pathlib import Path

if Path("adopts").exists():
    from sevsnp.pipeline.commands import adopt

    adopt()

DOIT_CONFIG = {"default_tasks": ["_welcome"], "backend": "sqlite3", "verbosity": 0}


def _copy(source, target):
    Path("build").mkdir(exist_ok=True)
    Path(target).write_text(Path(source).read_text())


def _remove(target, dryrun):
    if Path(target).exists():
        print(f"removing {target}")
        if not dryrun:
            Path(target).unlink()


def _artefact(source, target, doc):
    return {
        "actions": [(_copy, [source, target])],
        "file_dep": [source],
        "targets": [target],
        "clean": [(_remove, [target])],
        "doc": doc,
    }


def task__welcome():
    return {"actions": ["true"], "uptodate": [False]}


def task_first():
    return _artefact("source", "build/first", "Make first")


def task__second():
    return _artefact("build/first", "build/second", "Make second")


def task_both():
    '''Make both'''
    return {"actions": None, "file_dep": ["build/second"]}


def task_go():
    '''Go'''
    fast = {"name": "fast", "long": "fast", "type": bool, "default": False}
    return {"actions": ["true"], "uptodate": [False], "task_dep": ["both"], "params": [fast]}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "dodo.py").write_text(DODO)
    (tmp_path / "adopts").touch()
    (tmp_path / "source").write_text("1")
    return tmp_path


def doit(project: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "doit", *words],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.stdout


def statuses(project: Path) -> dict[str, str]:
    lines = doit(project, "list", "--all", "--private", "--status").splitlines()
    return {line.split()[1]: line[0] for line in lines}


def made(project: Path) -> set[str]:
    build = project / "build"
    return {path.name for path in build.iterdir()} if build.exists() else set()


def test_clean_removes_what_was_built(project: Path) -> None:
    doit(project, "both")
    (project / "build" / "log").write_text("of a guest")
    (project / "build" / "empty" / "inside").mkdir(parents=True)
    assert doit(project, "clean", "-n").splitlines() == ["would remove build/second", "would remove build/first"]
    assert made(project) == {"first", "second", "log", "empty"}
    said = doit(project, "clean")
    assert said.splitlines() == ["removing build/second", "removing build/first", "left in build: log"]
    assert made(project) == {"log"} and (project / "source").exists()
    assert doit(project, "clean").splitlines() == ["nothing to remove", "left in build: log"]


def test_clean_of_a_group_removes_the_outputs_of_its_own_task(project: Path) -> None:
    doit(project, "both")
    assert doit(project, "clean", "both").splitlines() == ["removing build/second"]
    assert made(project) == {"first"}
    assert doit(project, "clean", "-c", "both").splitlines() == ["removing build/first"]


def test_control_the_clean_command_of_doit_removes_nothing(project: Path) -> None:
    (project / "adopts").unlink()
    doit(project, "both")
    assert doit(project, "clean") == "" == doit(project, "clean", "both")
    assert made(project) == {"first", "second"}


def test_forget(project: Path) -> None:
    doit(project, "both")
    assert statuses(project)["_second"] == "U"
    assert "_second" in doit(project, "forget", "both")
    assert (statuses(project)["_second"], statuses(project)["first"]) == ("R", "U")
    doit(project, "both")
    assert doit(project, "forget") == "forgetting all tasks\n"
    assert statuses(project)["first"] == "R"


def test_the_status_includes_all_earlier_tasks(project: Path) -> None:
    assert statuses(project) == {"first": "R", "_second": "R", "both": "R", "go": "-", "_welcome": "-"}
    doit(project, "both")
    assert statuses(project) == {"first": "U", "_second": "U", "both": "U", "go": "-", "_welcome": "-"}
    (project / "source").write_text("two")
    assert statuses(project)["both"] == "R"
    (project / "source").unlink()
    assert (statuses(project)["first"], statuses(project)["both"]) == ("E", "E")


def test_control_the_status_of_doit_is_of_the_task_alone(project: Path) -> None:
    (project / "adopts").unlink()
    doit(project, "both")
    (project / "source").write_text("two")
    assert statuses(project)["both"] == "U"


def test_info_names_the_reason_for_a_status(project: Path) -> None:
    doit(project, "both")
    assert "\nstatus: up to date\n" in doit(project, "info", "both")
    (project / "source").write_text("two")
    (project / "build" / "second").unlink()
    assert "\nstatus: to be made\n  source: changed\n" in doit(project, "info", "first")
    both = doit(project, "info", "both")
    assert "\nstatus: to be made\n  _second: build/second: not there\n  first: source: changed\n" in both
    said = doit(project, "info", "_second")
    assert "  build/second: not there\n  first must be made first\n" in said
    assert "\ninputs:\n  build/first\n\noutputs:\n  build/second\n" in said
    (project / "source").unlink()
    assert "\nstatus: cannot be made: an input is missing\n  source: not there\n" in doit(project, "info", "first")
    assert "runs whenever it is asked for" in doit(project, "info", "go")


@pytest.mark.parametrize("words", [[], ["first", "both"]])
def test_info_of_an_unknown_task_is_an_error(project: Path, words: list[str]) -> None:
    said = doit(project, "info", *words)
    assert "expected the name of one task" in said and "./doitw list" in said


@pytest.mark.parametrize(
    "words",
    [
        [*command, "Frist"]
        for command in (
            (), ("run",), ("list",), ("clean",), ("forget",), ("info",), ("help",), ("ignore",), ("reset-dep",),
            ("strace",),
        )
    ],
)  # fmt: skip
def test_a_misspelt_task_is_answered_with_the_nearest_name(project: Path, words: list[str]) -> None:
    said = doit(project, *words)
    assert said.strip() == "ERROR: Frist: no such task\n  did you mean ./doitw first? all tasks: ./doitw list"


def test_a_misspelt_command_is_answered_with_the_nearest_name(project: Path) -> None:
    assert "did you mean ./doitw list?" in doit(project, "lits")
    assert doit(project, "zebra").strip() == "ERROR: zebra: no such task\n  all tasks: ./doitw list"
    (project / "adopts").unlink()
    assert "did you mean" not in doit(project, "lits")  # control: doit's own


def test_a_misspelt_option_of_a_task_is_answered_with_the_nearest_name(project: Path) -> None:
    assert doit(project, "go", "--fsat") == "ERROR: --fsat: no such option\n  did you mean --fast?\n"
    assert doit(project, "go", "--zebra") == "ERROR: --zebra: no such option\n"
    assert "ERROR" not in doit(project, "go", "--fast")
    (project / "adopts").unlink()
    assert "did you mean" not in doit(project, "go", "--fsat")  # control: doit's own


SECOND = """

def task_another():
    return _artefact("source", "build/../build/first", "Make first, too")
"""


@pytest.mark.parametrize("words", [["list"], ["help", "first"], ["info", "first"], ["first"], ["clean"]])
def test_two_tasks_with_one_target(project: Path, words: list[str]) -> None:
    dodo = project / "dodo.py"
    dodo.write_text(dodo.read_text() + SECOND)
    said = doit(project, *words)
    assert said == "ERROR: build/../build/first: two tasks make it, first and another; expected one\n"
    assert made(project) == set()
    (project / "adopts").unlink()
    assert "ERROR" not in doit(project, "list")  # control: doit's own


def full(project: Path, *words: str, where: str = "/dev/full") -> tuple[int, str]:
    with open(where, "w") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "doit", *words],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdout=stream,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "words",
    [["list"], ["info", "first"], ["help", "first"], ["first"], ["-n", "2", "-P", "thread", "first"], ["clean"]],
)
def test_a_full_standard_output_gives_one_line(project: Path, words: list[str]) -> None:
    if words == ["clean"]:
        doit(project, "first")
    said = "standard output: cannot be written: No space left on device\n"
    assert full(project, *words) == (1, said)
    assert full(project, *words, where="/dev/null")[1] == ""  # control


def test_control_doit_alone_prints_several_lines_for_a_full_output(project: Path) -> None:
    (project / "adopts").unlink()
    assert full(project, "list")[1].count("\n") > 1


def test_a_closed_standard_output_is_not_an_error(project: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "doit", "list"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


GUIDE = """
from sevsnp.pipeline.help import Guide

GUIDE = Guide(
    {"Go on": ("go",), "Make": ("both", "first")},
    {"first": "Make first\\n\\nIt is made of the source, and of\\nnothing else.\\n\\nNext: ./doitw both"},
    {"first": {"CPUS", "POLICY"}, "both": {"MEMORY"}, "_second": {"PLATFORM", "CPUS"}},
)
"""


@pytest.fixture
def guided(project: Path) -> Path:
    dodo = project / "dodo.py"
    dodo.write_text(GUIDE + dodo.read_text().replace("    adopt()", "    adopt(GUIDE)"))
    return project


def test_a_list_in_groups(guided: Path) -> None:
    lines = doit(guided, "list").splitlines()
    assert lines[:6] == ["Go on", "  go      Go", "", "Make", "  both    Make both", "  first   Make first"]
    assert "help TASK" in lines[-2] and "verify_report" in lines[-1]
    shown = doit(guided, "list", "--status", "--private").splitlines()
    assert shown[:2] == ["Go on", "  - go         Go"]
    assert shown[7:9] == ["Others", "  R _second    Make second"]
    # A legend of the letters that are there.
    assert [line[0] for line in shown[-2:]] == ["R", "-"]


def test_the_list_for_programs_is_flat_and_in_order(guided: Path) -> None:
    assert doit(guided, "list", "--quiet").split() == ["go", "both", "first"]
    assert doit(guided, "list", "--template", "{name}.").split() == ["go.", "both.", "first."]
    assert doit(guided, "list", "--deps", "--quiet", "first").splitlines() == ["first   ", " -  source", ""]


def test_help_of_a_task(guided: Path) -> None:
    lines = doit(guided, "help", "first").splitlines()
    assert lines[:5] == [
        "./doitw first", "Make first", "", "It is made of the source, and of nothing else.", "",
    ]  # fmt: skip
    assert lines[-6:] == ["It starts from: source", "", "It makes:", "  build/first", "", "Next: ./doitw both"]
    text = " ".join("\n".join(lines).split())
    assert " CPUS=1 " in text and "Expected: a number of vCPUs from 1 to 255" in text
    assert "POLICY=0x30000" in text and "MEMORY" not in text and "Settings of the artefact cache: " in text


@pytest.mark.parametrize("columns", [60, 120])
def test_help_is_as_wide_as_the_terminal(guided: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in (["help", "first"], ["help", "settings"]):
        # A default may be longer than any terminal; it has a line of its own.
        found = [len(line) for line in doit(guided, *words).splitlines() if not re.match(r"  [A-Z_]+=\S+$", line)]
        # Where there is room, the lines are as long as is good to read.
        assert max(found) <= columns and (columns < 80) == (max(found) < 80), words


def test_the_help_of_a_group_has_the_settings_of_its_helpers(guided: Path) -> None:
    text = doit(guided, "help", "both")
    own, _, others = text.partition("Settings of the tasks that run before it:")
    assert "  MEMORY=2G " in own and "  PLATFORM=auto " in own and "  CPUS=1 " in own and "POLICY" not in own
    # What is said above is not said twice.
    assert others.splitlines()[1].split() == ["first", "POLICY"]
    assert "\nThese tasks run before it: first\n\nIt makes:\n  build/second\n" in text


def test_help_of_settings_and_of_all(guided: Path) -> None:
    text = doit(guided, "help", "settings")
    for setting in SETTINGS:
        assert f"  {setting.name}=" in text
    text = doit(guided, "help", "doitw")
    assert "./doitw setup_verity" in text and "remove what was built" in text
    commands = {line.split()[0] for line in text.splitlines()[-11:]}
    assert commands >= {"run", "clean", "info", "forget", "list", "settings", "completion"}
    assert "tabcompletion" not in text, "there is one way"
    assert doit(guided, "help", "completion").startswith("completion: print a script")
    assert doit(guided, "settings") == doit(guided, "help", "settings")


def test_clean_names_the_files_that_it_keeps(project: Path) -> None:
    dodo = project / "dodo.py"
    dodo.write_text(dodo.read_text().replace("adopt()", "adopt(left=lambda: ['a disk: boot it: COMMAND'])"))
    doit(project, "go")
    assert "left: a disk: boot it: COMMAND\n" in doit(project, "clean", "--dry-run")
    assert "left: " not in doit(project, "clean", "both"), "only one who removes everything has to know"
    assert doit(project, "clean").endswith("left: a disk: boot it: COMMAND\n")
