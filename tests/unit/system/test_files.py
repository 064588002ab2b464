# SPDX-License-Identifier: Apache-2.0
"""Scratch directories: those of killed processes are removed by the next process, those of living processes stay."""

import errno
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sevsnp.system import files
from sevsnp.system.files import scratch_directory, sha256_file, short_name, write_atomic
from tests.support.processes import AS_NOBODY
from tests.support.waiting import NET, wait_until

PROJECT = Path(__file__).resolve().parents[3]

PROJECT = Path(__file__).resolve().parents[3]
HOLDER = """
import sys
from pathlib import Path
from sevsnp.system.files import scratch_directory
with scratch_directory(Path(sys.argv[1])) as scratch:
    (scratch / "half").write_text("half")
    (scratch / "locked").mkdir(mode=0o500)
    print(scratch, flush=True)
    sys.stdin.read()
"""
# Many at once: each finds what it wrote, whatever the others sweep.
CROWD = """
import sys
from pathlib import Path
from sevsnp.system.files import scratch_directory
for number in range(400):
    with scratch_directory(Path(sys.argv[1])) as scratch:
        (scratch / "mine").write_text(str(number))
        assert (scratch / "mine").read_text() == str(number)
"""


@contextmanager
def holder(near: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Another process with a scratch directory beside ``near``."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(near)],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_directory_ends_with_its_block(tmp_path: Path) -> None:
    with scratch_directory(tmp_path / "deep" / "output") as scratch:
        assert scratch.parent == tmp_path / "deep" and scratch.name.startswith(".output.")
        (scratch / "read-only").mkdir()
        (scratch / "read-only" / "file").write_text("x")
        (scratch / "read-only").chmod(0o500)
    assert list((tmp_path / "deep").iterdir()) == []
    with pytest.raises(ZeroDivisionError), scratch_directory(tmp_path / "output"):
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]


def test_a_scratch_directory_of_a_killed_process_is_removed_at_once(tmp_path: Path) -> None:
    near = tmp_path / "output"
    with holder(near) as (process, left):
        process.kill()
        process.wait(NET)
        assert (left / "half").exists()
        with scratch_directory(tmp_path / "other"):
            assert left.exists(), "swept by an output of another name"
        with scratch_directory(near):
            assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_directory_of_a_living_process_stays(tmp_path: Path) -> None:
    near = tmp_path / "output"
    with holder(near) as (process, used):
        with scratch_directory(near) as ours:
            assert (used / "half").exists() and ours != used
        assert (used / "half").exists()
        process.communicate("", timeout=NET)
        assert process.returncode == 0 and not used.exists()


def test_a_scratch_directory_of_another_thread_stays(tmp_path: Path) -> None:
    near, entered, leave = tmp_path / "output", threading.Event(), threading.Event()
    used: list[Path] = []

    def work() -> None:
        with scratch_directory(near) as scratch:
            used.append(scratch)
            entered.set()
            leave.wait(NET)

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(NET)
    with scratch_directory(near):
        assert used[0].exists()
    leave.set()
    thread.join(NET)
    assert list(tmp_path.iterdir()) == []


def test_files_with_similar_names_stay(tmp_path: Path) -> None:
    """A file of the user whose name only looks like one of ours."""
    (tmp_path / ".output.settings").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".output.linkdirs").symlink_to("elsewhere")
    with scratch_directory(tmp_path / "output"):
        pass
    assert (tmp_path / ".output.settings").read_text() == "mine" and (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked"])
def test_a_scratch_directory_that_another_process_removes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another process removes unused directories between the making of this one and its lock."""
    swept: list[Path] = []

    def sweep() -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            files._sweep(tmp_path / "output")
            assert not swept[0].exists()

    if moment == "before it is opened":
        make = tempfile.mkdtemp

        def mkdtemp(prefix: str, dir: Path) -> str:
            made = make(prefix=prefix, dir=dir)
            sweep()
            return str(made)

        monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    else:
        lock = fcntl.flock

        def flock(descriptor: int, kind: int) -> None:
            if kind == fcntl.LOCK_EX:
                sweep()
            lock(descriptor, kind)

        monkeypatch.setattr(fcntl, "flock", flock)
    with scratch_directory(tmp_path / "output") as scratch:
        assert len(swept) == 1
        assert scratch.is_dir() and scratch != swept[0]


def test_many_processes_make_scratch_directories_at_once(tmp_path: Path) -> None:
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, str(tmp_path / "output")], cwd=PROJECT, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[1] for process in crowd]
    assert [process.returncode for process in crowd] == [0] * 4, said
    assert list(tmp_path.iterdir()) == []


def test_an_exit_while_a_thread_works_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, threading, time\nfrom pathlib import Path\nfrom sevsnp.system.files import scratch_directory\n"
        "entered = threading.Event()\n"
        "def work():\n"
        "    with scratch_directory(Path(sys.argv[1])) as scratch:\n"
        "        for number in range(100_000):\n"
        "            (scratch / str(number)).mkdir(); entered.set()\n"
        "threading.Thread(target=work, daemon=True).start()\nentered.wait(100); time.sleep(0.1)\n"
    )
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "output")], cwd=PROJECT, timeout=NET)
        assert done.returncode == 0 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_a_file_is_written_whole_with_its_mode(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", "text")
        write_atomic(tmp_path / "secret", b"\xff", mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "file").read_text() == "text" and (tmp_path / "file").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "secret").read_bytes() == b"\xff" and (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2


def test_a_killed_writer_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    target = tmp_path / "file"
    script = (
        "import sys\nfrom pathlib import Path\nfrom sevsnp.system.files import write_atomic\n"
        "while True:\n    for letter in 'ab':\n        write_atomic(Path(sys.argv[1]), letter * 3_000_000)\n"
    )
    for round_ in range(5):
        process = subprocess.Popen([sys.executable, "-c", script, str(target)], cwd=PROJECT)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.4 + 0.037 * round_)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(NET)
        assert not target.exists() or target.read_text() in ("a" * 3_000_000, "b" * 3_000_000)
    write_atomic(target, "end")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_with_free_space_is_not_reported_as_full(tmp_path: Path) -> None:
    """tests/pipeline/test_full_disk.py tests full disks."""
    assert files.disks([]) == {}
    odd: list[str | Path] = ["--option", "x" * 10_000, "a/" * 3000, "nul\0", tmp_path / "no" / "such", "/proc/1/fd/0"]
    found = files.disks(odd)
    assert found and not any(found.values()) and all(path.is_mount() for path in found)


def test_a_socket_in_a_directory_with_a_long_name(tmp_path: Path) -> None:
    """Another process makes it, as QEMU does. Control: a socket cannot be made with the long name itself."""
    directory = tmp_path / ("long" * 40)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as listener, pytest.raises(OSError, match="too long"):
        listener.bind(str(directory / "socket"))
    make = "import socket, sys; one = socket.socket(socket.AF_UNIX); one.bind(sys.argv[1]); one.listen(); one.accept()"
    with short_name(directory) as short:
        with subprocess.Popen([sys.executable, "-c", make, str(short / "socket")]) as process:
            try:
                with socket.socket(socket.AF_UNIX) as client:
                    wait_until(lambda: process.poll() is not None or not client.connect_ex(str(short / "socket")))
                    assert process.poll() is None
                assert process.wait(NET) == 0
            finally:
                process.kill()
        assert [path.name for path in directory.iterdir()] == ["socket"]
    assert not short.exists()


WRITES = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from sevsnp.system.files import cannot_write
path = Path("build/deep/file")
try:
    path.write_text("x")
    print("written")
except OSError as error:
    print(cannot_write(path, error))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has files that another user may not write")
def test_files_of_a_run_as_root_are_named_with_their_owner_and_the_remedy_works(tmp_path: Path) -> None:
    def write() -> list[str]:
        words = [*AS_NOBODY, sys.executable, "-B", "-c", WRITES, str(PROJECT)]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.splitlines()

    (tmp_path / "build" / "deep").mkdir(parents=True)
    (tmp_path / ".doit.db").touch()
    (tmp_path / "mine").touch()
    os.chown(tmp_path / "mine", 65534, 65534)
    message, hint = write()
    assert message == (f"build/deep/file: Permission denied: {tmp_path}/build/deep belongs to root, and this is nobody")
    assert hint == f"  run as root: cd {tmp_path} && chown -R nobody: .doit.db build"
    subprocess.run(["sh", "-c", hint.removeprefix("  run as root: ")], check=True, timeout=60)
    assert write() == ["written"]


def test_a_full_disk_is_reported_as_full(tmp_path: Path) -> None:
    said = files.cannot_write(tmp_path / "file", OSError(errno.ENOSPC, "No space left on device"))
    assert (said.message, said.hint) == (
        f"{tmp_path}/file: cannot be written: No space left on device", f"see: df -h {tmp_path}"
    )  # fmt: skip


@pytest.mark.parametrize(
    "parts", [(), ((0, b"a"),), ((5 << 20, b"b"),), ((0, b"a"), (3 << 20, b"c" * 5000), (9 << 20, b"d"))]
)
def test_a_file_with_holes_has_the_digest_of_its_bytes(tmp_path: Path, parts: tuple[tuple[int, bytes], ...]) -> None:
    path = tmp_path / "holes"
    with path.open("wb") as stream:
        for place, data in parts:
            stream.seek(place)
            stream.write(data)
        stream.truncate((9 << 20) + 12345)
    plain = path.read_bytes()
    (tmp_path / "plain").write_bytes(plain)
    assert path.stat().st_blocks * 512 < len(plain)
    assert sha256_file(path) == sha256_file(tmp_path / "plain") == hashlib.sha256(plain).hexdigest()
