# SPDX-License-Identifier: Apache-2.0
"""A damaged or unwritable database of doit: a real doit, with and without this project's changes to it."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[3]
DODO = """
import resource, os
{tolerate_damage}
DOIT_CONFIG = {{"backend": "sqlite3", "dep_file": ".doit.db"}}
if "LIMIT" in os.environ:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["LIMIT"]), resource.RLIM_INFINITY))

def task_copy():
    for number in range(3):
        yield {{
            "name": number,
            "file_dep": ["input"],
            "targets": [f"output{{number}}"],
            "actions": [f"echo made; cp input output{{number}}"],
            "verbosity": 2,
        }}
"""
OURS = "from sevsnp.pipeline.database import tolerate_damage; tolerate_damage()"
CONTROL = ""


def doit(project: Path, tolerate_damage: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    (project / "dodo.py").write_text(DODO.format(tolerate_damage=tolerate_damage))
    return subprocess.run(
        [sys.executable, "-m", "doit"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def made(done: "subprocess.CompletedProcess[str]") -> int:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines().count("made")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "input").write_text("text")
    return tmp_path


ARTEFACT = """
import os
from pathlib import Path
from doit.dependency import Dependency
from sevsnp.pipeline.database import tolerate_damage
from tasks.graph import artefact
original = Dependency.remove_success
tolerate_damage()
if "CONTROL" in os.environ:
    Dependency.remove_success = original
DOIT_CONFIG = {"backend": "sqlite3", "dep_file": ".doit.db"}

def task__checkout():
    return {"actions": None}

def task_copy():
    return artefact(
        "maker:copy",
        inputs={"source": Path("input")},
        outputs={"first": Path("build/first"), "second": Path("build/second")},
        cached=False,
    )
"""
MAKER = """
from sevsnp.errors import UserError

def copy(*, source, first, second):
    print("making")
    first.write_text(source.read_text())
    if source.read_text() == "bad":
        raise UserError("refused")
    second.write_text(source.read_text())
"""


def making(project: Path, text: str, *, fails: bool = False, **variables: str) -> bool:
    """Whether the function ran for an input of ``text``."""
    (project / "input").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "doit", "copy"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": f"{PROJECT}:{project}", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert bool(done.returncode) == fails and "Traceback" not in done.stdout, done.stdout
    return "making" in done.stdout.splitlines()


@pytest.fixture
def artefacts(project: Path) -> Path:
    (project / "dodo.py").write_text(ARTEFACT)
    (project / "maker.py").write_text(MAKER)
    assert making(project, "good") and not making(project, "good")
    return project


def test_a_failed_run_keeps_the_record_of_outputs_that_still_exist(artefacts: Path) -> None:
    assert making(artefacts, "bad", fails=True)
    assert making(artefacts, "bad", fails=True)
    assert (artefacts / "build" / "first").read_text() == "good"
    assert not making(artefacts, "good")
    # It is no more than a record: what is not as it says is made.
    assert making(artefacts, "bad", fails=True)
    (artefacts / "build" / "second").write_text("half")
    assert making(artefacts, "good") and not making(artefacts, "good")


def test_control_doit_alone_forgets_the_record(artefacts: Path) -> None:
    assert making(artefacts, "bad", fails=True, CONTROL="1")
    assert making(artefacts, "good", CONTROL="1")


def garbage(path: Path) -> None:
    path.write_bytes(os.urandom(5000))


def cut_short(path: Path) -> None:
    os.truncate(path, 5000)


def empty_table(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE other (name TEXT)")


def no_json(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("UPDATE doit SET task_data = 'no JSON'")


DAMAGE: tuple[Callable[[Path], None], ...] = (garbage, cut_short, empty_table, no_json)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_database_is_replaced(project: Path, damage: Callable[[Path], None]) -> None:
    assert made(doit(project, OURS)) == 3
    assert made(doit(project, OURS)) == 0
    damage(project / ".doit.db")
    again = doit(project, OURS)
    assert made(again) == 3
    assert "Traceback" not in again.stderr
    assert made(doit(project, OURS)) == 0


@pytest.mark.parametrize("damage", [garbage, no_json])
def test_control_doit_alone_fails_on_a_damaged_database(project: Path, damage: Callable[[Path], None]) -> None:
    assert made(doit(project, CONTROL)) == 3
    damage(project / ".doit.db")
    assert doit(project, CONTROL).returncode != 0


def test_a_full_disk_is_a_warning(project: Path) -> None:
    done = doit(project, OURS, LIMIT="100")
    assert made(done) == 3
    assert (project / "output2").read_text() == "text"
    assert "Traceback" not in done.stderr
    # Room again: what was not written is looked at again, and then it is known.
    assert made(doit(project, OURS)) == 3
    assert made(doit(project, OURS)) == 0
    full = doit(project, OURS, LIMIT="100")
    assert made(full) == 0


def test_a_disk_that_becomes_full_at_the_end_gives_a_warning(project: Path) -> None:
    assert made(doit(project, OURS)) == 3
    (project / "input").write_text("other")
    done = doit(project, OURS, LIMIT="100")
    assert made(done) == 3
    assert "next run will look at everything again" in done.stderr
    assert "Traceback" not in done.stderr
    assert made(doit(project, OURS)) == 3


def test_doit_alone_fails_on_a_full_disk(project: Path) -> None:
    assert made(doit(project, CONTROL)) == 3
    (project / "input").write_text("other")
    assert doit(project, CONTROL, LIMIT="100").returncode != 0
