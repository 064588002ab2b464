# SPDX-License-Identifier: Apache-2.0
"""doit's database.

It only saves time, because the artefact cache knows what was made: an error in it stops no build.
"""

import contextlib
import sqlite3
import sys
from pathlib import Path
from typing import Any

from doit.dependency import DatabaseException, Dependency, SqliteDB

from sevsnp.store.artefact import Artefact

_open, _read, _dump = SqliteDB._sqlite3, SqliteDB._get_task_data, SqliteDB.dump
_forget_success = Dependency.remove_success


def tolerate_damage() -> None:
    """Make doit's SQLite backend replace a damaged file, only warn if it cannot write, and survive a failed task.

    It is changed in place: doit loads a custom backend before the directory of dodo.py is on the path.
    """
    SqliteDB._sqlite3, SqliteDB._get_task_data, SqliteDB.dump = _tolerant_open, _tolerant_read, _tolerant_dump
    Dependency.remove_success = _tolerant_failure


def _tolerant_open(self: Any, name: str) -> Any:
    for last in (False, False, True):
        try:
            connection = _open(self, ":memory:" if last else name)
            connection.execute("SELECT count(*) FROM doit").fetchone()
            return connection
        except (DatabaseException, sqlite3.DatabaseError) as error:
            if isinstance(error.__context__ or error, sqlite3.OperationalError):
                name = ":memory:"  # in use by another run, or not writable: not damaged
                continue
            for suffix in ("", "-wal", "-shm", "-journal"):
                with contextlib.suppress(OSError):
                    Path(f"{name}{suffix}").unlink()
    raise AssertionError("SQLite in memory")


def _tolerant_read(self: Any, task_id: str) -> Any:
    try:
        return _read(self, task_id)
    except (sqlite3.DatabaseError, ValueError):
        return {}


def _tolerant_dump(self: Any) -> None:
    try:
        _dump(self)
    except sqlite3.Error as error:
        sys.stderr.write(f"{self.name}: not written: {error}; the next run will look at everything again\n")


def _tolerant_failure(self: Any, task: Any) -> None:
    """Keep the record of an artefact when a later run of its task fails; doit would forget it.

    An artefact's record has the digests of its inputs and outputs. It is right as long as they are, and a volume that
    was not replaced need not be made anew.
    """
    if not any(isinstance(check, Artefact) for check, _, _ in task.uptodate):
        _forget_success(self, task)
