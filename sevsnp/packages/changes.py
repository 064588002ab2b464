# SPDX-License-Identifier: Apache-2.0
"""Describes the differences between two locks."""

from collections.abc import Mapping

from sevsnp.packages.lock import LockedSet, Package


def describe(old: Mapping[str, LockedSet], new: Mapping[str, LockedSet]) -> list[str]:
    """A line for each package that changed, was added or removed, with its sets; and one line with the counts."""
    sets: dict[tuple[str, str], list[str]] = {}
    for name in sorted({*old, *new}):
        before, after = _by_name(old, name), _by_name(new, name)
        for package in sorted({*before, *after}):
            if before.get(package) != after.get(package):
                said = _change(before.get(package), after.get(package))
                sets.setdefault((package, said), []).append(name)
    lines = [f"{package} {said} ({', '.join(names)})" for (package, said), names in sorted(sets.items())]
    counted = {kind: sum(said.endswith(kind) for _, said in sets) for kind in ("added", "removed")}
    changed = len(sets) - sum(counted.values())
    return [*lines, f"{changed} changed, {counted['added']} added, {counted['removed']} removed"]


def _by_name(sets: Mapping[str, LockedSet], name: str) -> dict[str, Package]:
    return {package.name: package for package in sets[name].packages} if name in sets else {}


def _change(old: Package | None, new: Package | None) -> str:
    if old is None or new is None:
        return f"{new.version} added" if new else f"{old.version if old else ''} removed"
    if old.version == new.version:
        return f"{new.version}, another file"
    return f"{old.version} → {new.version}"
