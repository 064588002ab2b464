# SPDX-License-Identifier: Apache-2.0
"""Faults while an artefact is made, and artefacts that are never kept: damage, changes, secrets, full disks."""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.store.artefact import Artefact
from tests.support.makers import Seen, artefact, begin, hurt, meanwhile, run
from tests.support.waiting import NET
from tests.unit.store.test_local_store import CANARY, holds
from tests.unit.system.test_locks import held_elsewhere

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    begin()
    return tmp_path


def blobs() -> list[Path]:
    return sorted(Path("cache/blobs").glob("*/*"))


def entries() -> list[Path]:
    return sorted(Path("cache/entries").glob("[!.]*")) if Path("cache/entries").is_dir() else []


@pytest.mark.parametrize("known", [True, False])
def test_an_artefact_with_a_damaged_blob_is_made_again(known: bool) -> None:
    with run():
        Seen(artefact())
        [blob] = blobs()
        if known:
            hurt(blob)
            Path("build/output").unlink()
            assert Seen(artefact()).built
    if not known:
        hurt(blob)
        Path("build/output").unlink()
        with run():
            assert Seen(artefact()).built
    assert Path("build/output").read_bytes() == b"TEXT"
    assert blobs() == [blob]
    assert blob.read_bytes() == b"TEXT"
    Path("build/output").unlink()
    with run():
        assert not Seen(artefact()).built, "it is whole again"


def test_a_function_that_fails_leaves_nothing() -> None:
    with run():
        Seen(artefact())
        Path("source").write_bytes(b"other")
        with pytest.raises(RuntimeError):
            artefact("fail").make(print, print)
        assert Path("build/output").read_bytes() == b"TEXT"
        assert [path.name for path in Path("build").iterdir()] == ["output"]
        assert len(entries()) == 1


def test_an_input_that_changes_during_the_work_is_an_error() -> None:
    with run():
        meanwhile.append(Path("source"))
        with pytest.raises(UserError, match="its inputs changed while it was made"):
            artefact().make(print, print)
        assert entries() == []
        assert not Path("build/output").exists()
        Path("source").write_bytes(b"text")
        assert Seen(artefact()).built
        assert len(entries()) == 1, "the control"


@pytest.mark.parametrize("function", ["lock_away", "lock_away_deep"])
def test_a_secret_is_never_kept(function: str) -> None:
    Path("source").write_bytes(CANARY)
    with run():
        for _ in range(2):
            assert Seen(artefact(function)).built
            shutil.rmtree("build")
    assert not holds(Path("cache"), CANARY)
    assert not holds(Path("cache"), CANARY.upper())
    with run():
        assert Seen(artefact("grow", cached=False)).built
    assert not holds(Path("cache"), CANARY)
    with run():
        Seen(artefact("grow"))
    assert holds(Path("cache"), CANARY), "the control"


def test_a_cache_with_files_in_place_of_directories_gives_a_warning() -> None:
    Path("cache").mkdir(mode=0o755)
    for name in ("locks", "entries", "blobs"):
        shutil.rmtree("cache")
        Path("cache").mkdir(mode=0o755)
        Path("cache", name).write_bytes(b"")
        with run():
            seen = Seen(artefact())
            assert seen.built
            assert seen.said
            assert seen.is_current(artefact())
        shutil.rmtree("build")


UNPRIVILEGED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
# Before the change of user: Python itself may be out of reach for that one.
import shutil, tempfile
from tests.support.makers import Seen, artefact, run
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
os.umask(0o022)
with run(sys.argv[2]):
    seen = Seen(artefact())
print(seen.built, Path("build/output").read_text(), seen.said)
"""


def unprivileged(directory: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(PROJECT), directory],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def anybody_s(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory is one that every user can reach; pytest's own are the owner's."""
    with tempfile.TemporaryDirectory() as directory:
        monkeypatch.chdir(directory)
        os.chmod(directory, 0o755)
        Path("source").write_bytes(b"text")
        for name in ("cache", "build"):
            Path(name).mkdir()
            if os.geteuid() == 0:
                os.chown(name, 65534, 65534)
        yield
        monkeypatch.undo()


def test_a_cache_that_cannot_be_written_is_a_warning(anybody_s: None) -> None:
    Path("cache").chmod(0o555)
    said = unprivileged("cache")
    assert said.startswith("True TEXT")
    assert "the artefact cache cannot be used" in said
    Path("cache").chmod(0o755)
    Path("build/output").unlink()
    assert unprivileged("cache") == "True TEXT []", "the control"
    Path("build/output").unlink()
    assert unprivileged("cache") == "False TEXT []"
    # One that can only be read has what it has; whether it is copied or made again, there is a build.
    Path("build/output").unlink()
    for path in (*Path("cache").rglob("*"), Path("cache")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert " TEXT " in unprivileged("cache")
    for path in (Path("cache"), *Path("cache").rglob("*")):
        path.chmod(0o755)


FULL = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.support.makers import Seen, artefact, run
import tests.support.makers as makers
real = makers.shout
def shout(*, source, output):
    real(source=source, output=output)
    if sys.argv[2] == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (2, resource.RLIM_INFINITY))
makers.shout = shout
with run("cache"):
    seen = Seen(artefact())
print(seen.built, Path("build/output").read_text(), seen.said)
"""


@pytest.mark.parametrize("disk", ["full", "with room"])
def test_a_full_disk_under_the_cache_is_a_warning(disk: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(PROJECT), disk], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True TEXT [")
    assert ("not kept in the artefact cache" in done.stdout) == (disk == "full")
    assert len(entries()) == (disk != "full")
    assert [path for path in Path("cache").rglob(".*") if path.is_dir()] == []


CHANGED = """
import os, sys, time
from pathlib import Path
from sevsnp.store import session
session.configure(session.Options(Path("cache").absolute()))
from sevsnp.store.artefact import Artefact
time.sleep(0.05)
if sys.argv[1] != "nothing":
    path = Path("sevsnp") / sys.argv[1]
    status = path.stat()
    path.write_text(path.read_text() + "\\n# a remark\\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
made = Artefact("sevsnp.maker:make", inputs={"source": [Path("source")]}, directories={},
                outputs={"output": Path("build/output")}, params={}, given={"source": Path("source")})
try:
    made.make(print, print)
except Exception as error:
    print(type(error).__name__, error)
else:
    print("made")
"""


@pytest.mark.parametrize("edit", ["nothing", "unused.py", "maker.py", "helper.py"])
def test_a_source_that_changes_after_the_start_is_an_error(here: Path, edit: str) -> None:
    """The loaded code may be the old one and the digest that of the new one: then the digest would be wrong."""
    shutil.copytree(PROJECT / "sevsnp", here / "sevsnp", ignore=shutil.ignore_patterns("__pycache__"))
    (here / "sevsnp" / "unused.py").write_text("")
    (here / "sevsnp" / "helper.py").write_text("")
    (here / "sevsnp" / "maker.py").write_text(
        "import sevsnp.helper\ndef make(source, output):\n    output.write_bytes(source.read_bytes())\n"
    )
    time.sleep(0.1)
    done = subprocess.run(
        [sys.executable, "-c", CHANGED, edit], cwd=here, capture_output=True, text=True, check=True, timeout=60
    )
    if edit in ("nothing", "unused.py"):
        assert done.stdout == "made\n", "the control"
        assert len(entries()) == 1
    else:
        assert f"{edit}: changed since this run started" in done.stdout
        assert done.stdout.startswith("UserError")
        assert entries() == []


def test_of_two_processes_one_makes_the_artefact_and_the_other_copies_it() -> None:
    """Two processes use one cache, each with a directory of its own."""
    with run():
        key = _key(artefact())
        with held_elsewhere(Path("cache/locks") / key) as holder:
            said: list[str] = []
            waiting = threading.Thread(target=lambda: artefact().make(said.append, said.append))
            waiting.start()
            time.sleep(0.3)
            assert said == ["waiting for another run that makes the same"]
            assert not Path("build/output").exists()
            assert holder.stdin
            holder.stdin.close()
            waiting.join(NET)
        assert Path("build/output").read_bytes() == b"TEXT"


def _key(made: Artefact) -> str:
    """The name under which it is kept, as a first run shows it."""
    made.make(lambda _: None, lambda _: None)
    [entry] = entries()
    shutil.rmtree("build")
    entry.unlink()
    return entry.name


def test_the_size_limit_of_the_cache_is_respected() -> None:
    with run(limit=1 << 20):
        for _ in range(6):
            Path("source").write_bytes(os.urandom(1 << 18))
            Seen(artefact())
            assert sum(path.stat().st_blocks * 512 for path in blobs()) <= 1 << 20
        assert len(entries()) == 4
