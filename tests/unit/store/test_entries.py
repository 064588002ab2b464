# SPDX-License-Identifier: Apache-2.0
"""The documents of cache entries: one encoding for each, and no path out of the directory where they are restored."""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sevsnp.store.entries import LARGE, Blob, Directory, Entry, EntryError, File, Link, Node, Tree, canonical
from tests.support.texts import unicode_without

KEY = "0" * 63 + "1"
DIGEST = "ab" * 32


def document(**outputs: Any) -> dict[str, Any]:
    outputs = outputs or {"output": {"file": ["f", 0o644, DIGEST, 3]}}
    return {"schema": 1, "key": KEY, "function": "sevsnp.a:b", "outputs": outputs}


def tree(*paths: str, node: Any = None) -> dict[str, Any]:
    """A tree with empty directories, and ``node`` as the last."""
    nodes: dict[str, Any] = {path: ["d", 0o755] for path in paths}
    if node is not None:
        nodes[paths[-1]] = node
    pack = {"sha256": DIGEST, "size": node[3] if node and node[0] == "f" else 0}
    return {"tree": {"mode": 0o755, "nodes": nodes}, "pack": pack}


def parse(found: Any) -> Entry:
    return Entry.from_bytes(canonical(found))


GOOD = {
    "a file": document(),
    "no path at all": document(output=tree()),
    "paths below each other": document(output=tree("a", "a/b", "a/b/c", node=["l", "/etc/../x"])),
    "names with dots": document(output=tree("...", "a..", ".a", "a b", "é")),
    "two outputs": document(one=tree("a"), two={"file": ["f", 0, DIGEST, 0]}),
}
BAD_PATHS = (
    "/x", "/", "", ".", "..", "../x", "./x", "x/", "x//y", "x/../y", "x/./y", "nonsuch/y", "x\0y", "\ud800",
)  # fmt: skip
FILE = ["f", 0o644, DIGEST, 3]
BAD: dict[str, Any] = {
    **{f"path {path!r}": document(output=tree("x", path)) for path in BAD_PATHS},
    "a path through a link": document(output=tree("l", "l/x") | {"tree": {"mode": 0o755, "nodes": {
        "l": ["l", "/"], "l/x": ["d", 0o755]}}}),
    "a path through a file": document(output={"tree": {"mode": 0o755, "nodes": {
        "l": FILE, "l/x": ["d", 0o755]}}, "pack": {"sha256": DIGEST, "size": 3}}),
    "set-user-id": document(output={"file": ["f", 0o4755, DIGEST, 3]}),
    "set-group-id in a tree": document(output=tree("x", node=["f", 0o2755, DIGEST, 3])),
    "sticky directory": document(output=tree("x", node=["d", 0o1777])),
    "set-id on the tree": document(output={**tree(), "tree": {"mode": 0o4755, "nodes": {}}}),
    "negative mode": document(output={"file": ["f", -1, DIGEST, 3]}),
    "mode as text": document(output={"file": ["f", "644", DIGEST, 3]}),
    "mode true": document(output={"file": ["f", True, DIGEST, 3]}),
    "negative size": document(output={"file": ["f", 0o644, DIGEST, -1]}),
    "size with a point": document(output={"file": ["f", 0o644, DIGEST, 3.0]}),
    "short digest": document(output={"file": ["f", 0o644, DIGEST[1:], 3]}),
    "digest in capitals": document(output={"file": ["f", 0o644, DIGEST.upper(), 3]}),
    "digest with a path": document(output={"file": ["f", 0o644, "../" + DIGEST[3:], 3]}),
    "a device": document(output=tree("x", node=["b", 0o644, 8, 1])),
    "empty link": document(output=tree("x", node=["l", ""])),
    "link with a NUL": document(output=tree("x", node=["l", "a\0b"])),
    "link that no file system can say": document(output=tree("x", node=["l", "\ud800"])),
    "an output that is a link": document(output={"file": ["l", "x"]}),
    "an output that is text": document(output="file"),
    "both file and tree": document(output={"file": FILE, **tree()}),
    "a pack of another size": document(output=tree("x", node=FILE) | {"pack": {"sha256": DIGEST, "size": 4}}),
    "no pack": document(output={"tree": {"mode": 0o755, "nodes": {}}}),
    "output by a path": document(**{"../x": {"file": FILE}}),
    "unknown field": {**document(), "more": 1},
    "unknown schema": {**document(), "schema": 2},
    "schema with a point": {**document(), "schema": 1.0},
    "no key": {name: value for name, value in document().items() if name != "key"},
    "key that is a path": {**document(), "key": "../../etc/passwd"},
    "function that is no text": {**document(), "function": ["x"]},
    "outputs that are a list": {**document(), "outputs": []},
    "nodes that are a list": document(output={**tree(), "tree": {"mode": 0o755, "nodes": ["x"]}}),
    "nothing": {},
    "a list": [],
    "null": None,
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_well_formed_entries_are_read(name: str) -> None:
    assert parse(GOOD[name]).to_bytes() == canonical(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_malformed_entries_are_refused(name: str) -> None:
    with pytest.raises(EntryError):
        parse(BAD[name])


def test_each_entry_has_exactly_one_encoding() -> None:
    good = canonical(document())
    assert Entry.from_bytes(good)
    doubled = good.replace(b'"schema":1', b'"schema":1,"schema":1')
    last = good.replace(b'{"file":["f",420', b'{"file":["f",511,"","",""],"file":["f",420')
    for other in (
        good + b"\n",
        b"\xef\xbb\xbf" + good,
        json.dumps(document(), indent=1).encode(),
        json.dumps(dict(reversed(document().items()))).encode(),
        good.replace(b"sevsnp.a:b", b"sevsnp\\u002ea:b"),
        doubled,
        last,
        good.decode().encode("utf-16"),
        b"",
        b"[" * 100_000,
        b"\xff",
        good[:-1],
    ):
        assert other != good
        with pytest.raises(EntryError):
            Entry.from_bytes(other)


names = st.text(unicode_without("/\0"), min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
modes = st.integers(0, 0o777)
digests = st.binary(min_size=1, max_size=4).map(lambda data: hashlib.sha256(data).hexdigest())
files = st.builds(File, st.builds(Blob, digests, st.integers(0, 3) | st.just(LARGE)), modes)
links = st.builds(Link, st.text(unicode_without("\0"), min_size=1, max_size=4))
folders = st.recursive(
    st.dictionaries(names, files | links, max_size=3),
    lambda inner: st.dictionaries(names, files | links | st.tuples(modes, inner), max_size=3),
    max_leaves=6,
)


def flat(folder: dict[str, Any], prefix: str = "") -> dict[str, Node]:
    found: dict[str, Node] = {}
    for name, node in folder.items():
        if isinstance(node, tuple):
            found[prefix + name] = Directory(node[0])
            found.update(flat(node[1], f"{prefix}{name}/"))
        else:
            found[prefix + name] = node
    return {name: found[name] for name in sorted(found)}


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    found = Tree(draw(modes), flat(draw(folders)), Blob("0" * 64, 0))
    return Tree(found.mode, found.nodes, Blob(draw(digests), sum(f.blob.size for f in found.packed().values())))


entries = st.builds(
    Entry,
    digests,
    st.sampled_from(["sevsnp.a:b", "sevsnp.a.b:make_this"]),
    st.dictionaries(st.sampled_from(["output", "image", "tree"]), files | trees(), min_size=1, max_size=3),
)


@given(entries)
def test_every_entry_comes_back_as_it_was(entry: Entry) -> None:
    data = entry.to_bytes()
    again = Entry.from_bytes(data)
    assert again == entry
    assert again.to_bytes() == data
    assert again.blobs() == entry.blobs()


@given(entries, st.data())
def test_an_entry_with_a_changed_byte_is_a_different_entry_or_refused(entry: Entry, data: st.DataObject) -> None:
    """Every change of a byte is noticed: no byte of the document is without effect."""
    good = bytearray(entry.to_bytes())
    place = data.draw(st.integers(0, len(good) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[place]))
    good[place] = value
    try:
        found = Entry.from_bytes(bytes(good))
    except EntryError:
        return
    assert found.to_bytes() == bytes(good) != entry.to_bytes()
