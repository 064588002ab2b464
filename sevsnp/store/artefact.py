# SPDX-License-Identifier: Apache-2.0
"""An artefact: what it is made from and by, whether it is as it was made, and how it comes about.

It is copied from the cache where the same was made before, and made where not.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevsnp.errors import UserError
from sevsnp.store import session
from sevsnp.store.cache import Cache, cache
from sevsnp.store.digests import read_tree
from sevsnp.store.entries import MODES, SCHEMA, Blob, Entry, File, Tree, canonical
from sevsnp.store.local import DamagedError
from sevsnp.store.recipe import reached_sources, recipe_digest
from sevsnp.system import progress
from sevsnp.system.files import cannot_write, scratch_directory, sha256_file
from sevsnp.system.named import load_named

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Say = Callable[[str], None]
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, eq=False)
class Artefact:
    """One task's part in the graph: its function with all that goes in and comes out.

    ``given`` are the function's other arguments. ``ignored`` are names at the top of an output tree that are not part
    of it. ``cached``: whether the outputs may be kept and shared; never where they hold a secret, or are of no use
    anywhere else.
    """

    function: str
    inputs: Mapping[str, Sequence[Path]]
    directories: Mapping[str, Path]
    outputs: Mapping[str, Path]
    params: Mapping[str, Any]
    given: Mapping[str, Any]
    programs: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    cached: bool = True
    trees: frozenset[str] = frozenset()
    # What the last run of the action made, for doit to save; and why it is not up to date, for `doit info`.
    made: dict[str, Any] = field(default_factory=dict)
    reason: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return ", ".join(self.reason) or f"made by {self.function}"

    # What it is made from.

    def parts(self) -> dict[str, str]:
        """A digest for each kind of thing that decides what is made. Raises OSError for an input that is not there."""
        index = session.index()
        files = {
            name: [[_portable(path), index.file(path)] for path in paths] for name, paths in sorted(self.inputs.items())
        }
        tools = {name: _program(name) for name in self.programs}
        tools.update({f"python:{name}": _distribution(name) for name in self.distributions})
        places = {name: _portable(path) for name, path in self.outputs.items()}
        sources = {name: _listing(path) for name, path in sorted(self.directories.items())}
        documents = {
            "inputs": [files, sources],
            "parameters": [dict(self.params), places],
            "recipe": [SCHEMA, self.function, recipe_digest(self.function.partition(":")[0])],
            "tools": tools,
        }
        return {name: hashlib.sha256(_canonical(document)).hexdigest() for name, document in documents.items()}

    # Whether it is as it was made: doit's question.

    def __call__(self, task: Any, values: Mapping[str, Any]) -> bool | None:
        """A doit ``uptodate`` item: false when anything that decides changed, or an output is not as it was made."""
        task.value_savers.append(self._save)
        self.reason.clear()
        saved = values.get("artefact") or {}
        try:
            parts = self.parts()
        except FileNotFoundError:
            return None  # doit says it better: which file, and of which task
        except OSError as error:
            self.reason.append(f"{error.filename}: {error.strerror}")
            return False  # the task says it, as its own failure
        if not saved:
            self.reason.append("not made here yet")
        else:
            self.reason.extend(f"other {name}" for name, digest in parts.items() if saved["parts"].get(name) != digest)
            self.reason.extend(f"{self.outputs[name]}: not as it was made" for name in self._lacking(saved["outputs"]))
        return not self.reason

    def _save(self) -> dict[str, Any]:
        return {"artefact": dict(self.made)}

    def _lacking(self, digests: Mapping[str, str]) -> Iterator[str]:
        """The outputs that are not there as ``digests`` has them."""
        for name, path in self.outputs.items():
            try:
                if self._digest(path) == digests.get(name):
                    continue
            except (OSError, ValueError):
                pass
            yield name

    def _is_of_our_kind(self, entry: Entry) -> bool:
        kinds = {name: Tree if name in self.trees else File for name in self.outputs}
        return {name: type(made) for name, made in entry.outputs.items()} == kinds

    def _digest(self, path: Path) -> str:
        """The digest of an output as it is now, permissions and all."""
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            return session.index().tree(path, self.ignored)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(path)
        return f"{session.index().file(path)} {stat.S_IMODE(status.st_mode):o}"

    # How it comes about.

    def make(self, say: Say, remark: Say) -> None:
        """Bring the outputs to their places: leave what is right, copy what the cache has, make the rest.

        ``say`` takes warnings; ``remark`` what happened instead of making. Raises UserError and OSError.
        """
        store = cache() if self.cached else None
        parts = self.parts()
        key = hashlib.sha256(_canonical(parts)).hexdigest()
        if store is None:
            self._build(key, parts, None, say)
            return
        with ExitStack() as held:
            reading = ExitStack()
            try:
                waiting = "waiting for another run that makes the same"
                held.enter_context(store.local.making(key, lambda: say(waiting)))
                reading.enter_context(store.local.in_use())
            except OSError as error:
                say(f"the artefact cache cannot be used: {error}")
                self._build(key, parts, None, say)
                return
            with reading:
                entry = store.find(key, say)
                restored = entry is not None and self._restore(entry, store, say)
            if entry and restored:
                remark("from the cache")
                self._note_made(parts, entry)
                store.push(entry, say)
            else:
                self._build(key, parts, store, say)
        store.prune()

    def _restore(self, entry: Entry, store: Cache, say: Say) -> bool:
        """Copy what is not there yet; all outputs are whole before the first takes its place."""
        if not self._is_of_our_kind(entry):
            say(f"refused what the cache has under {entry.key}: other outputs than {', '.join(self.outputs)}")
            return False
        digests = {name: _shown(made) for name, made in entry.outputs.items()}
        lacking = list(self._lacking(digests))
        with self._scratch() as scratch, _full_disk(next(iter(self.outputs.values()))):
            try:
                for name in lacking:
                    with progress.growing(scratch[name], _size(entry.outputs[name]), "copying from the cache"):
                        store.local.restore(entry, name, scratch[name])
            except DamagedError as error:
                store.local.drop(entry.key)
                say(f"damaged in the artefact cache: {error}")
                return False
            except OSError as error:
                if error.errno in _FULL:
                    raise
                say(f"the artefact cache cannot be used: {error}")
                return False
            self._place(scratch, {name: entry.outputs[name] for name in lacking})
        return True

    def _build(self, key: str, parts: Mapping[str, str], store: Cache | None, say: Say) -> None:
        module = self.function.partition(":")[0]
        self._check_sources(module)
        function = load_named(self.function)
        with self._scratch() as scratch, _full_disk(next(iter(self.outputs.values()))):
            with _Reader(scratch, store) as reader:
                reader.follow(function(**self.given, **scratch))
                for output, path in scratch.items():
                    if not path.exists():
                        raise UserError(f"{self.function} did not make {self.outputs[output]}")
                outputs = {name: reader.made(name) for name in scratch}
            self._check_sources(module)
            if (now := self.parts()) != parts:
                # What was made is of neither the old nor the new.
                changed = " and ".join(name for name in now if now[name] != parts[name])
                raise UserError(f"its {changed} changed while it was made", "run it again")
            entry = Entry(key, self.function, outputs)
            if not self._is_of_our_kind(entry):
                raise UserError(f"{self.function} made a directory for a file, or a file for a directory")
            if store:
                store.keep(entry, scratch, say)
            # What came out as it was stays in its place, and is not read again by what depends on it.
            lacking = list(self._lacking({name: _shown(made) for name, made in entry.outputs.items()}))
            self._place(scratch, {name: entry.outputs[name] for name in lacking})
        self._note_made(parts, entry)

    def _note_made(self, parts: Mapping[str, str], entry: Entry) -> None:
        self.made.update(parts=dict(parts), outputs={name: _shown(made) for name, made in entry.outputs.items()})

    def _check_sources(self, module: str) -> None:
        """What runs was loaded at some time since this process started: it must be what its digest was taken of."""
        for path in reached_sources(module).values():
            if path.stat().st_ctime_ns > session.started_ns():
                raise UserError(f"{path}: changed since this run started", "run it again")

    @contextmanager
    def _scratch(self) -> Iterator[dict[str, Path]]:
        """A temporary name for every output, each in a directory of its own."""
        with scratch_directory(next(iter(self.outputs.values()))) as scratch:
            made = {name: scratch / name / path.name for name, path in self.outputs.items()}
            for path in made.values():
                path.parent.mkdir()
            yield made

    def _place(self, scratch: Mapping[str, Path], made: Mapping[str, File | Tree]) -> None:
        index = session.index()
        for name, output in made.items():
            path = self.outputs[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            there = path.is_dir() and not path.is_symlink()
            if there or (isinstance(output, Tree) and (path.exists() or path.is_symlink())):
                # A directory cannot be replaced in one step; the old one is out of the way for an instant.
                old = path.rename(scratch[name].with_name(f"{path.name}.old"))
                for kept in self.ignored:
                    if there and (old / kept).exists():
                        (old / kept).rename(scratch[name] / kept)
            scratch[name].replace(path)
            if isinstance(output, File):
                index.note(path, output.blob.sha256)
            else:
                index.note_tree(path, output.sha256, self.ignored)


class _Reader:
    """Takes the digests of outputs, of those that are finished early while the function goes on with the others."""

    def __init__(self, scratch: Mapping[str, Path], store: Cache | None) -> None:
        self._scratch, self._store = scratch, store
        self._pool: ThreadPoolExecutor | None = None
        self._early: dict[str, Future[File | Tree]] = {}

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def follow(self, finished: Iterable[str] | None) -> None:
        """Run the rest of a function that yields the name of each output to which it will not write any more."""
        for name in finished or ():
            from concurrent.futures import ThreadPoolExecutor

            self._pool = self._pool or ThreadPoolExecutor(1)
            self._early[name] = self._pool.submit(self._take, name)

    def _take(self, name: str) -> File | Tree:
        made = _read(self._scratch[name])
        if self._store and isinstance(made, File):
            self._store.keep_early(made, self._scratch[name])
        return made

    def made(self, name: str) -> File | Tree:
        return self._early[name].result() if name in self._early else _read(self._scratch[name])


def _read(path: Path) -> File | Tree:
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return read_tree(path)
    return File(Blob(sha256_file(path), status.st_size), stat.S_IMODE(status.st_mode) & MODES)


def _size(made: File | Tree) -> int:
    return made.blob.size if isinstance(made, File) else 0


def _shown(made: File | Tree) -> str:
    return made.sha256 if isinstance(made, Tree) else f"{made.blob.sha256} {made.mode:o}"


def _canonical(document: Any) -> bytes:
    return canonical(_plain(document))


def _plain(value: Any) -> Any:
    """The value as JSON knows it; a path by what it is called everywhere."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _portable(value) if isinstance(value, Path) else value


def _portable(path: Path) -> str:
    """A path as every checkout has it: relative to the project; of what is elsewhere only the name."""
    if not path.is_absolute():
        return path.as_posix()
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name


def _listing(directory: Path) -> list[list[str]]:
    """What is in a directory of sources: names, links, content, and who may be executed; nothing that umask decides."""
    index = session.index()
    found = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            found.append([name, "link", os.readlink(path)])  # noqa: PTH115 (Path takes a slash off the end)
        elif path.is_dir():
            found.append([name, "directory"])
        else:
            found.append([name, "program" if path.stat().st_mode & 0o100 else "file", index.file(path)])
    return found


def _program(name: str) -> str:
    """What a program of the host is: the digest of its file."""
    from sevsnp.system.command import find

    path = find(name)
    return session.index().file(path) if path else "missing"


def _distribution(name: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(name)


@contextmanager
def _full_disk(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise cannot_write(place, error) from None
