# SPDX-License-Identifier: Apache-2.0
"""Makes an artefact: copies it from the cache if the cache has it, and runs its function otherwise."""

import errno
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevsnp.errors import UserError
from sevsnp.store import session
from sevsnp.store.artefact import Artefact, Say, details_of, digest_of, parts_of
from sevsnp.store.cache import Cache, cache
from sevsnp.store.digests import read_tree
from sevsnp.store.entries import MODES, Blob, Entry, File, Tree
from sevsnp.store.local import DamagedError
from sevsnp.store.recipe import reached_sources
from sevsnp.store.replacing import check_users, put, users
from sevsnp.system import progress
from sevsnp.system.files import cannot_write, scratch_directory, sha256_file
from sevsnp.system.named import load_named

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def make(artefact: Artefact, say: Say, remark: Say) -> None:
    """Bring the outputs to their places: keep those that are right, copy those that the cache has, make the rest.

    ``say`` takes warnings; ``remark`` takes what happened instead of making. Raises UserError and OSError.
    """
    for name in artefact.trees:
        check_users(artefact.outputs[name], artefact.ignored, artefact.own)
    store = cache() if artefact.cached else None
    documents = artefact.documents()
    key = digest_of(parts_of(documents))
    if store is None:
        _build(artefact, key, documents, None, say)
        return
    with ExitStack() as held:
        reading = ExitStack()
        try:
            waiting = "waiting for another run that makes the same"
            held.enter_context(store.local.making(key, lambda: say(waiting)))
            reading.enter_context(store.local.in_use())
        except OSError as error:
            say(f"the artefact cache cannot be used: {error}")
            _build(artefact, key, documents, None, say)
            return
        with reading:
            entry = store.find(key, say)
            restored = entry is not None and _restore(artefact, entry, store, say)
        if entry and restored:
            remark("from the cache")
            _note_made(artefact, documents, entry)
            store.push(entry, say)
        else:
            _build(artefact, key, documents, store, say)
    store.prune()


def _restore(artefact: Artefact, entry: Entry, store: Cache, say: Say) -> bool:
    """Copy the outputs that are missing. All of them are complete before the first takes its place."""
    if not _is_of_its_kind(artefact, entry):
        say(f"refused what the cache has under {entry.key}: other outputs than {', '.join(artefact.outputs)}")
        return False
    digests = {name: _shown(made) for name, made in entry.outputs.items()}
    lacking = list(artefact.lacking(digests))
    with _scratch(artefact) as scratch, _full_disk(next(iter(artefact.outputs.values()))):
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
        _place(artefact, scratch, {name: entry.outputs[name] for name in lacking})
    return True


def _build(artefact: Artefact, key: str, documents: Mapping[str, Any], store: Cache | None, say: Say) -> None:
    parts, module = parts_of(documents), artefact.function.partition(":")[0]
    _check_sources(module)
    function = load_named(artefact.function)
    with _scratch(artefact) as scratch, _full_disk(next(iter(artefact.outputs.values()))):
        with _Reader(scratch, store) as reader:
            reader.follow(function(**artefact.given, **scratch))
            for output, path in scratch.items():
                if not path.exists():
                    raise UserError(f"{artefact.function} did not make {artefact.outputs[output]}")
            outputs = {name: reader.made(name) for name in scratch}
        _check_sources(module)
        if (now := artefact.parts()) != parts:
            # The result belongs to neither the old nor the new inputs.
            changed = " and ".join(name for name in now if now[name] != parts[name])
            raise UserError(f"its {changed} changed while it was made", "run the command again")
        entry = Entry(key, artefact.function, outputs)
        if not _is_of_its_kind(artefact, entry):
            raise UserError(f"{artefact.function} made a directory for a file, or a file for a directory")
        if names := [each for name in artefact.trees for each in users(scratch[name], artefact.ignored, artefact.own)]:
            raise UserError(f"{artefact.function} made what its task leaves to users: {', '.join(names)}")
        if store:
            store.keep(entry, scratch, say)
        # If an output is identical to the old one, the old file stays, and its dependents do not read it again.
        lacking = list(artefact.lacking({name: _shown(made) for name, made in entry.outputs.items()}))
        _place(artefact, scratch, {name: entry.outputs[name] for name in lacking})
    _note_made(artefact, documents, entry)


def _note_made(artefact: Artefact, documents: Mapping[str, Any], entry: Entry) -> None:
    outputs = {name: _shown(made) for name, made in entry.outputs.items()}
    artefact.made.update(parts=parts_of(documents), outputs=outputs, details=details_of(documents))


def _check_sources(module: str) -> None:
    """Refuse sources that changed since this process started: the loaded code would differ from its digest."""
    for path in reached_sources(module).values():
        if path.stat().st_ctime_ns > session.started_ns():
            raise UserError(f"{path}: changed since this run started", "run the command again")


@contextmanager
def _scratch(artefact: Artefact) -> Iterator[dict[str, Path]]:
    """A temporary path for every output, each in a directory of its own."""
    with scratch_directory(next(iter(artefact.outputs.values()))) as scratch:
        made = {name: scratch / name / path.name for name, path in artefact.outputs.items()}
        for path in made.values():
            path.parent.mkdir()
        yield made


def _place(artefact: Artefact, scratch: Mapping[str, Path], made: Mapping[str, File | Tree]) -> None:
    index = session.index()
    for name, output in made.items():
        path = artefact.outputs[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        put(scratch[name], path, artefact.ignored, artefact.own)
        if isinstance(output, File):
            index.note(path, output.blob.sha256)
        else:
            index.note_tree(path, output.sha256, artefact.ignored)


def _is_of_its_kind(artefact: Artefact, entry: Entry) -> bool:
    kinds = {name: Tree if name in artefact.trees else File for name in artefact.outputs}
    return {name: type(made) for name, made in entry.outputs.items()} == kinds


class _Reader:
    """Takes the digests of outputs. It reads an output that is finished early while the function makes the others."""

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
        """Run the rest of a function that yields the name of each output as soon as that output is final."""
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


@contextmanager
def _full_disk(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise cannot_write(place, error) from None
