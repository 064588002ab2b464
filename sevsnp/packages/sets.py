# SPDX-License-Identifier: Apache-2.0
"""Package sets: the YAML lists of the Debian packages that the project asks for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system.yaml_loader import load

# No Debian name ends in "-", and apt would remove such a package instead.
PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.]")
SUITE_NAME = re.compile(r"[a-z][a-z0-9-]*")
SET_NAME = re.compile(r"[a-z][a-z0-9_-]*")

_KEYS = ("suite", "packages", "dependencies", "essential", "exclude", "security")


@dataclass(frozen=True)
class PackageSet:
    """One list of packages, as its YAML file has it.

    ``dependencies: false`` takes only the named packages. ``essential`` adds every package marked Essential, and apt.
    ``exclude`` removes packages from the result after the dependencies are resolved. ``security`` (true by default)
    also takes updates from the suite's security archive.
    """

    name: str
    file: Path
    suite: str
    packages: tuple[str, ...]
    dependencies: bool = True
    essential: bool = False
    exclude: tuple[str, ...] = ()
    security: bool = True


def _names(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{where}: found {value!r}, expected a list of package names")
    for name in value:
        if not PACKAGE_NAME.fullmatch(name):
            raise UserError(f"{where}: found {name!r}, expected the name of a Debian package")
        if value.count(name) > 1:
            raise UserError(f"{where}: {name} is given twice")
    return tuple(value)


def _parse(name: str, document: Any, file: Path, where: str) -> PackageSet:
    if not isinstance(document, dict):
        raise UserError(f"{where}: found a {type(document).__name__}, expected suite: and packages:")
    for key in document:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key {key!r}", f"known: {', '.join(_KEYS)}")
    suite = document.get("suite")
    if not isinstance(suite, str) or not SUITE_NAME.fullmatch(suite):
        raise UserError(f"{where}: suite: found {suite!r}, expected a Debian suite, as trixie")
    flags: dict[str, bool] = {}
    for key, default in (("dependencies", True), ("essential", False), ("security", True)):
        flags[key] = document.get(key, default)
        if not isinstance(flags[key], bool):
            raise UserError(f"{where}: {key}: found {flags[key]!r}, expected true or false")
    packages = _names(document.get("packages"), f"{where}: packages")
    exclude = tuple(sorted(_names(document.get("exclude", []), f"{where}: exclude")))
    if not packages:
        raise UserError(f"{where}: packages: found an empty list, expected at least one name")
    for package in packages:
        if package in exclude:
            raise UserError(f"{where}: {package} is in packages and in exclude")
    return PackageSet(name=name, file=file, suite=suite, packages=packages, exclude=exclude, **flags)


def read_set(file: Path, name: str) -> PackageSet:
    """The single set of a file (``suite:`` and ``packages:`` at its top level), under ``name``.

    Raises :class:`UserError` for a missing file, unknown keys, wrong types and impossible names.
    """
    return _parse(name, load(file, "a list of packages"), file, str(file))


def read_sets(file: Path) -> tuple[PackageSet, ...]:
    """Every set of a file that maps names to sets (such as tasks/packages.yaml). Errors as for :func:`read_set`."""
    document = load(file, "a list of packages")
    if not isinstance(document, Mapping) or not document:
        raise UserError(f"{file}: found a {type(document).__name__}, expected names of sets, each with its packages")
    for name in document:
        if not isinstance(name, str) or not SET_NAME.fullmatch(name):
            raise UserError(f"{file}: found {name!r}, expected the name of a set, as tools")
    return tuple(_parse(name, part, file, f"{file}: {name}") for name, part in document.items())
