"""How a task says what it is: inputs, outputs, parameters, and the name of the library function that does the work.

Functions are named as "module:function" and imported when they run, so that `doit list` loads none of them.
"""

import errno
import importlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.store.recipe import Key

Task = dict[str, Any]
Paths = Path | Iterable[Path]


def _flat(paths: Iterable[Paths]) -> list[str]:
    found: list[Path] = []
    for item in paths:
        found.extend([item] if isinstance(item, Path) else item)
    return sorted({str(path) for path in found})


def call(function: str, /, **arguments: Any) -> Any:
    """Import and call ``module:function``; a user's error becomes doit's failure without a traceback."""
    from doit.exceptions import TaskFailed

    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(**arguments)
    except UserError as error:
        return TaskFailed(str(error), report=True)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        return TaskFailed(f"{error.filename or function}: {error.strerror}", report=True)
    # doit keeps what an action returns in its database in clear, so nothing is ever handed back.
    return None if result is None or result is True else TaskFailed(f"{function} failed", report=True)


def action(function: str, /, **arguments: Any) -> tuple[Any, list[Any], dict[str, Any]]:
    """A doit action that calls ``module:function`` with keyword arguments; it returns None, or raises."""
    return (call, [function], arguments)


def command(function: str, /, *, needs: Iterable[str] = (), **arguments: Any) -> Task:
    """A task that always runs when asked for: it launches, attests or reports, and leaves no artefact."""
    return {
        "actions": [action(function, **arguments)],
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
    params: Mapping[str, Any] | None = None,
    how: Mapping[str, Any] | None = None,
    watch: Iterable[Path] = (),
    needs: Iterable[str] = (),
) -> Task:
    """A task that makes files from files.

    ``function`` is called with every input, output and parameter as keyword arguments. ``how`` are parameters that do
    not change what is made, only how (a mirror, a cache, a directory of tools). Outputs are given to it under
    temporary names beside their place and renamed when it has returned, so no target is ever half-written. ``trees``
    are directories, each with the files inside it that other tasks name (doit knows only files). The task
    runs again when an input's content, a parameter, or the source of the function or of anything it imports changed;
    and when a file in ``watch`` did, which the function finds by itself (a manifest that stands for a tree of tools).
    """
    inputs, outputs, trees, params, how = inputs or {}, outputs or {}, trees or {}, params or {}, how or {}
    places = {**outputs, **{name: tree for name, (tree, _) in trees.items()}}
    inside = [tree / name for tree, names in trees.values() for name in names]
    return {
        "actions": [
            (call, ["tasks.graph:build"], {"function": function, "given": {**inputs, **params, **how}, "to": places})
        ],
        "file_dep": _flat([*inputs.values(), list(watch)]),
        "targets": [str(path) for path in (*outputs.values(), *inside)],
        "uptodate": [Key(function, dict(params))],
        "task_dep": list(needs),
        "clean": [(_clean, [list(places.values())])],
        "verbosity": 2,
    }


def build(function: str, given: Mapping[str, Any], to: Mapping[str, Path]) -> None:
    """Run an artefact's function into a scratch directory, then put its outputs in their places."""
    from sevsnp.files import scratch_directory

    module, _, name = function.partition(":")
    with scratch_directory(next(iter(to.values()))) as scratch:
        made = {key: scratch / key / path.name for key, path in to.items()}
        for path in made.values():
            path.parent.mkdir()
        try:
            getattr(importlib.import_module(module), name)(**given, **made)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            first = next(iter(to.values()))
            raise UserError(f"{first}: cannot be written: {error.strerror}", f"see: df -h {first.parent}") from None
        for key, path in made.items():
            if not path.exists():
                raise UserError(f"{function} did not make {to[key]}")
        for key, path in made.items():
            to[key].parent.mkdir(parents=True, exist_ok=True)
            if to[key].is_dir():
                # A directory cannot be replaced in one step; the old one is out of the way for an instant.
                to[key].rename(scratch / f"{key}.old")
            path.replace(to[key])


def _clean(paths: list[Path]) -> None:
    import shutil

    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
