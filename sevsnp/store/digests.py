# SPDX-License-Identifier: Apache-2.0
"""Digests of files and trees, remembered as long as the file system reports no change.

A file is known by device, inode, size, modification time and *change* time. No program can set the change time back.
Unpackers and SOURCE_DATE_EPOCH tools set the modification time; an edit that does so is still seen.
"""

import hashlib
import json
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevsnp.errors import UserError
from sevsnp.store.sparse_digest import LARGE, NAME, sparse_digest
from sevsnp.system.files import CHUNK, sha256_file

if TYPE_CHECKING:
    from sevsnp.store.entries import Node, Tree

# A file may be written twice within one tick of the kernel's clock and keep its change time. Ticks are 1 to 10 ms.
_TICK_NS = 20_000_000
# The maximum number of remembered digests. A file whose digest was dropped is hashed again, nothing worse.
_ROWS = 200_000
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TABLE = "CREATE TABLE IF NOT EXISTS known (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"


def identity(status: os.stat_result) -> str:
    """A name for the present content of a file. It holds until the file is written to."""
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


class Index:
    """Digests of files by their identity, in a database at ``path``; without ``path``, in memory.

    A database that is damaged, or that cannot be opened or written, only costs time.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._fresh: dict[str, str] = {}
        self._known: dict[str, str] = {}
        self._database = self._open()

    def file(self, path: Path | str) -> str:
        """SHA-256 of a regular file's content, as 64 lower-case hex digits. Raises OSError if there is no such file."""
        return self._digest(path, os.stat(path), "", sha256_file)  # noqa: PTH116 (an idle run spends its time here)

    def input(self, path: Path | str) -> str:
        """The digest by which an input is known: as :meth:`file`; of a huge file :func:`sparse_digest`."""
        status = os.stat(path)  # noqa: PTH116 (as above)
        if status.st_size < LARGE:
            return self._digest(path, status, "", sha256_file)
        return self._digest(path, status, f"{NAME}:", sparse_digest)

    def _digest(self, path: Path | str, status: os.stat_result, kind: str, compute: Callable[[Path], str]) -> str:
        if (known := self._get(kind + identity(status))) is not None:
            return known
        if not stat.S_ISREG(status.st_mode):
            raise IsADirectoryError(21, "not a regular file", str(path))
        if status.st_size > CHUNK and _young(status):
            # Worth the wait: a file that is too young to be remembered would be hashed again and again.
            time.sleep(_TICK_NS / 1e9)
        # Tested before the read: a file that is old only after the read may have been written again within its tick.
        young = _young(status)
        digest = compute(Path(path))
        after = os.stat(path)  # noqa: PTH116
        if identity(status) == identity(after) and not young:
            self._put(kind + identity(after), digest)
        return digest

    def note(self, path: Path, sha256: str) -> None:
        """Remember the digest of a file that this process has just put in its place, with known content."""
        self._put(identity(path.stat()), sha256)

    def tree(self, root: Path, ignored: Collection[str] = ()) -> str:
        """The digest of a directory's listing (:attr:`Tree.sha256`). Raises OSError; ValueError for unsupported files.

        ``ignored`` are names at the top that are left out.
        """
        name, newest = _fingerprint(root, ignored)
        if (known := self._get(name)) is not None:
            return known
        young = time.time_ns() - newest < _TICK_NS
        digest = read_tree(root, ignored).sha256
        if not young and name == _fingerprint(root, ignored)[0]:
            self._put(name, digest)
        return digest

    def note_tree(self, root: Path, sha256: str, ignored: Collection[str] = ()) -> None:
        """Remember the digest of a directory that this process has just put in its place, with known content."""
        self._put(_fingerprint(root, ignored)[0], sha256)

    def memo(self, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON value that depends on ``name`` alone, computed once."""
        if (known := self._get(f"memo:{name}")) is not None:
            return json.loads(known)
        value = compute()
        self._put(f"memo:{name}", json.dumps(value))
        return value

    def memo_of(self, path: Path, name: str, compute: Callable[[], Any]) -> Any:
        """A JSON value that depends on ``name`` and on the content of the file ``path``, computed once for each.

        Raises OSError if there is no such file, and UserError if it changes while the value is computed.
        """
        digest = self.file(path)

        def unchanged() -> Any:
            value = compute()
            if self.file(path) != digest:
                raise UserError(f"{path}: changed while it was read")
            return value

        return self.memo(f"{name}:{digest}", unchanged)

    def holds(self, name: str, paths: Sequence[Path], check: Callable[[], bool]) -> bool:
        """Whether ``check`` says yes, which depends on ``name`` and on the files and directories ``paths`` alone.

        A yes is remembered as long as none of them changes, in content, owner or permissions.
        """
        before = _states(paths)
        known = f"holds:{name}:{','.join(map(identity, before))}"
        if before and self._get(known):
            return True
        # Tested before the check, as in _digest.
        young = any(map(_young, before))
        if not check():
            return False
        if before and not young and list(map(identity, _states(paths))) == list(map(identity, before)):
            self._put(known, "yes")
        return True

    def close(self) -> None:
        """Write what this run learned to the database. A loss only costs time."""
        with self._lock:
            if self._database is None or not self._fresh:
                return
            try:
                with self._database:
                    self._database.executemany("INSERT OR REPLACE INTO known VALUES (?, ?)", self._fresh.items())
                    if self._database.execute("SELECT count(*) FROM known").fetchone()[0] > _ROWS:
                        self._database.execute("DELETE FROM known WHERE name <> 'boot'")
            except sqlite3.Error:
                pass
            self._known.update(self._fresh)
            self._fresh.clear()

    def _get(self, name: str) -> str | None:
        with self._lock:
            if (known := self._fresh.get(name) or self._known.get(name)) is not None or self._database is None:
                return known
            try:
                row = self._database.execute("SELECT value FROM known WHERE name = ?", (name,)).fetchone()
            except sqlite3.Error:
                return None
            if row is None:
                return None
            self._known[name] = str(row[0])
            return self._known[name]

    def _put(self, name: str, value: str) -> None:
        with self._lock:
            self._fresh[name] = value
            full = len(self._fresh) > 1000
        if full:
            self.close()

    def _open(self) -> sqlite3.Connection | None:
        if self._path is None:
            return None
        for _ in range(2):
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                database = sqlite3.connect(self._path, timeout=5, check_same_thread=False)
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                database.execute(_TABLE)
                _forget_before_boot(database)
                return database
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    return None  # in use, not writable, or the disk is full; a damaged database raises another error
                self._path.unlink(missing_ok=True)
            except OSError:
                return None
        return None


def is_private(directory: Path) -> bool:
    """Whether only this user can write to a directory."""
    status = directory.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _forget_before_boot(database: sqlite3.Connection) -> None:
    """Delete digests of an earlier boot: after a power cut their content may never have reached the disk."""
    boot = _BOOT_ID.read_text().strip()
    if database.execute("SELECT value FROM known WHERE name = 'boot'").fetchone() != (boot,):
        with database:
            database.execute("DELETE FROM known")
            database.execute("INSERT INTO known VALUES ('boot', ?)", (boot,))


def _states(paths: Sequence[Path]) -> list[os.stat_result]:
    """The lstat result of each path; none if one cannot be seen."""
    try:
        return [os.lstat(path) for path in paths]
    except OSError:
        return []


def _young(status: os.stat_result) -> bool:
    return time.time_ns() - status.st_ctime_ns < _TICK_NS


def _fingerprint(root: Path, ignored: Collection[str]) -> tuple[str, int]:
    """A name for a tree's present content, and its newest change time in nanoseconds."""
    digest = hashlib.sha256(",".join(sorted(ignored)).encode())
    newest = 0
    for name, status in _walk(root, ignored):
        digest.update(f"{name}\0{status.st_mode}\0{identity(status)}\n".encode(errors="surrogateescape"))
        newest = max(newest, status.st_ctime_ns)
    return f"tree:{digest.hexdigest()}", newest


def _walk(root: Path, ignored: Collection[str]) -> Iterator[tuple[str, os.stat_result]]:
    """Every path below ``root`` with its lstat result; relative, and in sorted order within its directory."""
    yield "", root.lstat()
    waiting = [("", os.fspath(root))]
    while waiting:
        prefix, directory = waiting.pop()
        with os.scandir(directory) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        for entry in entries:
            if not prefix and entry.name in ignored:
                continue
            status = entry.stat(follow_symlinks=False)
            yield prefix + entry.name, status
            if stat.S_ISDIR(status.st_mode):
                waiting.append((f"{prefix}{entry.name}/", entry.path))


def read_tree(root: Path, ignored: Collection[str] = ()) -> "Tree":
    """List a directory with the digests of its files; the pack's digest covers their content in that order.

    Raises OSError; ValueError for a file that is not regular, a directory or a link, or that has a set-id bit.
    """
    from sevsnp.store.entries import MODES, Blob, Directory, File, Link, Tree

    nodes: dict[str, Node] = {}
    if not stat.S_ISDIR(root.lstat().st_mode):
        raise NotADirectoryError(20, "not a directory", str(root))
    for name, status in _walk(root, ignored):
        if not name:
            continue
        mode = stat.S_IMODE(status.st_mode)
        if stat.S_ISLNK(status.st_mode):
            nodes[name] = Link(os.readlink(root / name))  # noqa: PTH115 (Path takes a slash off the end)
        elif stat.S_ISDIR(status.st_mode):
            nodes[name] = Directory(mode & MODES)
        elif stat.S_ISREG(status.st_mode) and not mode & ~MODES:
            nodes[name] = File(Blob(sha256_file(root / name), status.st_size), mode)
        else:
            raise ValueError(f"{root / name}: found a special file or a set-id bit, expected plain files")
    ordered = {name: nodes[name] for name in sorted(nodes)}
    tree = Tree(stat.S_IMODE(root.lstat().st_mode) & MODES, ordered, Blob("0" * 64, 0))
    digest, size = hashlib.sha256(), 0
    for name in tree.packed():
        data = (root / name).read_bytes()
        digest.update(data)
        size += len(data)
    return replace(tree, pack=Blob(digest.hexdigest(), size))
