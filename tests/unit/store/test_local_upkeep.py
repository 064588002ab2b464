# SPDX-License-Identifier: Apache-2.0
"""The artefact cache on one machine: its size is limited, it is cleaned while unused, and it belongs to one user."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevsnp.errors import UserError
from sevsnp.store.digests import Index
from sevsnp.store.entries import Entry
from sevsnp.store.local import LocalStore, Usage
from tests.unit.store.test_local_store import MIB, blob_of, entry_of, keep_bytes, key
from tests.unit.system.test_locks import held_elsewhere


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    yield LocalStore(tmp_path / "cache", Index(None))


def used_at(store: LocalStore, number: int, seconds: int) -> None:
    os.utime(store.directory / "entries" / key(number), (seconds, seconds))


def kept(store: LocalStore) -> set[int]:
    return {int(path.name, 16) for path in (store.directory / "entries").iterdir()}


def test_the_oldest_go_first_until_the_rest_fits(store: LocalStore) -> None:
    for number in range(6):
        keep_bytes(store, number, bytes([number]) * MIB)
        used_at(store, number, 1000 + number)
    assert store.entry(key(1)), "to look at it is to use it"
    assert store.prune(100 * MIB) == Usage(0, 0, 0), "the control"
    removed = store.prune(3 * MIB)
    assert removed
    assert (removed.entries, removed.blobs, removed.size) == (3, 3, 3 * MIB)
    assert kept(store) == {1, 4, 5}
    assert store.usage() == Usage(3, 3, 3 * MIB)
    assert store.verify() == []
    assert store.prune(0)
    assert store.usage() == Usage(0, 0, 0)


def test_blobs_of_a_kept_entry_are_kept(store: LocalStore) -> None:
    shared = os.urandom(MIB)
    old, new = keep_bytes(store, 1, shared), keep_bytes(store, 2, shared)
    other = keep_bytes(store, 3, os.urandom(MIB))
    for number, seconds in ((3, 1000), (1, 1001), (2, 1002)):
        used_at(store, number, seconds)
    store.prune(MIB)
    # Two entries, one blob: it counts once.
    assert kept(store) == {1, 2}
    assert store.has(old.blobs()[0])
    assert store.has(new.blobs()[0])
    assert not store.has(other.blobs()[0])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True), min_size=1, max_size=6),
    st.integers(0, 8),
)
def test_a_pruned_cache_is_within_its_limit_and_complete(
    tmp_path_factory: pytest.TempPathFactory, wanted: list[list[int]], limit: int
) -> None:
    base = tmp_path_factory.mktemp("prune")
    store = LocalStore(base / "cache", Index(None))
    for number, parts in enumerate(wanted):
        outputs = {}
        for part in parts:
            path = base / f"p{part}"
            path.write_bytes(bytes([part]) * 8192)
            outputs[f"o{part}"] = path
        made = {name: entry_of(0, path).outputs["output"] for name, path in outputs.items()}
        assert store.keep(Entry(key(number), "sevsnp.a:b", made), outputs)
        used_at(store, number, 1000 + number)
    store.prune(limit * 8192)
    assert store.usage().size <= limit * 8192
    assert store.verify() == []
    left = kept(store)
    fitting = [number for number, parts in enumerate(wanted) if len(parts) <= limit]
    assert left == set(fitting[len(fitting) - len(left) :]), "the youngest of those that fit at all stay"


def test_nothing_is_removed_while_another_process_uses_it(store: LocalStore) -> None:
    keep_bytes(store, 1, b"x" * MIB)
    with held_elsewhere(store.directory / "locks" / "all", "shared"):
        assert store.prune(0) is None
        assert kept(store) == {1}
    with store.in_use():
        assert store.prune(0) is None
    assert store.prune(0), "the control"
    assert kept(store) == set()


def test_one_process_makes_a_key_and_its_lock_file_is_removed_later(store: LocalStore) -> None:
    said: list[str] = []
    with held_elsewhere(store.directory / "locks" / key(1)) as holder:
        store.prune(0)
        assert (store.directory / "locks" / key(1)).exists(), "still held"
        assert holder.stdin
        holder.stdin.close()
        with store.making(key(1), lambda: said.append("waiting")):
            pass
    store.prune(0)
    assert [path.name for path in (store.directory / "locks").iterdir()] == ["all"]


def test_files_of_killed_runs_are_removed_at_the_next_cleaning(store: LocalStore) -> None:
    entry = keep_bytes(store, 1, b"one")
    blob = blob_of(store, entry)
    left = [blob.with_name(f".{blob.name}.abcdefgh"), store.directory / "entries" / f".{key(1)}.abcdefgh"]
    for path in left:
        path.mkdir()
        (path / "blob").write_bytes(b"half")
    assert store.verify() == []
    assert store.usage().blobs == 1
    store.prune(MIB)
    assert not any(path.exists() for path in left)
    assert store.has(entry.blobs()[0])


# Whose it is.


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775, 0o757])
def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(mode)
    with pytest.raises(UserError, match=f"mode {mode:04o}, expected one that only you can write to"):
        LocalStore(tmp_path / "cache", Index(None))
    (tmp_path / "cache").chmod(0o755)
    LocalStore(tmp_path / "cache", Index(None))


def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        theirs = tmp_path / "cache"
        theirs.mkdir()
        os.chown(theirs, 65534, 65534)
    else:
        theirs = Path("/usr")
    with pytest.raises(UserError, match="found a directory of user"):
        LocalStore(theirs, Index(None))


def test_a_cache_directory_that_cannot_be_made_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="SEVSNP_CACHE"):
        LocalStore(tmp_path / "file" / "cache", Index(None))


def test_times_of_last_use_are_whole_seconds(store: LocalStore) -> None:
    keep_bytes(store, 1, b"one")
    used_at(store, 1, 1000)
    (store.directory.parent / "now").write_bytes(b"")
    now = int((store.directory.parent / "now").stat().st_mtime)
    store.entry(key(1))
    assert (store.directory / "entries" / key(1)).stat().st_mtime >= now
