# SPDX-License-Identifier: Apache-2.0
"""The recipe of an artefact: a digest over the code of a function's module and of all project modules it imports.

Code means a source without comments, docstrings and layout, because these change no result. An artefact that contains a
source file, such as the host bundle, names that file as an input, and each byte of it counts.
"""

import ast
import functools
import hashlib
import io
import os
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from sevsnp.store.session import index

PACKAGE = "sevsnp"
_ROOT = Path(__file__).resolve().parents[2]
_MODULE = re.compile(rf"{PACKAGE}(\.\w+)+")


@functools.cache
def _package() -> dict[str, Path]:
    """The files of the package by module name. One listing costs less than a search for each name in an import."""
    found = {}
    for place, _, files in os.walk(_ROOT / PACKAGE):
        room = os.path.relpath(place, _ROOT).replace(os.sep, ".")
        sources = [name for name in files if name.endswith(".py")]
        found.update({f"{room}.{name}".removesuffix(".py"): Path(place, name) for name in sources})
    return {name.removesuffix(".__init__"): path for name, path in found.items()}


@functools.cache
def _source(module: str) -> Path | None:
    """The file of a project module. It is searched for, not imported: an import would cost more than the digest."""
    if module.partition(".")[0] == PACKAGE:
        return _package().get(module)
    base = _ROOT.joinpath(*module.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


@functools.cache
def _read(module: str) -> tuple[list[str], str]:
    """The names in a module that may be project modules, and the digest of its code."""
    path = _source(module)
    if path is None:
        return [], ""
    # In a run that has nothing to do, parsing all sources would take longer than everything else.
    names, digest = index().memo(f"code:{index().file(path)}:{index().file(__file__)}", lambda: _parsed(path))
    return names, digest


def _parsed(path: Path) -> tuple[list[str], str]:
    source = path.read_bytes()
    try:
        return sorted(_named(ast.parse(source))), hashlib.sha256("\0".join(_code(source)).encode()).hexdigest()
    except (SyntaxError, ValueError, tokenize.TokenError):
        return [], hashlib.sha256(source).hexdigest()  # the import of this module reports the error


def _named(parsed: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            # `from sevsnp.images import cpio` names a module; `from sevsnp.system.files import sha256_file` does not.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            found.add(node.value)
    return {name for name in found if name.split(".")[0] == PACKAGE}


def _code(source: bytes) -> Iterator[str]:
    """The tokens of a source, without comments, layout, and statements that are only a string (docstrings).

    Tokens, not a syntax tree: the nodes and fields of a tree differ between versions of Python, the tokens do not.
    There is one exception: Python 3.12 splits f-strings into several tokens; they are joined again.
    """
    lines = io.BytesIO(source).readlines()
    statement: list[str] = []
    plain = True  # whether the statement consists of strings only
    start, depth = (0, 0), 0
    for token in tokenize.tokenize(iter(lines).__next__):
        kind, text = tokenize.tok_name[token.type], token.string
        if kind in ("FSTRING_START", "TSTRING_START"):
            start = start if depth else token.start
            depth += 1
        elif kind in ("FSTRING_END", "TSTRING_END"):
            depth -= 1
            kind, text = "STRING", _between(lines, start, token.end)
        if depth or kind in ("COMMENT", "NL", "ENCODING"):
            continue
        if kind in ("INDENT", "DEDENT", "ENDMARKER"):
            yield f"<{kind}>"
        elif kind == "NEWLINE":
            if not plain:
                yield from (*statement, "<NEWLINE>")
            statement, plain = [], True
        else:
            statement.append(text)
            # An f-string may call something.
            plain = plain and kind == "STRING" and {"f", "t"}.isdisjoint(text.partition(text[-1])[0].lower())


def _between(lines: list[bytes], start: tuple[int, int], end: tuple[int, int]) -> str:
    """The text of a source from ``start`` to ``end``, each a line (from 1) and a column in characters."""
    text = [line.decode() for line in lines[start[0] - 1 : end[0]]]
    text[-1] = text[-1][: end[1]]
    text[0] = text[0][start[1] :]
    return "".join(text)


@functools.cache
def reached_sources(module: str, without: str = "") -> dict[str, Path]:
    """The source files, by module name, of ``module`` and of every project module that it reaches by imports.

    The package ``without``, and the modules that only it reaches, are left out.
    """
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen and not (without and f"{name}.".startswith(f"{without}.")):
            seen.add(name)
            waiting.extend(each for each in _read(name)[0] if _source(each))
            waiting.extend(name.rpartition(".")[:1] if "." in name else ())
    return {name: path for name in sorted(seen) if (path := _source(name)) is not None}


@functools.cache
def recipe_digest(module: str) -> str:
    """SHA-256 over the code of ``module`` and of every project module that it reaches by imports."""
    digest = hashlib.sha256()
    for name in reached_sources(module):
        digest.update(f"{name}\0{_read(name)[1]}\n".encode())
    return digest.hexdigest()
