# SPDX-License-Identifier: Apache-2.0
"""`packages_lock --only NAME`: pins one package at its newest version, and changes others only if it needs that."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.packages.deb import read_control
from sevsnp.packages.lock import REFRESH, Lock, LockedSet, Package
from sevsnp.packages.resolve import Note, PrivateApt, complaints, each_apt, image_behind
from sevsnp.packages.sets import PackageSet
from sevsnp.packages.sources import Sources

# Gives the files of locked packages: their dependencies are not in the lock.
Files = Callable[[Sequence[Package]], Mapping[Package, Path]]


def repin(
    name: str, *, lock: Lock, sets: Sequence[PackageSet], sources: Sources, files: Files, keyring: Path, note: Note
) -> dict[str, LockedSet]:
    """The sets of ``lock`` with ``name`` at its newest version, in every set that asks for it or has it locked.

    apt decides what else must change, as if the locked versions were installed. Uses the network. Raises
    :class:`UserError`, also for a name that no set has.
    """
    found = dict(lock.sets)
    touched = [asked for asked in sets if asked.name in found and _has(name, asked, found[asked.name])]
    if not touched:
        raise UserError(f"--only {name}: no list asks for it, and no set of {lock.path} has it", "expected a package")
    for apt, members in each_apt(touched, sources, keyring, note):
        for asked in members:
            try:
                found[asked.name] = _repinned(name, asked, found[asked.name], apt, files)
            except UserError as error:
                raise UserError(
                    f"--only {name}: set {asked.name} ({asked.suite}): {complaints(error)}", REFRESH
                ) from error
    return found


def _has(name: str, asked: PackageSet, locked: LockedSet) -> bool:
    return name in asked.packages or any(package.name == name for package in locked.packages)


def _repinned(name: str, asked: PackageSet, locked: LockedSet, apt: PrivateApt, files: Files) -> LockedSet:
    packages = {package.name: package for package in locked.packages}
    resolved = dict(locked.resolved)
    if asked.dependencies:
        apt.install(_installed(locked, asked, apt, files))
        text = apt.get("install", "-y", "--no-remove", "--print-uris", name)
    else:
        # The kernel image that a meta-package stands for has another name with each version.
        wanted = next((meta for meta, image in resolved.items() if image == name), name)
        packages.pop(resolved.pop(wanted, wanted), None)
        image = image_behind(apt, wanted)
        if image != wanted:
            resolved[wanted] = image
        text = apt.get("download", "--print-uris", image)
    packages |= {package.name: package for package in apt.parse_uris(text) if package.name not in asked.exclude}
    return replace(
        locked,
        requested=tuple(sorted({*locked.requested, *({name} & {*asked.packages})})),
        resolved=resolved,
        packages=tuple(packages[each] for each in sorted(packages)),
        dates=tuple(sorted({apt.date(), *locked.dates}, reverse=True)),
    )


def _installed(locked: LockedSet, asked: PackageSet, apt: PrivateApt, files: Files) -> str:
    """A dpkg status with the locked packages installed. Excluded packages are in it too, without dependencies."""
    stanzas = [read_control(file) for file in files(locked.packages).values()]
    kept = ("Package", "Version", "Architecture", "Multi-Arch", "Provides")
    for name in asked.exclude:
        lines = apt.cache("show", "--no-all-versions", name).split("\n\n")[0].splitlines()
        stanzas.append("\n".join(line for line in lines if line.startswith(tuple(f"{field}:" for field in kept))))
    return "".join(f"{stanza.strip()}\nStatus: install ok installed\n\n" for stanza in stanzas)
