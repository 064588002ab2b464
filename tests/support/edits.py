# SPDX-License-Identifier: Apache-2.0
"""Runs in a copy of the built project: makes each edit of the matrix, asks doit what is outdated, and undoes the edit.

Nothing is executed: these are doit's own checks before it runs a task. Prints JSON: for each edit the tasks, with
reasons. With NAME=value words there are no edits: for each word the tasks that are outdated with this setting.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from doit.dependency import Dependency, SqliteDB

from sevsnp.pipeline.checker import Sha256Checker
from sevsnp.project.graph import load
from sevsnp.store import digests, recipe
from sevsnp.store.artefact import Artefact, leaves
from sevsnp.store.digests import Index
from sevsnp.store.session import index
from sevsnp.system.copying import copy_file
from sevsnp.system.files import sha256_file
from tests.support.matrix import cells

LARGE = 1 << 12


def artefact_of(task: Any) -> Artefact | None:
    """The artefact that a doit task makes; None for a command."""
    found = [item for action in task.actions for item in getattr(action, "args", None) or ()]
    return next((item for item in found if isinstance(item, Artefact)), None)


class Trees:
    """The digests of directories. A digest is recomputed only while something in its directory is edited.

    All edits come from :meth:`Matrix.after`. Checking 11,000 files would take as long as everything else together.
    """

    def __init__(self, index: Index) -> None:
        self._known: dict[tuple[Path, Collection[str]], str] = {}
        self._tree = index.tree
        index.tree = self.tree  # type: ignore[method-assign]
        self._sha256_file = sha256_file
        self._large: dict[tuple[int, ...], str] = {}
        vars(digests)["sha256_file"] = self.sha256_file

    def tree(self, root: Path, ignored: Collection[str] = ()) -> str:
        key = (root.absolute(), ignored)
        if key not in self._known:
            self._known[key] = self._tree(root, ignored)
        return self._known[key]

    def sha256_file(self, path: Path) -> str:
        """A file is not hashed again after an edit of it is undone, unless it is tiny; no edit writes into a file."""
        status = path.stat()
        if status.st_size < LARGE:
            return self._sha256_file(path)
        name = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if name not in self._large:
            self._large[name] = self._sha256_file(path)
        return self._large[name]

    @contextmanager
    def edited(self, path: Path) -> Iterator[None]:
        """Forget the digest of ``path``, of directories around it and of those in it, until the edit is undone."""
        path = path.absolute()
        before = dict(self._known)
        self._known = {
            key: digest
            for key, digest in before.items()
            if not (key[0].is_relative_to(path) or path.is_relative_to(key[0]))
        }
        try:
            yield
        finally:
            self._known = before

    def forget(self) -> None:
        self._known.clear()

    def known(self) -> dict[tuple[Path, Collection[str]], str]:
        return self._known

    def remember(self, known: dict[tuple[Path, Collection[str]], str]) -> None:
        self._known.update(known)


class Matrix:
    """doit's tasks and database, as in a run."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        tasks = {task.name: task for task, _ in load()}
        # Only now: loading the tasks says where the digest index is.
        self.trees = Trees(index())
        self.tasks = tasks
        self.artefacts = {name: made for name, task in tasks.items() if (made := artefact_of(task))}
        self.database = Dependency(SqliteDB, ".doit.db", checker_cls=Sha256Checker)

    def close(self) -> None:
        self.database.close()
        index().close()
        index.cache_clear()

    def outdated(self) -> dict[str, str]:
        """The tasks that doit would run because of themselves, not because of tasks before them."""
        importlib.invalidate_caches()
        found = {}
        for name, made in self.artefacts.items():
            status = self.database.get_status(self.tasks[name], self.tasks, get_log=True)
            if status.status != "up-to-date":
                found[name] = f"{made!r} {dict(status.reasons)}"
        return found

    def after(self, kind: str, name: str) -> dict[str, str]:
        """The outdated tasks after one edit, which is undone afterwards."""
        path = Path(os.environ["CONFIG_DIR"], name[2:]) if name.startswith("~/") else Path(name)
        recipes = sources_edited() if path.is_relative_to(recipe.PACKAGE) else contextlib.nullcontext()
        with self.trees.edited(path), EDITS[kind](path, self.scratch), recipes:
            return self.outdated()


@contextmanager
def sources_edited() -> Iterator[None]:
    """Recompute the recipes, which depend on the library's sources and nothing else, before and after."""
    caches = (recipe.recipe_digest, recipe.reached_sources, recipe._read, recipe._source)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@contextmanager
def replaced(path: Path, scratch: Path, make: Callable[[Path], object]) -> Iterator[None]:
    """Move the file aside, let ``make`` write another one at its path, and move the file (a hard link) back."""
    aside = scratch / "aside"
    path.rename(aside)
    try:
        make(path)
        yield
    finally:
        aside.replace(path)


def content(path: Path, scratch: Path) -> Any:
    return replaced(path, scratch, lambda new: new.write_bytes(b"# other\n"))


def content_in_secret(path: Path, scratch: Path) -> Any:
    status = path.stat()

    def make(new: Path) -> None:
        # A changed module must still be a module; a large file becomes mostly a hole.
        new.write_bytes(b"#" * min(status.st_size, 1 << 16))
        os.truncate(new, status.st_size)
        new.chmod(status.st_mode)
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))

    return replaced(path, scratch, make)


def copied(change: Callable[[Path], object]) -> Callable[[Path, Path], Any]:
    def edit(path: Path, scratch: Path) -> Any:
        def make(new: Path) -> None:
            copy_file(scratch / "aside", new, path_mode)
            change(new)

        path_mode = path.stat().st_mode & 0o777
        return replaced(path, scratch, make)

    return edit


@contextmanager
def mode(path: Path, scratch: Path) -> Iterator[None]:
    if path.is_dir():
        before = path.stat().st_mode
        path.chmod(0o700)
        yield
        path.chmod(before)
    else:
        with copied(lambda new: new.chmod(0o600))(path, scratch):
            yield


def line_more(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\npass\n")


def remark(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n# a remark\n")


@contextmanager
def deleted(path: Path, scratch: Path) -> Iterator[None]:
    path.rename(scratch / "aside")
    yield
    (scratch / "aside").rename(path)


@contextmanager
def planted_file(path: Path, scratch: Path) -> Iterator[None]:
    (path / "planted").write_bytes(b"")
    yield
    (path / "planted").unlink()


@contextmanager
def planted_directory(path: Path, scratch: Path) -> Iterator[None]:
    new = path / "planted" if path.is_dir() else path
    new.mkdir()
    yield
    new.rmdir()


@contextmanager
def another_program(name: Path, scratch: Path) -> Iterator[None]:
    program = scratch / "bin" / name
    program.parent.mkdir()
    program.write_text("#!/bin/false\n")
    program.chmod(0o755)
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{program.parent}:{before}"
    yield
    os.environ["PATH"] = before
    shutil.rmtree(program.parent)


@contextmanager
def another_version(name: Path, scratch: Path) -> Iterator[None]:
    information = scratch / "site" / f"{name}-999.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 999\n")
    sys.path.insert(0, str(scratch / "site"))
    yield
    sys.path.remove(str(scratch / "site"))
    shutil.rmtree(scratch / "site")


@contextmanager
def nothing(path: Path, scratch: Path) -> Iterator[None]:
    yield


EDITS: dict[str, Callable[[Path, Path], Any]] = {
    "nothing": nothing,
    "content": content,
    "content, time and size kept": content_in_secret,
    "mode": mode,
    "executable": copied(lambda new: new.chmod(0o755)),
    "touched": copied(lambda new: os.utime(new, (1, 1))),
    "a line more": copied(line_more),
    "a remark more": copied(remark),
    "deleted": deleted,
    "a file planted": planted_file,
    "a directory planted": planted_directory,
    "another program": another_program,
    "another version": another_version,
}


def described(made: Artefact) -> dict[str, Any]:
    """The declared inputs of a task, for the comparison with the table."""
    return {
        "inputs": sorted({str(path) for paths in made.inputs.values() for path in paths}),
        "outputs": sorted(map(str, made.outputs.values())),
        "directories": sorted(map(str, made.directories.values())),
        "programs": list(made.programs),
        "distributions": list(made.distributions),
        "parameters": sorted(name for name, _ in leaves(made.params)),
    }


def with_setting(word: str, scratch: Path, trees: dict[tuple[Path, Collection[str]], str]) -> dict[str, str]:
    """The outdated tasks with one setting. Call it in a process that has not loaded the tasks."""
    sys.argv[1:] = [word]
    matrix = Matrix(scratch)
    # A setting changes no directory. Another cache has another index, which must compute the digests again.
    if not word.startswith("SEVSNP_CACHE="):
        matrix.trees.remember(trees)
    found = matrix.outdated()
    matrix.close()
    return found


def directories(scratch: Path) -> tuple[dict[tuple[Path, Collection[str]], str], list[str]]:
    """The digests of all directories, and the imported modules that know no setting, from a process of its own."""
    matrix = Matrix(scratch)
    matrix.outdated()
    matrix.close()
    return matrix.trees.known(), [name for name in sys.modules if name.partition(".")[0] not in ("tasks", "__main__")]


def in_child(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns in a child process, which starts with the modules that are imported here.

    Raises:
        EOFError: the child ended with an error, which it has printed.
    """
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=lambda: writer.send(work(*arguments)))
    child.start()
    writer.close()
    result = reader.recv()
    child.join()
    return result


def with_settings(words: Sequence[str], scratch: Path) -> dict[str, dict[str, str]]:
    """The outdated tasks with each of the settings."""
    del sys.argv[1:]
    trees, modules = in_child(directories, scratch)
    for name in modules:
        with contextlib.suppress(ImportError):  # a name that a package has only in its own process
            importlib.import_module(name)
    return {word: in_child(with_setting, word, scratch, trees) for word in words}


def main() -> None:
    if sys.argv[1:] == ["tasks"]:
        json.dump({task.name: described(made) for task, _ in load() if (made := artefact_of(task))}, sys.stdout)
        return
    # On the project's file system, for renames, but outside the project.
    with tempfile.TemporaryDirectory(dir=Path.cwd().parent) as directory:
        if len(sys.argv) > 1:
            json.dump(with_settings(list(sys.argv[1:]), Path(directory)), sys.stdout)
            return
        matrix = Matrix(Path(directory))
        matrix.outdated()  # before the first edit, so that every directory's digest is known
        found = [[kind, name, matrix.after(kind, name)] for kind, name in cells()]
        matrix.trees.forget()
        json.dump({"cells": found, "afterwards": matrix.outdated()}, sys.stdout)


if __name__ == "__main__":
    main()
