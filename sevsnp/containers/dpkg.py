# SPDX-License-Identifier: Apache-2.0
"""Debian's package relations: which packages a root has, and whether those of another root fit into it.

Sources: Debian Policy 5.6.12 (versions) and 7 (relations); deb-version(7).
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_RELATION = re.compile(r"\s*([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9-]+)?\s*(?:\(\s*(<<|<=|=|>=|>>)\s*(\S+?)\s*\))?\s*")
_NEEDS, _EXCLUDES = ("Pre-Depends", "Depends"), ("Conflicts", "Breaks")


@dataclass(frozen=True)
class Relation:
    """A package name, and the versions that are meant, as ``>=`` and a version; both empty for every version."""

    name: str
    operator: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.operator} {self.version})" if self.operator else self.name

    def holds(self, version: str) -> bool:
        """Whether ``version`` is one of those that are meant."""
        if not self.operator:
            return True
        order = compare(version, self.version)
        return {"<<": order < 0, "<=": order <= 0, "=": order == 0, ">=": order >= 0, ">>": order > 0}[self.operator]


@dataclass(frozen=True)
class Installed:
    """An installed package: its stanza of the status file, and the fields in it."""

    name: str
    version: str
    stanza: str

    def field(self, name: str) -> str:
        """A one-line field, empty if absent."""
        match = re.search(rf"^{name}:[ \t]*(.*)$", self.stanza, re.MULTILINE)
        return match[1] if match else ""

    @property
    def needs(self) -> list[list[Relation]]:
        """Groups of alternatives, of each of which the root must have one."""
        return [group for name in _NEEDS for group in relations(self.field(name))]

    @property
    def excludes(self) -> list[Relation]:
        """What the root must not have beside it."""
        return [relation for name in _EXCLUDES for group in relations(self.field(name)) for relation in group]

    @property
    def provides(self) -> list[Relation]:
        """Names that it stands for beside its own; only those with a version fulfil a versioned relation."""
        return [relation for group in relations(self.field("Provides")) for relation in group]

    @property
    def conffiles(self) -> set[str]:
        """The configuration files, as absolute paths."""
        match = re.search(r"^Conffiles:\s*\n((?: .*\n?)+)", self.stanza, re.MULTILINE)
        return {line.split()[0] for line in match[1].splitlines() if line.strip()} if match else set()


def read_status(text: str) -> dict[str, Installed]:
    """The installed packages in a dpkg status file, by name."""
    found = {}
    for stanza in re.split(r"\n\s*\n", text):
        fields = dict(re.findall(r"^(Package|Version|Status):[ \t]*(.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and {"Package", "Version"} <= fields.keys():
            name = fields["Package"]
            found[name] = Installed(name, fields["Version"], stanza.strip("\n") + "\n")
    return found


def relations(text: str) -> list[list[Relation]]:
    """A relation field as groups of alternatives; what is not in the form of one is left out."""
    groups = []
    for group in text.split(","):
        matches = [_RELATION.match(each) for each in group.split("|")]
        found = [Relation(match[1], match[2] or "", match[3] or "") for match in matches if match]
        if found:
            groups.append(found)
    return groups


def fulfils(package: Installed, relation: Relation) -> bool:
    """Whether a package is, or provides, what ``relation`` means."""
    if package.name == relation.name and relation.holds(package.version):
        return True
    return any(
        given.name == relation.name and (not relation.operator or (given.version and relation.holds(given.version)))
        for given in package.provides
    )


def fulfilled(packages: Mapping[str, Installed], group: Iterable[Relation]) -> bool:
    """Whether one of the ``packages`` fulfils one of the alternatives."""
    group = list(group)
    # Most are fulfilled by name; only then all packages are asked for what they provide.
    if any(each.name in packages and fulfils(packages[each.name], each) for each in group):
        return True
    return any(fulfils(package, each) for each in group for package in packages.values())


def unmet(packages: Mapping[str, Installed]) -> Iterator[str]:
    """What does not hold among ``packages``: a text for each relation."""
    for package in packages.values():
        for group in package.needs:
            if not fulfilled(packages, group):
                yield f"{package.name} needs {' | '.join(map(str, group))}"
        for relation in package.excludes:
            for other in packages.values():
                if other.name != package.name and fulfils(other, relation):
                    yield f"{package.name} excludes {relation}"


def compare(one: str, other: str) -> int:
    """Negative, zero or positive, as ``one`` is earlier than, equal to or later than ``other``."""
    (epoch, upstream, revision), (epoch2, upstream2, revision2) = _parts(one), _parts(other)
    return _numbers(epoch, epoch2) or _compare(upstream, upstream2) or _compare(revision, revision2)


def _parts(version: str) -> tuple[str, str, str]:
    epoch, colon, rest = version.partition(":")
    if not colon or not re.fullmatch("[0-9]+", epoch):
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    return epoch, upstream if dash else rest, revision if dash else "0"


def _compare(one: str, other: str) -> int:
    """Compare in turns what is not a number, and numbers."""
    for (text, number), (text2, number2) in itertools.zip_longest(_pieces(one), _pieces(other), fillvalue=("", "")):
        if order := _order(text, text2) or _numbers(number, number2):
            return order
    return 0


def _pieces(text: str) -> list[tuple[str, str]]:
    return [piece for piece in re.findall(r"([^0-9]*)([0-9]*)", text) if any(piece)]


def _numbers(one: str, other: str) -> int:
    """Compare numbers of any length; int() takes no more than 4,300 digits."""
    one, other = one.lstrip("0"), other.lstrip("0")
    return len(one) - len(other) or (one > other) - (one < other)


def _order(one: str, other: str) -> int:
    """A tilde comes before the end, the end before letters, and letters before all others."""

    def weight(character: str) -> int:
        if character == "~":
            return -1
        if not character:
            return 0
        return ord(character) if character.isalpha() else ord(character) + 256

    for a, b in itertools.zip_longest(one, other, fillvalue=""):
        if weight(a) != weight(b):
            return weight(a) - weight(b)
    return 0
