"""What an artefact was made by: a digest over the source of a function's module and all it imports from here."""

import ast
import functools
import hashlib
import json
import re
from pathlib import Path
from typing import Any

PACKAGE = "sevsnp"
_ROOT = Path(__file__).resolve().parents[2]
_MODULE = re.compile(rf"{PACKAGE}(\.\w+)+")


@functools.cache
def _source(module: str) -> Path | None:
    """The file of a module of this project. Looked for, not imported: that would cost more than the digest."""
    base = _ROOT.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


@functools.cache
def _imports(module: str) -> frozenset[str]:
    """The project modules that a module imports anywhere in its source, or names by a string, to load them by name."""
    path = _source(module)
    if path is None:
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            # `from sevsnp.images import cpio` names a module, `from sevsnp.files import sha256_file` does not.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            found.add(node.value)
    ours = {name for name in found if name.split(".")[0] == PACKAGE}
    return frozenset(name for name in ours if _source(name))


@functools.cache
def reached_sources(module: str) -> dict[str, Path]:
    """The source files, by module name, of ``module`` and of every project module it reaches by imports."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(_imports(name))
            waiting.extend(name.rpartition(".")[:1] if "." in name else ())
    return {name: path for name in sorted(seen) if (path := _source(name)) is not None}


@functools.cache
def recipe_digest(module: str) -> str:
    """SHA-256 over the sources of ``module`` and of every project module it reaches by imports."""
    digest = hashlib.sha256()
    for name, path in reached_sources(module).items():
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


class Key:
    """A doit ``uptodate`` item: false when the function, its parameters or its recipe changed since the last success.

    One combined value, because two ``config_changed`` items in one task never settle.
    """

    def __init__(self, function: str, params: dict[str, Any]) -> None:
        self.function, self.params = function, params

    def digest(self) -> str:
        document = {
            "function": self.function,
            "params": self.params,
            "recipe": recipe_digest(self.function.partition(":")[0]),
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True, default=str).encode()).hexdigest()

    def __call__(self, task: Any, values: dict[str, Any]) -> bool:
        task.value_savers.append(lambda: {"key": self.digest()})
        return values.get("key") == self.digest()
