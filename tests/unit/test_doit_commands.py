"""doit clean, forget, info and list, as this project has them; beside what doit's own say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

DODO = """
from pathlib import Path

if Path("adopts").exists():
    from sevsnp.doit_commands import adopt

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
    return {"actions": ["true"], "uptodate": [False], "task_dep": ["both"]}
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


def test_clean_of_a_group_removes_what_it_puts_together(project: Path) -> None:
    doit(project, "both")
    assert doit(project, "clean", "both").splitlines() == ["removing build/second"]
    assert made(project) == {"first"}
    assert doit(project, "clean", "-c", "both").splitlines() == ["removing build/first"]


def test_doit_s_own_clean_does_neither(project: Path) -> None:
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


def test_the_status_is_that_of_all_that_is_before(project: Path) -> None:
    assert statuses(project) == {"first": "R", "_second": "R", "both": "R", "go": "-", "_welcome": "-"}
    doit(project, "both")
    assert statuses(project) == {"first": "U", "_second": "U", "both": "U", "go": "-", "_welcome": "-"}
    (project / "source").write_text("two")
    assert statuses(project)["both"] == "R"
    (project / "source").unlink()
    assert (statuses(project)["first"], statuses(project)["both"]) == ("E", "E")


def test_doit_s_own_status_is_of_the_task_alone(project: Path) -> None:
    (project / "adopts").unlink()
    doit(project, "both")
    (project / "source").write_text("two")
    assert statuses(project)["both"] == "U"


def test_info_says_why(project: Path) -> None:
    doit(project, "both")
    assert "\nstatus: up to date\n" in doit(project, "info", "both")
    (project / "source").write_text("two")
    (project / "build" / "second").unlink()
    assert "\nstatus: to be made\n  source: changed\n" in doit(project, "info", "first")
    assert "\nstatus: to be made\n  _second is to be made first\n" in doit(project, "info", "both")
    said = doit(project, "info", "_second")
    assert "  build/second: not there\n  first is to be made first\n" in said
    assert "\ninputs:\n  build/first\n\noutputs:\n  build/second\n" in said
    (project / "source").unlink()
    assert "\nstatus: cannot be made\n  source: not there\n" in doit(project, "info", "first")
    assert "runs whenever it is asked for" in doit(project, "info", "go")


@pytest.mark.parametrize("words", [["nonsuch"], [], ["first", "both"]])
def test_info_of_what_is_no_task(project: Path, words: list[str]) -> None:
    said = doit(project, "info", *words)
    assert "expected the name of one task" in said and "./doitw list" in said


def test_clean_says_what_it_leaves_elsewhere(project: Path) -> None:
    dodo = project / "dodo.py"
    dodo.write_text(dodo.read_text().replace("adopt()", "adopt(lambda: ['a disk: boot it: COMMAND'])"))
    doit(project, "go")
    assert "left: a disk: boot it: COMMAND\n" in doit(project, "clean", "--dry-run")
    assert "left: " not in doit(project, "clean", "both"), "only one who removes everything has to know"
    assert doit(project, "clean").endswith("left: a disk: boot it: COMMAND\n")
