# SPDX-License-Identifier: Apache-2.0
"""What an artefact was made by: a digest over the source of a function's module and all it imports from here."""

import ast
import functools
import hashlib
import re
from pathlib import Path

from sevsnp.store.session import index

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
    # Parsing all sources takes longer than everything else in a run that has nothing to do.
    names = index().memo(f"imports:{index().file(path)}:{index().file(__file__)}", lambda: sorted(_named(path)))
    return frozenset(name for name in names if _source(name))


def _named(path: Path) -> set[str]:
    """What a source file names that may be a module of this project."""
    found: set[str] = set()
    try:
        parsed = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return found  # its own digest counts; who imports it says what is wrong
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            # `from sevsnp.images import cpio` names a module, `from sevsnp.system.files import sha256_file` does not.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            found.add(node.value)
    return {name for name in found if name.split(".")[0] == PACKAGE}


@functools.cache
def reached_sources(module: str, without: str = "") -> dict[str, Path]:
    """The source files, by module name, of ``module`` and of every project module it reaches by imports.

    The package ``without``, and what only that reaches, is left out.
    """
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen and not (without and f"{name}.".startswith(f"{without}.")):
            seen.add(name)
            waiting.extend(_imports(name))
            waiting.extend(name.rpartition(".")[:1] if "." in name else ())
    return {name: path for name in sorted(seen) if (path := _source(name)) is not None}


@functools.cache
def recipe_digest(module: str) -> str:
    """SHA-256 over the sources of ``module`` and of every project module it reaches by imports."""
    digest = hashlib.sha256()
    for name, path in reached_sources(module).items():
        digest.update(f"{name}\0{index().file(path)}\n".encode())
    return digest.hexdigest()
