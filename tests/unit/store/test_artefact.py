# SPDX-License-Identifier: Apache-2.0
"""An artefact: when it is made again, when it comes from the cache, and how a changed output is restored."""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sevsnp.store.artefact import Artefact
from tests.support.makers import Seen, artefact, begin, hurt, listing, run


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    begin()
    return tmp_path


def test_an_artefact_that_was_made_before_is_copied_from_the_cache() -> None:
    with run():
        assert Seen(artefact()).built
    shutil.rmtree("build")
    with run():
        assert not Seen(artefact()).built
    assert Path("build/output").read_bytes() == b"TEXT"
    shutil.rmtree("build")
    with run(shared="off"):
        assert Seen(artefact()).built, "the control: without a cache"
    with run("elsewhere"):
        assert Seen(artefact()).built, "the control: with another cache"


def edited() -> None:
    Path("source").write_bytes(b"other")


def edited_in_secret() -> None:
    status = os.stat("source")
    Path("source").write_bytes(b"txet")
    os.utime("source", ns=(status.st_atime_ns, status.st_mtime_ns))


def only_touched() -> None:
    os.utime("source", (1, 1))


def other_mode() -> None:
    os.chmod("source", 0o755)


EDITS: dict[str, tuple[Callable[[], None], dict[str, Any], str]] = {
    "nothing": (lambda: None, {}, ""),
    "touched": (only_touched, {}, ""),
    "mode of an input": (other_mode, {}, ""),
    "content": (edited, {}, "other inputs (source)"),
    "content, size and time kept": (edited_in_secret, {}, "other inputs (source)"),
    "parameter": (lambda: None, {"params": {"times": 2}}, "other parameters (times)"),
    "function": (lambda: None, {"function": "lock_away"}, "other recipe"),
    "place": (lambda: None, {"output": "build/other"}, "other parameters (place.output)"),
    "program": (lambda: None, {"programs": ("sh",)}, "other tools (sh)"),
    "distribution": (lambda: None, {"distributions": ("doit",)}, "other tools (python:doit)"),
}


@pytest.mark.parametrize("name", EDITS)
def test_each_input_decides_whether_an_artefact_is_made_again(name: str) -> None:
    edit, changes, reason = EDITS[name]
    with run():
        first = Seen(artefact())
        assert first.is_current(artefact())
        edit()
    with run():
        made = artefact(**changes)
        assert first.is_current(made) == (not reason)
        assert reason in repr(made)
        assert Seen(made).built == bool(reason)
    os.chmod("source", 0o644)
    Path("source").write_bytes(b"text")
    with run():
        assert not Seen(artefact()).built, "a revert is a hit"


def test_another_program_by_the_same_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run():
        first = Seen(artefact(programs=("sh",)))
        assert first.is_current(artefact(programs=("sh",)))
    (here / "bin").mkdir()
    (here / "bin" / "sh").write_text("#!/bin/false\n")
    (here / "bin" / "sh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    with run():
        assert not first.is_current(artefact(programs=("sh",)))
        assert Seen(artefact(programs=("sh",))).built


def test_the_place_of_the_checkout_does_not_matter(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run():
        assert Seen(artefact()).built
    (here / "elsewhere").mkdir()
    shutil.copy("source", "elsewhere/source")
    monkeypatch.chdir(here / "elsewhere")
    with run("../cache"):
        assert not Seen(artefact()).built
        given = artefact()
        absolute = replace(given, inputs={"source": [Path("source").absolute()]})
        assert absolute.parts() == given.parts()


def relink(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("folder/other")


DIRECTORY: dict[str, tuple[Callable[[Path], object], bool]] = {
    "content": (lambda root: (root / "folder" / "file").write_bytes(b"other"), True),
    "content, size and time kept": (lambda root: hurt(root / "folder" / "file"), True),
    "executable": (lambda root: (root / "folder" / "file").chmod(0o755), True),
    "what umask decides": (lambda root: (root / "folder" / "file").chmod(0o600), False),
    "what umask decides, of a directory": (lambda root: (root / "folder").chmod(0o700), False),
    "touched": (lambda root: os.utime(root / "folder" / "file", (1, 1)), False),
    "a link": (relink, True),
    "planted": (lambda root: (root / "folder" / "more").write_bytes(b""), True),
    "an empty directory": (lambda root: (root / "more").mkdir(), True),
    "removed": (lambda root: (root / "folder" / "file").unlink(), True),
}


@pytest.mark.parametrize("name", DIRECTORY)
def test_changes_in_a_directory_of_sources_decide(name: str) -> None:
    edit, decides = DIRECTORY[name]
    root = Path("sources")
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "file").write_bytes(b"text")
    (root / "folder" / "file").chmod(0o644)
    (root / "link").symlink_to("folder/file")
    time.sleep(0.03)
    with run():
        first = Seen(artefact(directories={"sources": root}))
        assert first.is_current(artefact(directories={"sources": root}))
        edit(root)
        assert first.is_current(artefact(directories={"sources": root})) != decides
        assert Seen(artefact(directories={"sources": root})).built == decides


# What is there is as it was made.


def put_a_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def put_a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")


def put_a_directory(path: Path) -> None:
    path.unlink()
    (path / "more").mkdir(parents=True)


HURT: dict[str, tuple[str, Callable[[Path], object]]] = {
    "edited": ("shout", hurt),
    "deleted": ("shout", Path.unlink),
    "mode": ("shout", lambda path: path.chmod(0o666)),
    "set-id": ("shout", lambda path: path.chmod(0o4644)),
    "a link": ("shout", put_a_link),
    "a directory": ("shout", put_a_directory),
    "edited in a tree": ("grow", lambda path: hurt(path / "deep" / "leaf")),
    "deleted from a tree": ("grow", lambda path: (path / "run").unlink()),
    "mode in a tree": ("grow", lambda path: (path / "run").chmod(0o644)),
    "planted in a tree": ("grow", lambda path: (path / "deep" / "planted").write_bytes(b"")),
    "a tree that is a link": ("grow", put_a_link),
    "a tree that is a file": ("grow", put_a_file),
    "a tree that is gone": ("grow", shutil.rmtree),
}


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", HURT)
def test_a_changed_output_is_restored(name: str, cached: bool) -> None:
    function, change = HURT[name]
    with run(shared="" if cached else "off"):
        first = Seen(artefact(function))
        path = Path("build/output")
        good = listing(path)
        assert first.is_current(artefact(function)), "the control"
        change(path)
        made = artefact(function)
        assert not first.is_current(made)
        assert repr(made) == "build/output: not as it was made"
        healed = Seen(artefact(function))
        assert healed.built != cached
        assert healed.is_current(artefact(function))
        assert not path.is_symlink()
        assert listing(path) == good
        assert {found.name for found in path.parent.iterdir()} <= {"output", "moved"}, "nothing is left behind"


def test_an_unchanged_output_is_not_replaced() -> None:
    """Its file keeps its identity, so later tasks do not read it again."""
    with run():
        Seen(artefact())
        before = Path("build/output").stat()
        edited()
        Path("source").write_bytes(b"TEXT")  # another input that makes the same
        assert Seen(artefact()).built
        assert os.path.samestat(Path("build/output").stat(), before)
        assert Path("build/output").stat().st_ctime_ns == before.st_ctime_ns
        Path("source").write_bytes(b"other")
        Seen(artefact())
        assert not os.path.samestat(Path("build/output").stat(), before), "the control"


def test_ignored_files_in_a_tree_are_kept() -> None:
    with run():
        first = Seen(artefact("grow", ignored=("state",), own=("deep",)))
        state = Path("build/output/state")
        state.mkdir()
        (state / "log").write_bytes(b"kept")
        assert first.is_current(artefact("grow", ignored=("state",), own=("deep",)))
        assert not first.is_current(artefact("grow")), "the control"
        (Path("build/output") / "run").unlink()
        assert not Seen(artefact("grow", ignored=("state",), own=("deep",))).built
        assert (state / "log").read_bytes() == b"kept"


def two_outputs() -> Artefact:
    made = artefact("shout_twice")
    return dataclasses.replace(made, outputs={**made.outputs, "echo": Path("build/echo")})


def test_a_finished_output_is_cached_while_the_rest_is_made() -> None:
    Path("later").touch()
    with run():
        assert Seen(two_outputs()).built
        assert not Path("later").exists(), "the first was in the cache before the second was begun"
    shutil.rmtree("build")
    with run():
        assert not Seen(two_outputs()).built
    assert Path("build/output").read_bytes() == b"TEXT" and Path("build/echo").read_bytes() == b"text"


def test_a_finished_output_of_a_failed_function_is_not_an_artefact() -> None:
    Path("broken").touch()
    with run(), pytest.raises(RuntimeError, match="half-way"):
        Seen(two_outputs())
    assert not Path("build/output").exists() and not list(Path("cache").glob("entries/*"))
    Path("broken").unlink()
    with run():
        assert Seen(two_outputs()).built  # the control, and nothing of the failure is in the way
