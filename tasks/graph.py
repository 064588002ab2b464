# SPDX-License-Identifier: Apache-2.0
"""How a task declares itself: inputs, outputs, parameters, and the name of the library function that does the work.

Functions are named as "module:function" and imported when they run, so that `doit list` loads none of them.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.pipeline.checkout import Checkout
from sevsnp.store.artefact import Artefact
from sevsnp.system import progress
from sevsnp.system.files import cannot_write
from sevsnp.system.named import load_named

Task = dict[str, Any]
Paths = Path | Iterable[Path]

CHECKOUT = Checkout(Path(".cache") / "build.lock")


class Check:
    """A doit ``uptodate`` item: whether ``module:function`` is true of its arguments. If it is not, ``words`` say so.

    :attr:`reason` is for `doit info` and the log of a run, as that of an artefact.
    """

    def __init__(self, function: str, words: str) -> None:
        self._function, self._words = function, words
        self.reason: list[str] = []

    def __repr__(self) -> str:
        return ", ".join(self.reason) or self._function

    def __call__(self, task: Any, values: Any, *arguments: Any, **options: Any) -> bool:
        current = bool(load_named(self._function)(*arguments, **options))
        self.reason[:] = [] if current else [self._words]
        return current


def _flat(paths: Iterable[Paths]) -> list[str]:
    return sorted({str(path) for item in paths for path in _listed(item)})


def _listed(paths: Paths) -> list[Path]:
    return [paths] if isinstance(paths, Path) else list(paths)


def _files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def call(function: str, /, *, alone: bool = False, launches: bool = False, **arguments: Any) -> Any:
    """Import and call ``module:function``; a user's error becomes doit's failure without a traceback.

    ``alone``: no other run builds in this checkout meanwhile. Otherwise others may build: a guest runs for hours.
    ``launches``: it starts a guest. The guest's temporary files are made by code that is also in a host bundle, where
    there is no guardian.
    """

    def work() -> Any:
        if launches:
            from sevsnp.system.command import keep_temporaries

            keep_temporaries()
        if alone:
            with CHECKOUT.making(say):
                return load_named(function)(**arguments)
        CHECKOUT.release()
        return load_named(function)(**arguments)

    return _told(function, work)


def make(artefact: Artefact) -> Any:
    """Make an artefact; errors as for :func:`call`."""

    def work() -> None:
        with CHECKOUT.making(say):
            artefact.make(say, progress.remark)

    return _told(artefact.function, work)


def _told(function: str, work: Callable[[], Any]) -> Any:
    try:
        result = work()
    except UserError as error:
        return _failed(str(error), error)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        if isinstance(error, PermissionError) and error.filename:
            return _failed(str(cannot_write(Path(os.fsdecode(error.filename)), error)), error)
        return _failed(f"{error.filename or function}: {error.strerror}", error)
    except SyntaxError as error:
        return _failed(f"{error.filename}:{error.lineno}: {error.msg}", error)
    # doit stores an action's return value in its database unencrypted, so no value is ever returned.
    return None if result is None or result is True else _failed(f"{function} failed")


def _failed(message: str, error: Exception | None = None) -> Any:
    """doit's failure. Its traceback is for users who ask for it (VERBOSE), and for the log."""
    from doit.exceptions import TaskFailed

    failed = TaskFailed(message, report=True)
    failed.trace = "".join(traceback.format_exception(error)) if error else ""
    return failed


def say(message: str) -> None:
    """Print a warning, or why nothing happens: a line that is not a task's result."""
    print(f"  {message}", file=sys.stderr, flush=True)


def action(function: str, /, **arguments: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    """A doit action that calls ``module:function`` with keyword arguments; it returns None, or raises."""
    return (call, [function], arguments)


def command(
    function: str, /, *, needs: Iterable[str] = (), alone: bool = False, launches: bool = False, **arguments: Any
) -> Task:
    """A task that always runs when asked for: it launches, attests or reports, and leaves no artefact.

    ``alone`` is for functions that read or change built files, which must not change meanwhile; ``launches`` is for
    functions that start a guest in this process.
    """
    return {
        "actions": [action(function, alone=alone, launches=launches, **arguments)],
        "task_dep": list(needs),
        "uptodate": [False],
        "verbosity": 2,
    }


def artefact(
    function: str,
    /,
    *,
    inputs: Mapping[str, Paths] | None = None,
    outputs: Mapping[str, Path] | None = None,
    trees: Mapping[str, tuple[Path, Iterable[str]]] | None = None,
    directories: Mapping[str, Path] | None = None,
    params: Mapping[str, Any] | None = None,
    how: Mapping[str, Any] | None = None,
    watch: Iterable[Path] = (),
    programs: Iterable[str] = (),
    distributions: Iterable[str] = (),
    ignored: Iterable[str] = (),
    own: Iterable[str] = (),
    needs: Iterable[str] = (),
    cached: bool = True,
) -> Task:
    """A task that makes files from files.

    ``function`` is called with every input, output and parameter as keyword arguments. ``how`` are parameters that do
    not change the result, only the way to it (a mirror, a cache, a directory of tools). The function gets temporary
    paths for the outputs, beside their places. They are renamed when it has returned, so no target is ever
    half-written. ``trees`` are directories, each with the files inside it that other tasks name (doit knows only
    files); ``ignored`` are names at their top that are not part of them, but a user's: no task moves or removes these.
    A tree with such names has no other directories at its top than those in ``own``, and is not made again while there
    is another. ``directories`` are inputs too, with their whole content.

    The task runs again if one of these changed: an input's content, a parameter, the code of the function or of
    anything it imports, one of the host's ``programs``, the version of one of the Python ``distributions``, or a file
    in ``watch``. ``watch`` is for files that the function finds by itself (a manifest that stands for a tree of tools).
    The task also runs again if an output is not as it was made. If the artefact cache has the result for the same
    inputs, that is copied instead, unless ``cached`` is false: for secrets, and for results that name this very
    machine.
    """
    inputs, outputs, trees, params, how = inputs or {}, outputs or {}, trees or {}, params or {}, how or {}
    places = {**outputs, **{name: tree for name, (tree, _) in trees.items()}}
    inside = [tree / name for tree, names in trees.values() for name in names]
    watched = list(watch)
    made = Artefact(
        function,
        inputs={**{name: _listed(paths) for name, paths in inputs.items()}, "watch": watched},
        directories=directories or {},
        outputs=places,
        params=dict(params),
        given={**inputs, **(directories or {}), **params, **how},
        programs=tuple(programs),
        distributions=tuple(distributions),
        ignored=tuple(ignored),
        own=tuple(own),
        cached=cached,
        trees=frozenset(trees),
    )
    return {
        "actions": [(make, [made])],
        # doit accepts no directory here; the artefact's own key decides.
        "file_dep": _flat([*inputs.values(), watched, *map(_files, (directories or {}).values())]),
        "targets": [str(path) for path in (*outputs.values(), *inside)],
        "uptodate": [made],
        "task_dep": ["_checkout", *needs],
        "clean": [(clean, [list(places.values()), tuple(ignored), tuple(own)])],
        "verbosity": 2,
    }


def clean(paths: list[Path], ignored: tuple[str, ...] = (), own: tuple[str, ...] = (), *, dryrun: bool) -> None:
    """Remove the built files at ``paths``, except a user's files in a directory, and print it.

    ``ignored`` and ``own`` are those of :func:`artefact`.
    """
    try:
        _clean(paths, ignored, own, dryrun)
    except OSError as error:
        # doit would show a traceback, continue, and report success.
        sys.exit(f"✗ clean: {cannot_write(Path(os.fsdecode(error.filename or paths[0])), error)}")


def _clean(paths: list[Path], ignored: tuple[str, ...], own: tuple[str, ...], dryrun: bool) -> None:
    import shutil

    from sevsnp.store.replacing import users

    if not dryrun:
        CHECKOUT.acquire(say)
    for path in paths:
        if not path.exists() and not path.is_symlink():
            continue
        print(f"removing {path}")
        if dryrun:
            continue
        if path.is_dir() and not path.is_symlink():
            # A file that was not built here, such as the disk of a guest that ran from a bundle, must not be removed.
            kept = users(path, ignored, own)
            for each in path.iterdir() if kept else []:
                if each.name not in kept:
                    shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
            if kept:
                print(f"left: {', '.join(str(path / name) for name in kept)}")
            else:
                shutil.rmtree(path)
        else:
            path.unlink()
