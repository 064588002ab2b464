# SPDX-License-Identifier: Apache-2.0
"""Locks between processes, and the lock of a checkout."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.pipeline.checkout import Checkout
from sevsnp.system.locks import held, locked, locked_if_free
from tests.support.waiting import NET

PROJECT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from sevsnp.system.locks import locked
with locked(Path(sys.argv[1]), shared=sys.argv[2] == "shared"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path, kind: str = "alone") -> Iterator["subprocess.Popen[bytes]"]:
    """Another process holds the lock until its input ends, or it does."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path.absolute()), kind],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def free(path: Path) -> bool:
    with locked_if_free(path) as alone:
        return alone


def test_only_one_process_holds_an_exclusive_lock(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "a"
    assert free(lock)
    with held_elsewhere(lock):
        assert not free(lock)
        assert free(tmp_path / "locks" / "b")
    assert free(lock)


def test_several_processes_hold_a_shared_lock(tmp_path: Path) -> None:
    lock = tmp_path / "a"
    with held_elsewhere(lock, "shared"):
        with locked(lock, shared=True, waiting=lambda: pytest.fail("waits for who shares")):
            assert not free(lock)
        assert not free(lock)


@pytest.mark.parametrize("end", ["ends", "is killed"])
def test_a_waiting_process_gets_the_lock_when_its_holder_ends(tmp_path: Path, end: str) -> None:
    lock = tmp_path / "a"
    said: list[str] = []
    with held_elsewhere(lock) as holder:
        assert holder.stdin
        stop = holder.stdin.close if end == "ends" else holder.kill
        stopped = threading.Event()

        def end_it() -> None:
            stopped.set()
            stop()

        timer = threading.Timer(0.3, end_it)
        timer.start()
        with locked(lock, waiting=lambda: said.append("waiting")):
            assert stopped.is_set(), "it waited for the holder"
            assert said == ["waiting"]
        timer.join()


def test_a_removed_lock_file_still_admits_exactly_one_process_at_a_time(tmp_path: Path) -> None:
    """A cleaning process removes a lock file that others already wait for: they must all use the new file."""
    lock = tmp_path / "a"
    inside: list[int] = []
    most: list[int] = []

    def enter(number: int) -> None:
        with locked(lock):
            inside.append(number)
            most.append(len(inside))
            time.sleep(0.1)
            inside.remove(number)

    with locked_if_free(lock) as alone:
        assert alone
        waiting = [threading.Thread(target=enter, args=(number,)) for number in range(2)]
        for thread in waiting:
            thread.start()
        time.sleep(0.2)
        lock.unlink()
        # One that comes after the removal makes a file of its own.
        late = threading.Thread(target=enter, args=(2,))
        late.start()
        time.sleep(0.05)
    for thread in (*waiting, late):
        thread.join(NET)
    assert most == [1, 1, 1]
    assert lock.exists()


def test_an_error_releases_the_lock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), locked(tmp_path / "a"):
        raise RuntimeError
    assert free(tmp_path / "a")


def test_the_checkout_s_lock_is_kept_while_anything_is_made(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / ".cache" / "build.lock"
    checkout = Checkout(path)
    checkout.acquire(said.append)
    assert not free(path)
    with checkout.making(said.append):
        checkout.release()
        assert not free(path), "another thread makes something"
    checkout.release()
    assert free(path)
    with checkout.making(said.append):
        assert not free(path), "who makes something later takes it again"
    assert said == []
    checkout.release()
    with held_elsewhere(path) as holder:
        assert holder.stdin
        threading.Timer(0.2, holder.stdin.close).start()
        checkout.acquire(said.append)
    assert said == ["waiting for another run that builds in this checkout"]
    checkout.release()


def test_the_holder_is_recorded_until_it_releases_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(lock, UserError, 0o644) as note:
        note("the first")
        note("a")
        assert lock.read_text() == "a" and lock.stat().st_mode & 0o777 == 0o644
        with pytest.raises(UserError, match="a"), held(lock, UserError):
            pass
        assert lock.read_text() == "a"
    assert lock.read_text() == ""
    with pytest.raises(OSError, match="of the work"), held(lock, UserError) as note:
        note("b")
        raise OSError("of the work")
    assert lock.read_text() == ""


def test_a_process_that_only_tests_the_lock_does_not_count_as_its_holder(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    with held_elsewhere(lock, "shared") as holder, held_soon(holder), held(lock, UserError):
        pass
    # Control: one that stays.
    with held_elsewhere(lock, "shared"), pytest.raises(UserError), held(lock, UserError):
        pass


def test_a_link_is_refused_as_a_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="lock"), held(tmp_path / "lock", UserError):
        pass
    assert not (tmp_path / "other").exists()


@contextmanager
def held_soon(holder: "subprocess.Popen[bytes]") -> Iterator[None]:
    """``holder`` lets go in an instant."""
    ending = threading.Timer(0.02, holder.kill)
    ending.start()
    yield
    ending.join()
