# SPDX-License-Identifier: Apache-2.0
"""The artefact cache on one machine: content is restored unchanged, or not at all."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sevsnp.store.digests import Index, read_tree
from sevsnp.store.entries import LARGE, Blob, Entry, File, Tree
from sevsnp.store.local import DamagedError, LocalStore
from tests.support.makers import listing
from tests.support.texts import unicode_without

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    yield LocalStore(tmp_path / "cache", Index(None))


def key(number: int) -> str:
    return f"{number:064x}"


def entry_of(number: int, path: Path) -> Entry:
    status = path.stat()
    made: File | Tree
    if path.is_dir():
        made = read_tree(path)
    else:
        made = File(Blob(hashlib.sha256(path.read_bytes()).hexdigest(), status.st_size), status.st_mode & 0o777)
    return Entry(key(number), "sevsnp.a:b", {"output": made})


def keep(store: LocalStore, number: int, path: Path) -> Entry:
    entry = entry_of(number, path)
    assert store.keep(entry, {"output": path})
    return entry


def keep_bytes(store: LocalStore, number: int, data: bytes) -> Entry:
    path = store.directory.parent / f"made-{number}"
    path.write_bytes(data)
    return keep(store, number, path)


def blob_of(store: LocalStore, entry: Entry) -> Path:
    return store.blob_path(entry.blobs()[0])


def later(store: LocalStore) -> LocalStore:
    """The same cache in a process that has seen nothing of it yet."""
    return LocalStore(store.directory, Index(None))


names = st.text(unicode_without("/\0"), min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
# What its owner may not read or enter, only root could look at.
file_modes = st.integers(0, 0o777).map(lambda mode: mode | 0o444)
folder_modes = st.integers(0, 0o777).map(lambda mode: mode | 0o555)
contents = st.binary(max_size=20) | st.builds(lambda: b"large".ljust(LARGE))
targets = st.text(unicode_without("\0"), min_size=1, max_size=4)
leaves = st.tuples(st.just("f"), file_modes, contents) | st.tuples(st.just("l"), targets)
folders = st.recursive(
    st.dictionaries(names, leaves, max_size=3),
    lambda inner: st.dictionaries(names, leaves | st.tuples(st.just("d"), folder_modes, inner), max_size=3),
    max_leaves=6,
)


def grow(root: Path, folder: dict[str, tuple[str, ...]], mode: int) -> None:
    root.mkdir()
    for name, node in folder.items():
        match node:
            case ("f", file_mode, data):
                (root / name).write_bytes(data)  # type: ignore[arg-type]
                (root / name).chmod(file_mode)  # type: ignore[arg-type]
            case ("l", target):
                (root / name).symlink_to(target)
            case ("d", folder_mode, inner):
                grow(root / name, inner, folder_mode)  # type: ignore[arg-type]
    root.chmod(mode)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folders, folder_modes)
def test_any_tree_is_restored_unchanged(
    tmp_path_factory: pytest.TempPathFactory, folder: dict[str, tuple[str, ...]], mode: int
) -> None:
    base = tmp_path_factory.mktemp("tree")
    grow(base / "made", folder, mode)
    entry = keep(LocalStore(base / "cache", Index(None)), 1, base / "made")
    again = LocalStore(base / "cache", Index(None))
    found = again.entry(key(1))
    assert found == entry
    again.restore(found, "output", base / "restored")
    assert listing(base / "restored") == listing(base / "made")


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o444, 0o666])
def test_a_file_is_restored_with_its_mode(store: LocalStore, tmp_path: Path, mode: int) -> None:
    (tmp_path / "made").write_bytes(b"content")
    (tmp_path / "made").chmod(mode)
    keep(store, 1, tmp_path / "made")
    entry = store.entry(key(1))
    assert entry
    store.restore(entry, "output", tmp_path / "restored")
    assert (tmp_path / "restored").read_bytes() == b"content"
    assert (tmp_path / "restored").stat().st_mode & 0o7777 == mode
    # Its own copy: to write to it is no way to the blob.
    (tmp_path / "restored").chmod(0o644)
    (tmp_path / "restored").write_bytes(b"edited!")
    assert later(store).has(entry.blobs()[0])


def test_holes_are_kept_when_storing_and_restoring(store: LocalStore, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with made.open("wb") as stream:
        stream.write(b"data")
        stream.truncate(64 * MIB)
    entry = keep(store, 1, made)
    store.restore(entry, "output", tmp_path / "restored")
    for path in (blob_of(store, entry), tmp_path / "restored"):
        assert path.stat().st_size == 64 * MIB
        assert path.stat().st_blocks * 512 < MIB
    assert store.usage().size < MIB


# Secrets.

CANARY = b"-----BEGIN A KEY THAT NOBODY MAY KEEP-----"


def holds(directory: Path, data: bytes) -> bool:
    return any(data in path.read_bytes() for path in directory.rglob("*") if path.is_file())


@pytest.mark.parametrize("where", ["file", "tree", "locked tree"])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o604])
def test_a_file_that_not_every_user_may_read_is_never_cached(
    store: LocalStore, tmp_path: Path, where: str, mode: int
) -> None:
    made = tmp_path / "made"
    if where == "file":
        secret = made
    else:
        (made / "deep").mkdir(parents=True)
        secret = made / "deep" / "key"
    secret.write_bytes(CANARY)
    locked = made / "deep" if where == "locked tree" else secret
    locked.chmod(mode | 0o100 if locked.is_dir() else mode)
    assert not store.keep(entry_of(1, made), {"output": made})
    assert not holds(store.directory, CANARY)
    assert store.entry(key(1)) is None
    # Control: one that everybody may read is kept, so that this search would have found it.
    locked.chmod(0o755)
    keep(store, 1, made)
    assert holds(store.directory, CANARY)


# Damage.


def edit(path: Path) -> None:
    """Another content, of the same size and with the same modification time."""
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[::-1])
    path.chmod(0o444)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


def empty(path: Path) -> None:
    os.truncate(path, 0)


DAMAGE: tuple[Callable[[Path], None], ...] = (edit, cut_short, lengthen, empty)


@pytest.mark.parametrize("damage", [None, *DAMAGE, Path.unlink])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("tree", [True, False])
def test_a_damaged_blob_is_never_restored(
    store: LocalStore, tmp_path: Path, damage: Callable[[Path], None] | None, known: bool, tree: bool
) -> None:
    made = tmp_path / "made"
    if tree:
        made.mkdir()
        (made / "a").write_bytes(b"some")
        (made / "b").write_bytes(b" text")
    else:
        made.write_bytes(b"some text")
    entry = keep(store, 1, made)
    blob = blob_of(store, entry)
    assert blob.read_bytes() == b"some text"
    store = store if known else later(store)
    if damage is None:  # the control
        store.restore(entry, "output", tmp_path / "restored")
        assert listing(tmp_path / "restored") == listing(made)
        return
    damage(blob)
    with pytest.raises(DamagedError):
        store.restore(entry, "output", tmp_path / "restored")
    assert not store.has(entry.blobs()[0])
    assert not blob.exists()
    keep(store, 1, made)
    store.restore(entry, "output", tmp_path / "again")
    assert listing(tmp_path / "again") == listing(made)


def test_two_exchanged_blobs_are_both_refused(store: LocalStore) -> None:
    one, two = keep_bytes(store, 1, b"one"), keep_bytes(store, 2, b"two")
    first, second = blob_of(store, one), blob_of(store, two)
    first.rename(store.directory / "x")
    second.rename(first)
    (store.directory / "x").rename(second)
    for entry in (one, two):
        assert not store.has(entry.blobs()[0])


def test_a_new_blob_with_a_wrong_digest_is_not_stored(store: LocalStore) -> None:
    blob = Blob(hashlib.sha256(b"good").hexdigest(), 4)
    with pytest.raises(DamagedError), store.new_blob(blob) as new:
        new.write_bytes(b"evil")
    assert not store.blob_path(blob).exists()
    with store.new_blob(blob) as new:
        new.write_bytes(b"good")
    assert store.has(blob)
    assert [path.name for path in store.blob_path(blob).parent.iterdir()] == [blob.sha256]


def swap_entries(store: LocalStore) -> None:
    (store.directory / "entries" / key(2)).write_bytes((store.directory / "entries" / key(1)).read_bytes())


def truncate_entry(store: LocalStore) -> None:
    cut_short(store.directory / "entries" / key(2))


@pytest.mark.parametrize("damage", [swap_entries, truncate_entry])
def test_a_damaged_entry_is_ignored(store: LocalStore, damage: Callable[[LocalStore], None]) -> None:
    keep_bytes(store, 1, b"one")
    keep_bytes(store, 2, b"two")
    damage(store)
    assert store.entry(key(1))
    assert store.entry(key(2)) is None
    assert not (store.directory / "entries" / key(2)).exists()


@pytest.mark.parametrize("damage", [swap_entries, truncate_entry, *DAMAGE, Path.unlink])
def test_verify_finds_and_removes_damage(store: LocalStore, damage: Callable[..., None]) -> None:
    kept, hurt = keep_bytes(store, 1, b"one"), keep_bytes(store, 2, b"two")
    assert store.verify() == [], "the control"
    blob = damage not in (swap_entries, truncate_entry)
    damage(blob_of(store, hurt) if blob else store)
    said = store.verify()
    assert len(said) == 1
    assert (hurt.blobs()[0].sha256 if blob else key(2)) in said[0]
    assert store.verify() == []
    assert store.entry(key(1)) == kept
    assert store.has(kept.blobs()[0])
    assert store.entry(key(2)) is None


def test_verify_trusts_no_index(store: LocalStore) -> None:
    """A disk that loses bits changes no time of a file: only reading detects it."""
    entry = keep_bytes(store, 1, b"one")
    path = blob_of(store, entry)
    path.chmod(0o644)
    path.write_bytes(b"eno")
    store._index.note(path, entry.blobs()[0].sha256)
    assert store.has(entry.blobs()[0]), "the control: who believes the index finds nothing"
    assert len(store.verify()) == 1
