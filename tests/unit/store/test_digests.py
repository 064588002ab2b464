# SPDX-License-Identifier: Apache-2.0
"""The digest index: whatever happens to the times of a file, its digest is that of its content."""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from doit.dependency import MD5Checker

from sevsnp.pipeline.checker import Sha256Checker
from sevsnp.store import digests
from sevsnp.store.digests import Index
from sevsnp.store.session import Options
from sevsnp.system.files import CHUNK, sha256_file
from tests.support.makers import new_run

TICK = 0.03


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def settled(path: Path, data: bytes) -> Path:
    """A file that is old enough to be remembered."""
    path.write_bytes(data)
    time.sleep(TICK)
    return path


def write_keeping_times(path: Path, data: bytes) -> None:
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read from now on."""
    read: list[Path] = []

    def reading(path: Path) -> str:
        read.append(path)
        return sha256_file(path)

    monkeypatch.setattr(digests, "sha256_file", reading)
    return read


def test_a_file_with_a_known_digest_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = settled(tmp_path / "a", b"one")
    read = counted(monkeypatch)
    index = Index(tmp_path / "index.db")
    assert [index.file(file), index.file(file)] == [sha256(b"one")] * 2
    index.close()
    assert Index(tmp_path / "index.db").file(file) == sha256(b"one")
    assert read == [file]
    # Control: an index that remembers nothing reads it each time.
    assert Index(None).file(file) == sha256(b"one")
    assert read == [file, file]


def test_an_edit_with_equal_size_and_mtime_is_detected_but_not_by_doit_alone(tmp_path: Path) -> None:
    file = settled(tmp_path / "a", b"one")
    with new_run(Options(tmp_path / "cache")):
        ours, theirs = Sha256Checker(), MD5Checker()
        known = ours.get_state(str(file), None)
        before = theirs.get_state(str(file), None)
        assert not ours.check_modified(str(file), file.stat(), known)
        write_keeping_times(file, b"two")
        assert ours.check_modified(str(file), file.stat(), known)
        assert not theirs.check_modified(str(file), file.stat(), before)
        file.write_bytes(b"one")
        assert not ours.check_modified(str(file), file.stat(), known), "a revert is no change"


def test_a_file_that_replaces_another_is_detected(tmp_path: Path) -> None:
    file, other = settled(tmp_path / "a", b"one"), settled(tmp_path / "b", b"two")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    index = Index(None)
    assert index.file(file) == sha256(b"one")
    other.replace(file)
    assert index.file(file) == sha256(b"two")


@pytest.mark.parametrize("size", [3, CHUNK + 1])
def test_a_file_written_twice_within_a_clock_tick_gets_the_right_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """On a kernel whose clock ticks every 15 ms; newer kernels distinguish the two writes themselves."""
    coarse(monkeypatch)
    file = tmp_path / "a"
    assert remembered(file, size) == {sha256(b"two".ljust(size))}
    # Control: an index that does not wait for the tick to end.
    monkeypatch.setattr(digests, "_TICK_NS", 0)
    assert sha256(b"one".ljust(size)) in remembered(file, size)


@pytest.mark.parametrize("tree", [False, True])
def test_a_file_written_while_it_is_read_gets_the_right_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: bool
) -> None:
    """Read, then written within the tick of the first write; then the reader waits for longer than a tick."""
    monkeypatch.setattr(digests, "identity", lambda status: f"{status.st_ino}:{status.st_size}")
    file = tmp_path / "folder" / "a"
    file.parent.mkdir()
    if tree:
        time.sleep(TICK)

    def slowly(path: Path) -> str:
        digest = sha256_file(path)
        if path.read_bytes() == b"one":
            path.write_bytes(b"two")
        time.sleep(TICK)
        return digest

    file.write_bytes(b"one")
    monkeypatch.setattr(digests, "sha256_file", slowly)
    index = Index(None)
    look = index.tree if tree else index.file
    place = file.parent if tree else file
    torn, whole = look(place), look(place)
    assert torn != whole
    # Control: a file that was old when it was looked at is remembered, so the test could have failed.
    assert look(place) == whole
    file.write_bytes(b"six")
    assert look(place) == whole


def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    def identity(status: os.stat_result) -> str:
        return f"{status.st_ino}:{status.st_size}:{status.st_ctime_ns // 15_000_000}"

    monkeypatch.setattr(digests, "identity", identity)


def remembered(file: Path, size: int) -> set[str]:
    """What an index says of a file that was written, looked at, and written again, if it can be within a tick."""
    found = set()
    for _ in range(20):
        file.write_bytes(b"one".ljust(size))
        index = Index(None)
        index.file(file)
        file.write_bytes(b"two".ljust(size))
        found.add(index.file(file))
    return found


def test_a_directory_and_a_missing_file_have_no_digest(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        Index(None).file(tmp_path)
    with pytest.raises(FileNotFoundError):
        Index(None).file(tmp_path / "nonsuch")


def make_tree(root: Path) -> Path:
    (root / "folder").mkdir(parents=True)
    (root / "file").write_bytes(b"one")
    (root / "folder" / "file").write_bytes(b"two")
    (root / "link").symlink_to("file")
    (root / "state").mkdir()
    return root


def relink(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("folder")


TREE_EDITS = {
    "content": lambda root: write_keeping_times(root / "folder" / "file", b"six"),
    "a file's mode": lambda root: (root / "file").chmod(0o755),
    "a directory's mode": lambda root: (root / "folder").chmod(0o700),
    "its own mode": lambda root: root.chmod(0o700),
    "a file planted": lambda root: (root / "folder" / "more").write_bytes(b""),
    "a directory planted": lambda root: (root / "more").mkdir(),
    "a file removed": lambda root: (root / "folder" / "file").unlink(),
    "a file renamed": lambda root: (root / "file").rename(root / "other"),
    "a link's target": relink,
}


@pytest.mark.parametrize("name", TREE_EDITS)
def test_the_digest_of_a_tree_depends_on_names_contents_and_modes(tmp_path: Path, name: str) -> None:
    root = make_tree(tmp_path / "tree")
    time.sleep(TICK)
    index = Index(None)
    before = index.tree(root, ["state"])
    assert index.tree(root, ["state"]) == before
    TREE_EDITS[name](root)
    assert index.tree(root, ["state"]) != before


def test_the_digest_of_a_tree_ignores_times_its_path_and_ignored_files(tmp_path: Path) -> None:
    one, two = make_tree(tmp_path / "one"), make_tree(tmp_path / "two")
    os.utime(two / "file", (1, 1))
    (two / "state" / "log").write_bytes(b"noise")
    index = Index(None)
    assert index.tree(one, ["state"]) == index.tree(two, ["state"])
    assert index.tree(one) != index.tree(two)


def test_special_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: found a special file"):
        Index(None).tree(tmp_path)
    (tmp_path / "pipe").unlink()
    (tmp_path / "root").write_bytes(b"")
    assert Index(None).tree(tmp_path)
    (tmp_path / "root").chmod(0o4755)
    with pytest.raises(ValueError, match="set-id"):
        Index(None).tree(tmp_path)


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all" * 100)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [garbage, cut_short, a_directory])
def test_a_damaged_database_does_not_change_digests(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    database = tmp_path / "index.db"
    files = [settled(tmp_path / "a", b"one")]
    index = Index(database)
    for number in range(500):
        index.memo(f"{number}", lambda: "filling" * 20)
    assert index.file(files[0]) == sha256(b"one")
    index.close()
    checkpoint = sqlite3.connect(database)
    checkpoint.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    checkpoint.close()
    damage(database)
    found = Index(database)
    assert found.file(files[0]) == sha256(b"one")
    found.close()


def test_a_file_that_is_not_a_database_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = settled(tmp_path / "a", b"one")
    garbage(tmp_path / "index.db")
    index = Index(tmp_path / "index.db")
    index.file(file)
    index.close()
    read = counted(monkeypatch)
    assert Index(tmp_path / "index.db").file(file) == sha256(b"one")
    assert read == []


def test_the_number_of_remembered_values_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_ROWS", 10)
    index = Index(tmp_path / "index.db")
    for number in range(20):
        index.memo(str(number), lambda: 1)
    index.close()
    assert sqlite3.connect(tmp_path / "index.db").execute("SELECT name FROM known").fetchall() == [("boot",)]


def test_a_check_that_passed_is_repeated_after_any_change(tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "folder" / "a"
    folder.mkdir()
    settled(file, b"one")
    asked: list[bool] = []

    def check(answer: bool) -> bool:
        asked.append(answer)
        return answer

    def times(name: str, *, answer: bool) -> int:
        """How often the check is asked when the index is asked twice."""
        asked.clear()
        for _ in range(2):
            index = Index(tmp_path / "index.db")
            assert index.holds(name, [folder, file], lambda: check(answer)) is answer
            index.close()
        return len(asked)

    # Only a yes is remembered, and for one name.
    assert [times("x", answer=False), times("x", answer=True), times("y", answer=True)] == [2, 1, 1]
    assert times("x", answer=True) == 0

    def link() -> None:
        file.rename(folder / "b")
        file.symlink_to("b")

    changes: list[Callable[[], object]] = [
        lambda: file.chmod(0o600),
        lambda: write_keeping_times(file, b"two"),
        link,
        lambda: (folder / "c").touch(),
    ]
    for change in changes:
        change()
        time.sleep(TICK)
        assert times("x", answer=True) == 1
    folder.chmod(0o700)  # so young that the next change could have the same time
    assert times("x", answer=True) == 2
    file.unlink()
    time.sleep(TICK)
    assert times("x", answer=True) == 2


def test_a_check_during_which_a_file_changes_is_not_remembered(tmp_path: Path) -> None:
    file, index = settled(tmp_path / "a", b"one"), Index(None)

    def changing() -> bool:
        settled(file, b"two")
        return True

    assert index.holds("x", [file], changing)
    assert not index.holds("x", [file], lambda: False)
