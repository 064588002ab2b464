# SPDX-License-Identifier: Apache-2.0
"""An artefact: what it is made from and by, and whether it is as it was made. How it comes about: sevsnp.store.making.

doit has all of them whatever it is asked to do, so what only makes one is loaded when one is made.
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
        from sevsnp.store.entries import SCHEMA

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
        return {name: digest_of(document) for name, document in documents.items()}

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
            self.reason.extend(f"{self.outputs[name]}: not as it was made" for name in self.lacking(saved["outputs"]))
        return not self.reason

    def _save(self) -> dict[str, Any]:
        return {"artefact": dict(self.made)}

    def lacking(self, digests: Mapping[str, str]) -> Iterator[str]:
        """The outputs that are not there as ``digests`` has them."""
        for name, path in self.outputs.items():
            try:
                if self._digest(path) == digests.get(name):
                    continue
            except (OSError, ValueError):
                pass
            yield name

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
        from sevsnp.store.making import make

        make(self, say, remark)


def digest_of(document: Any) -> str:
    """SHA-256, as hex digits, of a document as JSON: of mappings, sequences, text, numbers and paths."""
    from sevsnp.store.entries import canonical

    return hashlib.sha256(canonical(_plain(document))).hexdigest()


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
