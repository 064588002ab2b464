# SPDX-License-Identifier: Apache-2.0
"""packages.lock: every package that the project uses, with its version and digest."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

import toml

from sevsnp.errors import UserError
from sevsnp.packages.sets import PACKAGE_NAME, SET_NAME, PackageSet

DEBIAN = "debian"
SECURITY = "debian-security"
ARCHIVES = (DEBIAN, SECURITY)
FORMAT = 2
REFRESH = "run: ./doitw packages_lock"

_VERSION = re.compile(r"[A-Za-z0-9.+:~-]+")
# A package, or an archive of a source package.
_FILENAME = re.compile(r"[A-Za-z0-9._+~:/-]+\.(deb|tar\.(xz|gz|bz2))")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_DATE = re.compile(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z")
# Bytes. No Debian package is nearly so large; a lock with a larger size is damaged.
MAX_SIZE = 1 << 32


@dataclass(frozen=True)
class Package:
    """One pinned package. ``filename`` is its path in the archive, not percent-encoded; ``size`` is in bytes."""

    name: str
    version: str
    architecture: str
    archive: str
    filename: str
    size: int
    sha256: str

    @property
    def deb(self) -> str:
        """The name of its file in the archive's pool; for a source, that of the source archive."""
        return PurePosixPath(self.filename).name


@dataclass(frozen=True)
class LockedSet:
    """A set as the list asks for it, and as apt resolved it.

    ``resolved`` maps a requested meta-package to the package that was locked instead. ``dates`` are the dates of the
    archives' indices from which the packages were taken (as 2026-01-31T12:00:00Z), the newest first. There are several
    if single packages were pinned anew.
    """

    suite: str
    dates: tuple[str, ...]
    requested: tuple[str, ...]
    dependencies: bool
    essential: bool
    exclude: tuple[str, ...]
    security: bool
    resolved: Mapping[str, str]
    packages: tuple[Package, ...]


@dataclass(frozen=True)
class Lock:
    """A validated lock file."""

    path: Path
    sets: Mapping[str, LockedSet]

    def packages(self, set_name: str) -> tuple[Package, ...]:
        """The pinned packages of one set, sorted by name. Raises :class:`UserError` for a set that is not locked."""
        if set_name not in self.sets:
            raise UserError(f"{self.path}: no set {set_name!r}, found {', '.join(self.sets) or 'none'}", REFRESH)
        return self.sets[set_name].packages

    def dates(self, package: Package) -> tuple[str, ...]:
        """The dates at which the archives had ``package``: the dates of every set that pins it, the newest first."""
        found = {date for locked in self.sets.values() if package in locked.packages for date in locked.dates}
        return tuple(sorted(found, reverse=True))

    def check(self, wanted: Iterable[PackageSet]) -> None:
        """Refuse a lock that is older than the lists from which it was made.

        Raises :class:`UserError` that names the package, the list and ``./doitw packages_lock``.
        """
        for asked in wanted:
            self.packages(asked.name)
            locked = self.sets[asked.name]
            for name in asked.packages:
                if name not in locked.requested:
                    raise UserError(f"{asked.file}: {name} is not in {self.path} (set {asked.name})", REFRESH)
            for name in locked.requested:
                if name not in asked.packages:
                    raise UserError(
                        f"{self.path}: set {asked.name} was made with {name}, which {asked.file} lacks", REFRESH
                    )
            for key in ("suite", "dependencies", "essential", "exclude", "security"):
                found, expected = getattr(locked, key), getattr(asked, key)
                if found != expected:
                    raise UserError(
                        f"{self.path}: set {asked.name} was made with {key}: {_shown(found)}, "
                        f"but {asked.file} says {_shown(expected)}",
                        REFRESH,
                    )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


def _keys(table: Any, allowed: Iterable[str], where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UserError(f"{where}: found a {type(table).__name__}, expected a table", REFRESH)
    for key in table:
        if key not in allowed:
            raise UserError(f"{where}: unknown key {key!r}", f"known: {', '.join(allowed)}")
    for key in allowed:
        if key not in table:
            raise UserError(f"{where}: {key} is missing", REFRESH)
    return table


def _package(table: Any, where: str) -> Package:
    values = _keys(table, [field.name for field in fields(Package)], where)
    where = f"{where}: {values['name']}"
    for key, pattern, expected in (
        ("name", PACKAGE_NAME, "a package name"),
        ("version", _VERSION, "a Debian version"),
        ("architecture", re.compile("amd64|all|source"), "amd64, all or source"),
        ("archive", re.compile("|".join(ARCHIVES)), " or ".join(ARCHIVES)),
        ("filename", _FILENAME, "a path below the archive that ends in .deb or .tar.xz"),
        ("sha256", _SHA256, "64 lower-case hex digits"),
    ):
        value = values[key]
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise UserError(f"{where}: {key}: found {value!r}, expected {expected}", REFRESH)
    # The file name becomes part of a path in the cache and in build/: it must not leave them.
    if values["filename"].startswith("/") or ".." in values["filename"].split("/"):
        raise UserError(f"{where}: filename: found {values['filename']!r}, expected a path below the archive", REFRESH)
    size = values["size"]
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= MAX_SIZE:
        raise UserError(f"{where}: size: found {size!r}, expected a number of bytes up to {MAX_SIZE}", REFRESH)
    return Package(**values)


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where}: found {value!r}, expected a list of names", REFRESH)
    return tuple(value)


def _locked_set(table: Any, where: str) -> LockedSet:
    values = _keys(table, [field.name for field in fields(LockedSet)], where)
    for key in ("dependencies", "essential", "security"):
        if not isinstance(values[key], bool):
            raise UserError(f"{where}: {key}: found {values[key]!r}, expected true or false", REFRESH)
    if not isinstance(values["suite"], str):
        raise UserError(f"{where}: suite: found {values['suite']!r}, expected a suite", REFRESH)
    resolved = values["resolved"]
    if not isinstance(resolved, dict) or not all(isinstance(name, str) for name in resolved.values()):
        raise UserError(f"{where}: resolved: found {resolved!r}, expected names of packages", REFRESH)
    if not isinstance(values["packages"], list):
        raise UserError(f"{where}: packages: expected a list of packages", REFRESH)
    packages = tuple(_package(table, where) for table in values["packages"])
    names = [package.name for package in packages]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: {name} is locked twice", REFRESH)
    requested = _strings(values["requested"], f"{where}: requested")
    for name in requested:
        if resolved.get(name, name) not in names:
            raise UserError(f"{where}: {resolved.get(name, name)} is requested, but not locked", REFRESH)
    exclude = _strings(values["exclude"], f"{where}: exclude")
    dates = _strings(values["dates"], f"{where}: dates")
    if not dates or not all(_is_date(date) for date in dates):
        raise UserError(f"{where}: dates: found {list(dates)!r}, expected dates, as 2026-01-31T12:00:00Z", REFRESH)
    return LockedSet(**{**values, "requested": requested, "exclude": exclude, "dates": dates, "packages": packages})


def _is_date(text: str) -> bool:
    try:
        return bool(_DATE.fullmatch(text)) and bool(datetime.fromisoformat(text))
    except ValueError:
        return False


def read_lock(path: Path) -> Lock:
    """Read and validate a lock file.

    Raises :class:`UserError` naming the file, the set and the key of a missing, unknown or impossible value.
    """
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", REFRESH) from None
    except ValueError as error:  # not TOML, not UTF-8, or a number of more than 4300 digits
        raise UserError(f"{path}: not TOML: {error}", REFRESH) from error
    top = _keys(document, ("format", "sets"), str(path))
    if top["format"] != FORMAT:
        raise UserError(f"{path}: format: found {top['format']!r}, expected {FORMAT}", REFRESH)
    if not isinstance(top["sets"], dict):
        raise UserError(f"{path}: sets: expected a table of sets", REFRESH)
    sets = {}
    for name, table in top["sets"].items():
        if not SET_NAME.fullmatch(name):
            raise UserError(f"{path}: found a set {name!r}, expected a name as tools", REFRESH)
        sets[name] = _locked_set(table, f"{path}: {name}")
    return Lock(path, sets)


def dump_lock(sets: Mapping[str, LockedSet]) -> str:
    """A lock file's text: sets and packages sorted by name, so that equal content is an equal file."""
    tables = {}
    for name in sorted(sets):
        table = asdict(sets[name])
        table["packages"] = sorted(table["packages"], key=lambda package: package["name"])
        table["resolved"] = dict(sorted(table["resolved"].items()))
        tables[name] = {key: list(value) if isinstance(value, tuple) else value for key, value in table.items()}
    header = "# Made by `./doitw packages_lock` from the package lists; do not edit.\n"
    return header + toml.dumps({"format": FORMAT, "sets": tables})
