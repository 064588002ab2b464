# SPDX-License-Identifier: Apache-2.0
"""tasks/sources.yaml: the sources of each PACKAGES_PIN: files by SHA-256, or a tag or branch in git."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.packages.lock import DEBIAN, MAX_SIZE, Package
from sevsnp.system.yaml_loader import load

STABLE, UPSTREAM, AMD = "stable", "upstream", "amd"
PINS = (STABLE, UPSTREAM, AMD)

_PATH = re.compile(r"pool/[A-Za-z0-9._+~/-]+")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~:/-]*")
REPOSITORY = re.compile(r"(https|file)://[A-Za-z0-9._~%/@:+ -]+")
_DATE = re.compile(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FIELDS = {
    "files": frozenset({"version", "date", "files"}),
    "tag": frozenset({"repository", "tag", "submodules", "wraps"}),
    "branch": frozenset({"repository", "branch", "submodules", "wraps"}),
}


@dataclass(frozen=True)
class FileSource:
    """A source that consists of pinned files of a Debian mirror, which had them on ``date`` (for snapshots)."""

    name: str
    version: str
    files: tuple[Package, ...]
    date: str


@dataclass(frozen=True)
class GitSource:
    """A source in a git repository: the commit of ``tag``, or the last commit of a day on ``branch``.

    ``submodules``: it needs the repositories that it names as its submodules. ``wraps`` are the names of those of
    meson's wrap files (subprojects/NAME.wrap) whose repositories it needs.
    """

    name: str
    repository: str
    tag: str = ""
    branch: str = ""
    submodules: bool = False
    wraps: tuple[str, ...] = ()


Source = FileSource | GitSource


def read_pins(file: Path, pin: str) -> dict[str, Source]:
    """Every source of ``pin`` by name; what a pin lacks is that of ``stable``.

    Raises :class:`UserError` that names the file and the field.
    """
    document = load(file, "the sources to build")
    if not isinstance(document, Mapping) or set(document) != set(PINS):
        found = ", ".join(map(str, document)) if isinstance(document, Mapping) else type(document).__name__
        raise UserError(f"{file}: found {found}, expected {', '.join(PINS)}")
    sources: dict[str, Source] = {}
    for part in dict.fromkeys((STABLE, pin)):
        if not isinstance(document[part], Mapping):
            raise UserError(f"{file}: {part}: found {document[part]!r}, expected sources by name")
        sources |= {str(name): _source(str(name), fields, f"{file}: {part}") for name, fields in document[part].items()}
    return sources


def _source(name: str, fields: Any, where: str) -> Source:
    where = f"{where}: {name}"
    if not _WORD.fullmatch(name) or "/" in name:
        raise UserError(f"{where}: found {name!r}, expected the name of a source")
    kind = next((kind for kind in _FIELDS if isinstance(fields, Mapping) and kind in fields), "")
    if not kind:
        raise UserError(f"{where}: found neither files, tag nor branch, expected one of them")
    if unknown := sorted(map(str, set(fields) - _FIELDS[kind])):
        raise UserError(f"{where}: unknown field {unknown[0]}, expected {', '.join(sorted(_FIELDS[kind]))}")
    if kind == "files":
        version = _text(fields, "version", _WORD, where)
        if not isinstance(fields["files"], list) or not fields["files"]:
            raise UserError(f"{where}: files: found {fields['files']!r}, expected a list of files")
        files = tuple(_file(name, version, each, where) for each in fields["files"])
        return FileSource(name, version, files, _text(fields, "date", _DATE, where))
    submodules, wraps = fields.get("submodules", False), fields.get("wraps", [])
    if not isinstance(submodules, bool):
        raise UserError(f"{where}: submodules: found {submodules!r}, expected true or false")
    if not isinstance(wraps, list) or not all(
        isinstance(wrap, str) and re.fullmatch(r"[\w.-]+", wrap) for wrap in wraps
    ):
        raise UserError(f"{where}: wraps: found {wraps!r}, expected a list of names")
    return GitSource(
        name,
        _text(fields, "repository", REPOSITORY, where),
        tag=_text(fields, "tag", _WORD, where) if kind == "tag" else "",
        branch=_text(fields, "branch", _WORD, where) if kind == "branch" else "",
        submodules=submodules,
        wraps=tuple(wraps),
    )


def _file(name: str, version: str, fields: Any, where: str) -> Package:
    if not isinstance(fields, Mapping) or set(fields) != {"path", "size", "sha256"}:
        raise UserError(f"{where}: files: found {fields!r}, expected path, size and sha256")
    path, size = _text(fields, "path", _PATH, where), fields["size"]
    if ".." in path.split("/"):
        raise UserError(f"{where}: path: found {path}, expected a path without ..")
    if type(size) is not int or not 0 < size < MAX_SIZE:
        raise UserError(f"{where}: size: found {size!r}, expected a number of bytes")
    return Package(name, version, "source", DEBIAN, path, size, _text(fields, "sha256", _SHA256, where))


def _text(fields: Mapping[str, Any], key: str, form: re.Pattern[str], where: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not form.fullmatch(value):
        raise UserError(f"{where}: {key}: found {value!r}, expected text of the form {form.pattern}")
    return value
