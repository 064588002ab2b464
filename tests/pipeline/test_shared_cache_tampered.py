# SPDX-License-Identifier: Apache-2.0
"""An entry that was changed in the registry is refused, built again, and replaced by a run with write access."""

import hashlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from sevsnp.store.entries import Entry, canonical
from sevsnp.store.registry import MANIFEST_TYPE, parse_reference
from sevsnp.store.registry import Registry as Client
from tests.support import registry_server
from tests.support.shared_cache import clone, contents, keys, make_small_project, manifest, manifest_file

Server = registry_server.Registry
SMALL = ("word", "image", "tree")
# What a naive client asks for below the repository, and the words of the warning.
Tampering = Callable[[Server, Path], tuple[str, str]]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of small tasks, to be cloned."""
    target = tmp_path_factory.mktemp("small") / "project"
    make_small_project(target)
    return target


def flip(path: Path, place: int) -> str:
    """Change one byte of a stored file; its digest, as it was."""
    data = bytearray(path.read_bytes())
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    data[place] ^= 1
    path.write_bytes(data)
    return digest


def layer(server: Server, name: str, largest: bool) -> Path:
    layers = manifest(server, keys(server)[name])["layers"]
    chosen = sorted(layers, key=lambda it: int(it["size"]))[-1 if largest else 0]
    return server.blob(chosen["digest"])


def large_blob(server: Server, scratch: Path) -> tuple[str, str]:
    digest = flip(layer(server, "image", largest=True), 1 << 20)
    return f"blobs/{digest}", r"(blob|layer) [\w:]+: "


def large_blob_of_a_tree(server: Server, scratch: Path) -> tuple[str, str]:
    digest = flip(layer(server, "tree", largest=True), -1)
    return f"blobs/{digest}", r"(blob|layer) [\w:]+: "


def pack(server: Server, scratch: Path) -> tuple[str, str]:
    digest = flip(layer(server, "tree", largest=False), -2)
    return f"blobs/{digest}", r"(blob|layer) [\w:]+: "


def document(server: Server, scratch: Path) -> tuple[str, str]:
    path = server.blob(manifest(server, keys(server)["image"])["config"]["digest"])
    digest = flip(path, path.read_bytes().index(b"standins:image") + 9)
    return f"blobs/{digest}", "entry [0-9a-f]{64}: its document"


def its_manifest(server: Server, scratch: Path) -> tuple[str, str]:
    key = keys(server)["image"]
    path = manifest_file(server, key)
    flip(path, path.read_bytes().index(b"cache entry"))
    return f"manifests/{key}", f"manifest {key}: "


def under_another_key(server: Server, scratch: Path) -> tuple[str, str]:
    """A whole, true entry, tagged as another: an old and vulnerable one, say."""
    tags = keys(server)
    put(server, tags["image"], manifest_file(server, tags["word"]).read_bytes())
    return f"manifests/{tags['image']}", f"entry {tags['image']}: belongs to key {tags['word']}"


def some_other_artefact(server: Server, scratch: Path) -> tuple[str, str]:
    key = keys(server)["image"]
    other = {**manifest(server, key), "artifactType": "application/vnd.example"}
    put(server, key, json.dumps(other).encode())
    return f"manifests/{key}", f"manifest {key}: not the manifest of a cache entry"


def out_of_the_tree(server: Server, scratch: Path) -> tuple[str, str]:
    """An entry whose tree has a file beside the output."""
    return forged(
        server, scratch, "tree", lambda text: text.replace('"small/word"', '"../escaped"')
    ), "path '../escaped'"


def other_outputs(server: Server, scratch: Path) -> tuple[str, str]:
    return forged(server, scratch, "image", lambda text: text.replace('"output":', '"another":')), ""


def forged(server: Server, scratch: Path, name: str, change: Callable[[str], str]) -> str:
    """Store an entry with another document, as somebody who may write to the registry can."""
    key, client = keys(server)[name], Client(parse_reference(server.reference))
    text = client.entry(key)
    assert text is not None
    blobs = []
    for blob in Entry.from_bytes(text).blobs():
        client.fetch(blob, scratch / blob.sha256)
        blobs.append((blob, scratch / blob.sha256))
    other = canonical(json.loads(change(text.decode())))
    assert other != text
    client.push(key, other, blobs)
    return f"manifests/{key}"


def put(server: Server, tag: str, data: bytes) -> None:
    request = urllib.request.Request(
        f"http://{server.host}/v2/cache/manifests/{tag}", data, {"Content-Type": MANIFEST_TYPE}, method="PUT"
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert answer.status == 201


def naive(server: Server, path: str) -> bytes:
    """What a client gets that believes the registry."""
    request = urllib.request.Request(f"http://{server.host}/v2/cache/{path}", headers={"Accept": MANIFEST_TYPE})
    with urllib.request.urlopen(request, timeout=120) as answer:
        data: bytes = answer.read()
    return data


TAMPERINGS: tuple[Tampering, ...] = (out_of_the_tree,)
MORE_TAMPERINGS: tuple[Tampering, ...] = (
    document, under_another_key, large_blob, large_blob_of_a_tree, pack, its_manifest, some_other_artefact,
    other_outputs,
)  # fmt: skip


@pytest.mark.parametrize(
    "tamper",
    [*TAMPERINGS, *(pytest.param(each, marks=pytest.mark.full) for each in MORE_TAMPERINGS)],
    ids=lambda tamper: tamper.__name__.replace("_", " "),
)
def test_a_tampered_entry_is_refused_and_replaced(
    own_registry: Server, small: Path, tmp_path: Path, tamper: Tampering
) -> None:
    first, second, third = (clone(small, tmp_path / name) for name in ("first", "second", "third"))
    first.doit(*SMALL, CACHE=own_registry.reference, CACHE_MODE="push")
    stored, genuine = keys(own_registry), {}
    for key in stored.values():
        genuine[f"manifests/{key}"] = naive(own_registry, f"manifests/{key}")
    (tmp_path / "scratch").mkdir()
    path, words = tamper(own_registry, tmp_path / "scratch")
    # The control arm: it is there to be taken.
    taken = naive(own_registry, path)
    assert taken != genuine.get(path)
    if path.startswith("blobs/"):
        assert f"blobs/sha256:{hashlib.sha256(taken).hexdigest()}" != path

    said = second.doit(*SMALL, CACHE=own_registry.reference, CACHE_MODE="push")
    name = "tree" if tamper in (large_blob_of_a_tree, pack, out_of_the_tree) else "image"
    assert said.built == {name}
    if words:
        [warning] = said.warnings
        assert re.match(rf"refused what the shared cache has: .*{words}", warning), warning
    assert contents(second.build) == contents(first.build)
    assert not (second.build / "escaped").exists() and not list((second.home / "cache").rglob("*escaped*"))
    # Whoever comes next takes it again.
    said = third.doit(*SMALL, CACHE=own_registry.reference)
    assert said.built == set() and said.warnings == []
    assert contents(third.build) == contents(first.build)


@pytest.mark.full
def test_without_write_access_nothing_is_replaced(own_registry: Server, small: Path, tmp_path: Path) -> None:
    first, *others = (clone(small, tmp_path / name) for name in ("first", "second", "third"))
    first.doit(*SMALL, CACHE=own_registry.reference, CACHE_MODE="push")
    large_blob(own_registry, tmp_path)
    before = contents(own_registry.root)
    for machine in others:
        said = machine.doit(*SMALL, CACHE=own_registry.reference)
        assert said.built == {"image"} and len(said.warnings) == 1
        assert contents(machine.build) == contents(first.build)
        # Once: what was built instead is in this machine's own cache.
        (machine.build / "image").unlink()
        again = machine.doit(*SMALL, CACHE=own_registry.reference)
        assert again.done == {"image": "from the cache"} and again.warnings == []
    assert contents(own_registry.root) == before


def torn_manifest(server: Server) -> tuple[str, str]:
    """A full disk or a power cut did it: the registry cannot read it any more."""
    key = keys(server)["image"]
    manifest_file(server, key).write_bytes(b"")
    return f"manifests/{key}", "not available from the shared cache: .*answers requests with 500"


def lost_layer(server: Server) -> tuple[str, str]:
    """Garbage collection beside a push does that."""
    path = layer(server, "image", largest=True)
    path.unlink()
    return f"blobs/sha256:{path.parent.name}", "not available from the shared cache: .*answers requests with 404"


def lost_document(server: Server) -> tuple[str, str]:
    digest = manifest(server, keys(server)["image"])["config"]["digest"]
    server.blob(digest).unlink()
    return f"blobs/{digest}", ""


@pytest.mark.parametrize(
    "damage",
    [torn_manifest, *(pytest.param(each, marks=pytest.mark.full) for each in (lost_layer, lost_document))],
    ids=lambda it: it.__name__,
)
def test_a_file_that_the_registry_lost_costs_one_artefact(
    own_registry: Server, small: Path, tmp_path: Path, damage: Callable[[Server], tuple[str, str]]
) -> None:
    first, second, third = (clone(small, tmp_path / name) for name in ("first", "second", "third"))
    first.doit(*SMALL, CACHE=own_registry.reference, CACHE_MODE="push")
    path, words = damage(own_registry)
    with pytest.raises(urllib.error.HTTPError):
        naive(own_registry, path)
    said = second.doit(*SMALL, CACHE=own_registry.reference, CACHE_MODE="push")
    assert said.built == {"image"}
    assert len(said.warnings) == bool(words) and all(re.match(words, line) for line in said.warnings), said.warnings
    said = third.doit(*SMALL, CACHE=own_registry.reference)
    assert said.built == set() and said.warnings == []
    assert contents(third.build) == contents(second.build) == contents(first.build)
