# SPDX-License-Identifier: Apache-2.0
"""An artefact: its inputs, the code that makes it, and whether it is up to date. sevsnp.store.making makes it.

doit creates all artefacts for every command. The modules that only make an artefact are therefore imported when one
is made.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sevsnp.store import session
from sevsnp.store.recipe import recipe_digest

Say = Callable[[str], None]
_SHOWN = 5  # names of what has changed


@dataclass(frozen=True, eq=False)
class Artefact:
    """One task's part in the graph: its function with all inputs and outputs.

    ``given`` are the function's other arguments. ``ignored`` are names at the top of an output tree that are not part
    of it: a user's files. In such a tree, a directory that is not in ``own`` is a user's, too. ``cached``: whether the
    outputs may be kept and shared. It is false for outputs that hold a secret, and for outputs that are useless
    elsewhere.
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
    own: tuple[str, ...] = ()
    cached: bool = True
    trees: frozenset[str] = frozenset()
    # What the last run of the action made, for doit to save; and why the artefact is not up to date, for `doit info`.
    made: dict[str, Any] = field(default_factory=dict)
    reason: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return ", ".join(self.reason) or f"made by {self.function}"

    # The inputs.

    def parts(self) -> dict[str, str]:
        """A digest for each kind of input that decides the result. Raises OSError if an input does not exist."""
        return parts_of(self.documents())

    def documents(self) -> dict[str, Any]:
        """Each kind of input that decides the result, with digests of files. Raises OSError as :meth:`parts` does."""
        from sevsnp.store.entries import SCHEMA

        index = session.index()
        files = {
            name: [[_portable(path), index.input(path)] for path in paths]
            for name, paths in sorted(self.inputs.items())
        }
        tools = {name: _program(name) for name in self.programs}
        tools.update({f"python:{name}": _distribution(name) for name in self.distributions})
        places = {name: _portable(path) for name, path in self.outputs.items()}
        sources = {name: _listing(path) for name, path in sorted(self.directories.items())}
        return {
            "inputs": [files, sources],
            "parameters": [dict(self.params), places],
            "recipe": [SCHEMA, self.function, recipe_digest(self.function.partition(":")[0])],
            "tools": tools,
        }

    # Whether the artefact is up to date: doit's question.

    def __call__(self, task: Any, values: Mapping[str, Any]) -> bool | None:
        """A doit ``uptodate`` item: false if an input that decides the result, or an output, has changed."""
        task.value_savers.append(self._save)
        self.reason.clear()
        saved = values.get("artefact") or {}
        try:
            documents = self.documents()
        except FileNotFoundError:
            return None  # doit's own message is better: it names the file and the task
        except OSError as error:
            self.reason.append(f"{error.filename}: {error.strerror}")
            return False  # the task reports this as its own failure
        if not saved:
            self.reason.append("not made here yet")
        else:
            changed = [kind for kind, digest in parts_of(documents).items() if saved["parts"].get(kind) != digest]
            before, now = saved.get("details", {}), details_of(documents) if changed else {}
            self.reason.extend(f"other {kind}{_changed(before.get(kind), now.get(kind))}" for kind in changed)
            self.reason.extend(f"{self.outputs[name]}: not as it was made" for name in self.lacking(saved["outputs"]))
        return not self.reason

    def _save(self) -> dict[str, Any]:
        return {"artefact": dict(self.made)}

    def lacking(self, digests: Mapping[str, str]) -> Iterator[str]:
        """The names of the outputs that do not match ``digests``."""
        for name, path in self.outputs.items():
            try:
                if self._digest(path) == digests.get(name):
                    continue
            except (OSError, ValueError):
                pass
            yield name

    def _digest(self, path: Path) -> str:
        """The digest of an output as it is now, including its permissions."""
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            return session.index().tree(path, self.ignored)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(path)
        return f"{session.index().file(path)} {stat.S_IMODE(status.st_mode):o}"

    # How it is made.

    def make(self, say: Say, remark: Say) -> None:
        """Bring the outputs to their places: keep those that are right, copy those that the cache has, make the rest.

        ``say`` takes warnings; ``remark`` takes what happened instead of making. Raises UserError and OSError.
        """
        from sevsnp.store.making import make

        make(self, say, remark)


def parts_of(documents: Mapping[str, Any]) -> dict[str, str]:
    """A digest for each kind of input, of :meth:`Artefact.documents`."""
    return {kind: digest_of(document) for kind, document in documents.items()}


def details_of(documents: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """A short digest for each single input, parameter and tool, by name, so that what has changed can be named."""
    files, sources = documents["inputs"]
    params, places = documents["parameters"]
    found = {
        "inputs": {**{path: digest for each in files.values() for path, digest in each}, **sources},
        "parameters": dict(leaves({**params, "place": places})),
        "tools": documents["tools"],
    }
    return {kind: {name: digest_of(value)[:16] for name, value in each.items()} for kind, each in found.items()}


def _changed(before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str:
    """The names whose digests differ, in brackets."""
    if before is None or now is None:
        return ""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f" ({', '.join(names[:_SHOWN])}{more})" if names else ""


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested mappings, each with its dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def digest_of(document: Any) -> str:
    """SHA-256, as hex digits, of a document as JSON: of mappings, sequences, text, numbers and paths."""
    from sevsnp.store.entries import canonical

    return hashlib.sha256(canonical(_plain(document))).hexdigest()


def _plain(value: Any) -> Any:
    """The value in JSON's types. A path becomes the name that it has in every checkout."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _portable(value) if isinstance(value, Path) else value


def _portable(path: Path) -> str:
    """A path in a form that is equal in all checkouts: relative to the project, or only the name if it is elsewhere."""
    if not path.is_absolute():
        return path.as_posix()
    here = Path.cwd()
    return path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name


def _listing(directory: Path) -> list[list[str]]:
    """The listing of a source directory: names, links, content and execute permissions; nothing that umask decides."""
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
    """The identity of a host program: the digest of its file."""
    from sevsnp.system.command import find

    path = find(name)
    return session.index().file(path) if path else "missing"


def _distribution(name: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(name)
