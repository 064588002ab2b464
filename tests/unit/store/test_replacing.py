# SPDX-License-Identifier: Apache-2.0
"""A user's files in a tree stay in their place: in a build, in one that fails or is killed at any step, in a clean."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.store.artefact import Artefact
from tasks import graph
from tests.support.makers import Seen, artefact, begin, listing, run
from tests.support.processes import AS_NOBODY

PROJECT = Path(__file__).resolve().parents[3]
TREE = Path("build/output")
DISK = TREE / "state" / "luks.img"
IGNORED, OWN = ("state", "states"), ("deep",)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    begin()
    return tmp_path


def bundle(**changes: Any) -> Artefact:
    return artefact("grow", **{"ignored": IGNORED, "own": OWN, "cached": False, **changes})


def written(path: Path) -> Path:
    """A file of the user's at ``path``."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(path.parent.name.encode())
    return path


def edited() -> None:
    Path("source").write_bytes(b"other")


@pytest.mark.parametrize("cached", [True, False])
def test_a_directory_that_was_not_built_is_not_removed(cached: bool) -> None:
    with run():
        Seen(bundle(cached=cached))
        disks = [written(DISK), written(TREE / "second" / "luks.img")]
        before = listing(TREE)
        for _ in range(2):
            with pytest.raises(UserError, match=r"build/output: found second, expected no directory that was not") as e:
                bundle(cached=cached).make(print, print)
            assert e.value.hint.endswith("mkdir -p build/output/states && mv build/output/second build/output/states")
            assert listing(TREE) == before
        (TREE / "states").mkdir()
        disks[1].parent.rename(TREE / "states" / "second")
        first = Seen(bundle(cached=cached))  # the control
        edited()
        Seen(bundle(cached=cached))
        assert not first.is_current(bundle(cached=cached))
    assert DISK.read_bytes() == b"state" and (TREE / "states/second/luks.img").read_bytes() == b"second"
    assert (TREE / "deep" / "leaf").read_bytes() == b"other"


def test_a_tree_without_a_place_for_users_is_made_again_whatever_is_in_it() -> None:
    with run():
        Seen(bundle(ignored=()))
        written(TREE / "second" / "luks.img")
        Seen(bundle(ignored=()))
    assert not (TREE / "second").exists()


def test_a_planted_file_is_removed_and_a_link_to_a_user_s_directory_is_not(here: Path) -> None:
    with run():
        Seen(bundle())
        (TREE / "planted").write_bytes(b"")
        (TREE / "state").symlink_to("/not/mounted")  # as a disk that is not there now
        Seen(bundle())
        assert not (TREE / "planted").exists() and os.readlink(TREE / "state") == "/not/mounted"
        (TREE / "second").symlink_to(here)
        with pytest.raises(UserError, match="found second"):
            bundle().make(print, print)
        assert (TREE / "second").is_symlink()


def test_a_function_must_not_make_what_is_a_user_s() -> None:
    with run():
        with pytest.raises(UserError, match="made what its task leaves to users: deep"):
            bundle(own=()).make(print, print)
        assert not TREE.exists()
        Seen(bundle())  # the control


def test_a_clean_leaves_what_was_not_built(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(graph.CHECKOUT, "acquire", lambda say: None)
    with run():
        Seen(bundle())
    written(DISK)
    written(TREE / "second" / "luks.img")
    graph.clean([TREE], IGNORED, OWN, dryrun=True)
    assert (TREE / "deep").exists()
    graph.clean([TREE], IGNORED, OWN, dryrun=False)
    assert sorted(path.name for path in TREE.iterdir()) == ["second", "state"]
    assert DISK.read_bytes() == b"state" and (TREE / "second" / "luks.img").read_bytes() == b"second"
    assert "left: build/output/second, build/output/state\n" in capsys.readouterr().out
    for name in ("second", "state"):
        shutil.rmtree(TREE / name)
    graph.clean([TREE], IGNORED, OWN, dryrun=False)
    assert not TREE.exists(), "the control"


# Makes the tree again, and fails at one of the steps that move something in build/: with an error, or by SIGKILL.
AGAIN = """
import errno, os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.support.makers import artefact, run
from tests.unit.store.test_replacing import bundle
left = int(sys.argv[2])
def fails_at_last(move):
    def moved(source, target, **words):
        global left
        if "/output" in str(target):
            left -= 1
            if left == 0 and sys.argv[3] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if left == 0:
                raise OSError(errno.EBUSY, "busy", str(source))
        return move(source, target, **words)
    return moved
os.rename, os.replace = fails_at_last(os.rename), fails_at_last(os.replace)
with run():
    try:
        bundle().make(print, print)
    except OSError as error:
        sys.exit(3 if error.errno == errno.EBUSY else 4)
"""


def again(step: int, how: str) -> int:
    words = [sys.executable, "-B", "-c", AGAIN, str(PROJECT), str(step), how]
    return subprocess.run(words, check=False, timeout=120).returncode


def others(*left_out: str) -> list[str]:
    """What is in build/ beside the tree."""
    return sorted(path.name for path in Path("build").iterdir() if path.name not in ("output", *left_out))


@pytest.mark.parametrize("state", [True, False], ids=["state", "no state"])
def test_a_build_that_fails_at_any_step_leaves_all_as_it_was(state: bool) -> None:
    with run():
        Seen(bundle())
    if state:
        written(DISK)
    edited()
    before = listing(TREE)
    step = 1
    while code := again(step, "error"):
        assert code == 3
        assert listing(TREE) == before and others() == []
        step += 1
    assert step > (8 if state else 2), "each name was moved"
    assert (TREE / "deep" / "leaf").read_bytes() == b"other", "the control"
    assert not state or DISK.read_bytes() == b"state"


def test_a_build_that_is_killed_at_any_step_leaves_the_user_s_files_in_their_place() -> None:
    with run():
        Seen(bundle())
    written(DISK)
    known, good = DISK.stat(), set(listing(TREE))
    step = 1
    while True:
        Path("source").write_bytes(b"other %d" % step)
        code = again(step, "kill")
        assert os.path.samestat(DISK.stat(), known) and DISK.read_bytes() == b"state"
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert others() != [], "what the killed run left"
        with run():
            Seen(bundle())
        assert set(listing(TREE)) == good and others() == []
        assert (TREE / "deep" / "leaf").read_bytes() == b"other %d" % step
        assert os.path.samestat(DISK.stat(), known)
        step += 1
    assert step > 8, "each name was moved"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root leaves what another user may not move")
def test_a_state_directory_of_root_is_no_hindrance_to_another_user(here: Path) -> None:
    """As `sudo ./run` leaves it."""

    def as_nobody() -> "subprocess.CompletedProcess[str]":
        words = [*AS_NOBODY, sys.executable, "-B", "-c", AGAIN, str(PROJECT), "0", ""]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)

    os.chown(here, 65534, 65534)
    assert as_nobody().returncode == 0
    known = written(DISK).stat()
    assert (DISK.parent.stat().st_uid, TREE.stat().st_uid) == (0, 65534)
    edited()
    assert as_nobody().returncode == 0
    assert (TREE / "deep" / "leaf").read_bytes() == b"other"
    assert os.path.samestat(DISK.stat(), known) and others() == []
    # The control: a part of the tree that may not be moved.
    os.chown(TREE / "deep", 0, 0)
    Path("source").write_bytes(b"more")
    before = listing(TREE)
    assert as_nobody().returncode == 4
    assert listing(TREE) == before and os.path.samestat(DISK.stat(), known) and others() == []
