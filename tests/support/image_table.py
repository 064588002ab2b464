# SPDX-License-Identifier: Apache-2.0
"""The tables of images (tests/data/images): each row is an image, made by a maker of its name, with its right answer.

A row has ``refused``, the error; or ``said``, what is printed, and ``changed``, the names that differ from what the
maker put in. All else must come out with its mode, owner, links, attributes, content and holes. A line that ends in …
goes on with the words of a kernel or of LVM, which differ between their versions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sevsnp.archives.tar import Content, Entry
from sevsnp.system.yaml_loader import load

TABLES = Path(__file__).resolve().parents[1] / "data" / "images"
_KEYS = {"refused", "said", "changed"}


@dataclass(frozen=True)
class Row:
    """The right answer for one image."""

    refused: str
    said: list[str]
    changed: list[str]


@dataclass(frozen=True)
class Made:
    """An image that a maker made: the value of IMAGE, what is in it, and the value of ROOT_DEVICE."""

    image: str
    entries: list[Entry]
    root_device: str = ""


def read_table(name: str) -> dict[str, Row]:
    rows: dict[str, Any] = load(TABLES / name)
    for case, row in rows.items():
        assert row.keys() <= _KEYS and ("refused" in row) != ("said" in row), case
    return {
        case: Row(row.get("refused", "").strip(), row.get("said", "").splitlines(), sorted(row.get("changed", [])))
        for case, row in rows.items()
    }


def _content(content: Content) -> tuple[int, bool, bytes]:
    """Size, whether there are holes, and what is beside them."""
    if not content.sparse:
        return content.size, False, b"".join(content.pieces())
    assert content.path is not None
    with content.path.open("rb") as stream:
        parts = []
        for offset, length, place in content.extents():
            stream.seek(place)
            parts.append(offset.to_bytes(8, "big") + stream.read(length).rstrip(b"\0"))
    return content.size, True, b"".join(parts)


def facts(entries: Iterable[Entry]) -> dict[str, tuple[object, ...]]:
    """All about each entry but its time; of a file its content, its holes, and the names that share it."""
    every = {entry.name: entry for entry in entries}
    links: dict[tuple[str, int], list[str]] = {}
    for entry in every.values():
        if entry.content is not None:
            links.setdefault(entry.content.inode, []).append(entry.name)
    return {
        name: (
            replace(entry, content=None, mtime=0),
            entry.content and _content(entry.content),
            entry.content and sorted(links[entry.content.inode]),
        )
        for name, entry in every.items()
    }


def different(found: Iterable[Entry], expected: Iterable[Entry]) -> list[str]:
    """The names that differ, sorted; those that only one side has among them. The top of the tree is not looked at."""
    ours, theirs = facts(found), facts(expected)
    return sorted(name for name in ours.keys() | theirs.keys() if name and ours.get(name) != theirs.get(name))


def as_expected(found: Sequence[str], expected: Sequence[str]) -> list[str]:
    """The found lines, each shortened as the expected one is."""
    shown = list(found)
    for number, line in enumerate(expected[: len(found)]):
        if line.endswith("…") and shown[number].startswith(line[:-1]):
            shown[number] = line
    return shown


def as_text(said: str, names: Mapping[Path, str]) -> list[str]:
    """Printed lines with the paths of this machine replaced."""
    for path, name in names.items():
        said = said.replace(str(path), name)
    return [line.rstrip() for line in said.splitlines()]
