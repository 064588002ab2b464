# SPDX-License-Identifier: Apache-2.0
"""A cache entry: a document that lists the blobs of an artefact's outputs, for local and shared caches.

A file is one blob. A tree is a listing, one blob for each large file, and one blob, the pack, for the content of all
small files, concatenated in the order of the listing. A blob's name is its SHA-256. Content that two artefacts have in
common (a host bundle holds the verified root's image) is therefore kept and sent once.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 1
# Smaller files go into a tree's pack: one request to a registry then fetches a thousand of them.
LARGE = 1 << 20
MODES = 0o777
_SHA256 = re.compile("[0-9a-f]{64}")


class EntryError(ValueError):
    """A document is not a valid entry. The caller adds the document's origin."""


@dataclass(frozen=True, order=True)
class Blob:
    """A sequence of bytes: its SHA-256 as 64 lower-case hex digits, and its size in bytes."""

    sha256: str
    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise EntryError(f"digest {self.sha256!r}: expected 64 lower-case hex digits")
        if type(self.size) is not int or self.size < 0:
            raise EntryError(f"size {self.size!r}: expected a number of bytes")


@dataclass(frozen=True)
class File:
    """A regular file: its content and its permissions without set-id bits."""

    blob: Blob
    mode: int

    def document(self) -> list[Any]:
        return ["f", _mode(self.mode), self.blob.sha256, self.blob.size]


@dataclass(frozen=True)
class Directory:
    mode: int

    def document(self) -> list[Any]:
        return ["d", _mode(self.mode)]


@dataclass(frozen=True)
class Link:
    """A symbolic link and its target."""

    target: str

    def document(self) -> list[Any]:
        return ["l", self.target]


Node = File | Directory | Link


@dataclass(frozen=True)
class Tree:
    """A directory: its own permissions, and everything below it by relative path in sorted order."""

    mode: int
    nodes: Mapping[str, Node]
    pack: Blob = field(compare=False)

    def document(self) -> dict[str, Any]:
        return {"mode": _mode(self.mode), "nodes": {name: node.document() for name, node in self.nodes.items()}}

    @property
    def sha256(self) -> str:
        """The tree's digest: SHA-256 over its listing, which contains the digest of every file."""
        return hashlib.sha256(canonical(self.document())).hexdigest()

    def packed(self) -> dict[str, File]:
        """The files whose content is in the pack, in the pack's order."""
        return {name: node for name, node in self.nodes.items() if isinstance(node, File) and node.blob.size < LARGE}


@dataclass(frozen=True)
class Entry:
    """The outputs of an artefact's function by name; ``key`` is the digest of its inputs."""

    key: str
    function: str
    outputs: Mapping[str, File | Tree]

    def blobs(self) -> tuple[Blob, ...]:
        """Every blob the entry needs, each once, the largest first."""
        found: set[Blob] = set()
        for made in self.outputs.values():
            if isinstance(made, File):
                found.add(made.blob)
            else:
                found.add(made.pack)
                found.update(n.blob for n in made.nodes.values() if isinstance(n, File) and n.blob.size >= LARGE)
        return tuple(sorted(found, key=lambda blob: (-blob.size, blob.sha256)))

    def to_bytes(self) -> bytes:
        """The entry as canonical JSON: the same entry is always the same bytes."""
        outputs: dict[str, Any] = {}
        for name, made in self.outputs.items():
            if isinstance(made, File):
                outputs[name] = {"file": made.document()}
            else:
                pack = {"sha256": made.pack.sha256, "size": made.pack.size}
                outputs[name] = {"tree": made.document(), "pack": pack}
        return canonical({"schema": SCHEMA, "key": self.key, "function": self.function, "outputs": outputs})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Entry":
        """Parse an untrusted document. Raises :class:`EntryError` unless it has exactly the form above."""
        try:
            document = json.loads(data)
            if document["schema"] != SCHEMA:
                raise EntryError(f"schema {document['schema']!r}: expected {SCHEMA}")
            Blob(document["key"], 0)
            if not isinstance(document["function"], str):
                raise EntryError(f"function {document['function']!r}")
            outputs = {_name(name): _output(made) for name, made in document["outputs"].items()}
            entry = cls(document["key"], document["function"], outputs)
            # Only one spelling is valid: no part of the document goes unread, and no key stands twice.
            if entry.to_bytes() != data:
                raise EntryError("not in canonical form")
        except EntryError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise EntryError(f"malformed: {type(error).__name__} {error}") from None
        return entry


def canonical(document: Any) -> bytes:
    """JSON with sorted keys and no blanks, ASCII only."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _output(document: Any) -> File | Tree:
    if "file" in document:
        made = _node(document["file"])
        if not isinstance(made, File):
            raise EntryError("an output that is neither file nor tree")
        return made
    tree = document["tree"]
    nodes: dict[str, Node] = {}
    for path in sorted(tree["nodes"]):
        # Every parent must be a directory of this tree: then no path leaves the tree, and no path goes through a link.
        parent, slash, last = path.rpartition("/")
        if last in ("", ".", "..") or "\0" in path or (slash and not isinstance(nodes.get(parent), Directory)):
            raise EntryError(f"path {path!r}")
        os.fsencode(path)  # raises ValueError for an impossible file name
        nodes[path] = _node(tree["nodes"][path])
    found = Tree(_mode(tree["mode"]), nodes, Blob(document["pack"]["sha256"], document["pack"]["size"]))
    if sum(file.blob.size for file in found.packed().values()) != found.pack.size:
        raise EntryError("the size of a pack differs from that of its files")
    return found


def _node(document: Any) -> Node:
    match document:
        case ["f", mode, sha256, size]:
            return File(Blob(sha256, size), _mode(mode))
        case ["d", mode]:
            return Directory(_mode(mode))
        case ["l", str(target)] if target and "\0" not in target:
            os.fsencode(target)
            return Link(target)
    raise EntryError(f"node {document!r}")


def _mode(mode: Any) -> int:
    if type(mode) is not int or mode & ~MODES:
        raise EntryError(f"mode {mode!r}: expected permissions from 0 to 0o777")
    return mode


def _name(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise EntryError(f"output {name!r}")
    return name
