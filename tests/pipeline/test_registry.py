# SPDX-License-Identifier: Apache-2.0
"""The shared cache with a real registry: pushed entries can be fetched, and tampered ones are refused."""

import concurrent.futures
import hashlib
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sevsnp.store import oci_transport
from sevsnp.store import registry as shared
from sevsnp.store.entries import Blob, Entry, File
from sevsnp.store.registry import Registry, Tampered, Unavailable, parse_reference
from tests.support import registry_server
from tests.support.registry_server import no_login, set_read_only
from tests.support.waiting import NET, Clock, wait_until

MIB = 1 << 20
LARGE = 300 * MIB
# What a transfer may take beyond what the process had before it, in KiB. From /proc: what getrusage says begins with
# the peak of the process that started this one.
MEMORY_KIB = 64 << 10
Server = registry_server.Registry


__all__ = ["no_login"]
pytestmark = pytest.mark.usefixtures("no_login")


def client(server: Server) -> Registry:
    return Registry(parse_reference(server.reference), timeout=NET)


def stored(folder: Path, name: str, content: bytes) -> tuple[Blob, Path]:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return Blob(hashlib.sha256(content).hexdigest(), len(content)), folder / name


def entry_of(*blobs: Blob, salt: str = "") -> Entry:
    """An entry as a task would have it, under a key of its own."""
    outputs = {f"output{number}": File(blob, 0o644) for number, blob in enumerate(blobs)}
    key = hashlib.sha256(f"{salt}{blobs}".encode()).hexdigest()
    return Entry(key, "sevsnp.test:make", outputs)


CONTENTS = {
    "text": b"a line\n" * 1000,
    "empty": b"",
    "one": b"\0",
    "random": random.Random(1).randbytes(3 * MIB + 17),
    "holes": b"start" + bytes(5 * MIB) + b"middle" + bytes(4096) + b"end",
    "zeros": bytes(2 * MIB + 5),
}


def test_a_pushed_entry_can_be_fetched(registry: Server, tmp_path: Path) -> None:
    files = [stored(tmp_path / "made", name, content) for name, content in CONTENTS.items()]
    entry = entry_of(*(blob for blob, _ in files))
    assert client(registry).entry(entry.key) is None
    client(registry).push(entry.key, entry.to_bytes(), files)
    other = client(registry)
    document = other.entry(entry.key)
    assert document is not None
    assert Entry.from_bytes(document) == entry
    for blob, path in files:
        other.fetch(blob, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == path.read_bytes(), path.name
    # Nothing is left beside the sources.
    assert {path.name for path in (tmp_path / "made").iterdir()} == set(CONTENTS)


def test_zeros_are_fetched_as_holes(registry: Server, tmp_path: Path) -> None:
    content = b"first" + bytes(40 * MIB) + random.Random(2).randbytes(8192) + bytes(20 * MIB + 1)
    blob, path = stored(tmp_path, "image", content)
    there = client(registry)
    there.push(entry_of(blob).key, entry_of(blob).to_bytes(), [(blob, path)])
    there.entry(entry_of(blob).key)
    there.fetch(blob, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    if path.stat().st_blocks * 512 >= len(content):  # the file system counts what a plain file takes
        assert (tmp_path / "back").stat().st_blocks * 512 < MIB


def test_a_blob_that_the_registry_has_is_not_sent_again(own_registry: Server, tmp_path: Path) -> None:
    both, own = stored(tmp_path, "both", b"s" * MIB), stored(tmp_path, "own", b"o" * MIB)
    first, second = entry_of(both[0]), entry_of(both[0], own[0])
    client(own_registry).push(first.key, first.to_bytes(), [both])
    assert own_registry.log.count('"PUT /v2/cache/blobs/uploads/') == 2  # a layer and a document
    client(own_registry).push(second.key, second.to_bytes(), [both, own])
    assert own_registry.log.count('"PUT /v2/cache/blobs/uploads/') == 4
    client(own_registry).push(second.key, second.to_bytes(), [both, own])
    assert own_registry.log.count('"PUT /v2/cache/blobs/uploads/') == 4
    assert own_registry.log.count('"PUT /v2/cache/manifests/') == 2


def test_every_machine_pushes_the_same_manifest(own_registry: Server, tmp_path: Path) -> None:
    digests = []
    for number, repository in enumerate(("one", "other/place")):
        if number:
            time.sleep(1.1)  # times in files, where any got in, are whole seconds
        blob, path = stored(tmp_path, f"file-{repository[:3]}", CONTENTS["random"])
        there = Registry(parse_reference(f"oci://{own_registry.host}/{repository}"), timeout=NET)
        there.push(entry_of(blob).key, entry_of(blob).to_bytes(), [(blob, path)])
        tag = own_registry.root / f"docker/registry/v2/repositories/{repository}/_manifests/tags/{entry_of(blob).key}"
        digests.append((tag / "current/link").read_text())
    assert digests[0] == digests[1]


def test_other_clients_and_garbage_collection_work_with_the_entries(own_registry: Server, tmp_path: Path) -> None:
    import oras.client
    import zstandard

    kept, dropped = stored(tmp_path, "kept", CONTENTS["random"]), stored(tmp_path, "dropped", b"d" * MIB)
    for blob, path in (kept, dropped):
        client(own_registry).push(entry_of(blob).key, entry_of(blob).to_bytes(), [(blob, path)])
    plain = oras.client.OrasClient(insecure=True)
    target = f"{own_registry.host}/cache:{entry_of(kept[0]).key}"
    [pulled] = plain.pull(target, outdir=str(tmp_path / "pulled"))
    assert Path(pulled).name == f"{kept[0].sha256}.zst"
    assert zstandard.ZstdDecompressor().decompressobj().decompress(Path(pulled).read_bytes()) == CONTENTS["random"]
    assert plain.get_manifest(target)["artifactType"] == shared.ENTRY_TYPE
    assert plain.delete_tag(f"{own_registry.host}/cache", entry_of(dropped[0]).key)
    own_registry.collect_garbage()
    there = client(own_registry)
    assert there.entry(entry_of(dropped[0]).key) is None
    assert there.entry(entry_of(kept[0]).key) is not None
    there.fetch(kept[0], tmp_path / "back")
    there.push(entry_of(dropped[0]).key, entry_of(dropped[0]).to_bytes(), [dropped])
    assert there.entry(entry_of(dropped[0]).key) is not None


def tampered_layer(server: Server, key: str) -> Path:
    """The file in which the registry keeps the first layer of an entry."""
    link = server.root / f"docker/registry/v2/repositories/cache/_manifests/tags/{key}/current/link"
    _, layers = shared.parse_manifest(server.blob(link.read_text()).read_bytes())
    return server.blob(next(iter(layers.values())).digest)


def test_a_tampered_blob_is_refused_and_replaced(own_registry: Server, tmp_path: Path) -> None:
    import oras.client

    blob, path = stored(tmp_path, "image", CONTENTS["random"])
    entry = entry_of(blob)
    client(own_registry).push(entry.key, entry.to_bytes(), [(blob, path)])
    layer = tampered_layer(own_registry, entry.key)
    genuine = layer.read_bytes()
    layer.write_bytes(genuine[:-1000] + bytes([genuine[-1000] ^ 1]) + genuine[-999:])
    # The control arm: a client that trusts the registry takes it.
    [taken] = oras.client.OrasClient(insecure=True).pull(
        f"{own_registry.host}/cache:{entry.key}", outdir=str(tmp_path / "pulled")
    )
    assert Path(taken).read_bytes() == layer.read_bytes() != genuine
    there = client(own_registry)
    there.entry(entry.key)
    with pytest.raises(Tampered, match=rf"{blob.sha256}|{layer.parent.name}"):
        there.fetch(blob, tmp_path / "back")
    assert not (tmp_path / "back").exists()
    # What was built instead goes there as another layer, since the registry keeps the one it has.
    there.push(entry.key, entry.to_bytes(), [(blob, path)])
    after = client(own_registry)
    after.entry(entry.key)
    after.fetch(blob, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == CONTENTS["random"]


def test_a_tampered_document_is_refused(own_registry: Server, tmp_path: Path) -> None:
    blob, path = stored(tmp_path, "file", b"content")
    entry = entry_of(blob)
    client(own_registry).push(entry.key, entry.to_bytes(), [(blob, path)])
    kept = own_registry.blob(hashlib.sha256(entry.to_bytes()).hexdigest())
    assert kept.read_bytes() == entry.to_bytes()
    kept.write_bytes(entry.to_bytes().replace(b"make", b"fake"))
    with pytest.raises(Tampered, match="document"):
        client(own_registry).entry(entry.key)


def test_a_source_that_changed_is_not_pushed(own_registry: Server, tmp_path: Path) -> None:
    for change in (b"", b"other content", b"content and more"):
        blob, path = stored(tmp_path, "file", b"the content")
        path.write_bytes(change)
        with pytest.raises(Tampered, match="any more"):
            client(own_registry).push(entry_of(blob).key, b"{}", [(blob, path)])
        assert client(own_registry).entry(entry_of(blob).key) is None


def test_a_blob_of_no_entry_is_not_fetched(registry: Server, tmp_path: Path) -> None:
    with pytest.raises(Tampered, match="not a layer of an entry"):
        client(registry).fetch(Blob("0" * 64, 1), tmp_path / "back")


def test_a_full_disk_is_reported_as_an_error_of_the_disk(registry: Server, tmp_path: Path) -> None:
    blob, path = stored(tmp_path, "file", random.Random(4).randbytes(4 * MIB))
    there = client(registry)
    there.push(entry_of(blob).key, b"{}", [(blob, path)])
    there.entry(entry_of(blob).key)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            there.fetch(blob, tmp_path / "back")
        with pytest.raises(OSError, match="too large"):
            client(registry).push("1" * 64, b"{}", [(blob, path)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    there.fetch(blob, tmp_path / "back")


def test_a_read_only_registry(own_registry: Server, tmp_path: Path) -> None:
    blob, path = stored(tmp_path, "file", b"content")
    other = stored(tmp_path, "other", b"other")
    entry = entry_of(blob)
    client(own_registry).push(entry.key, entry.to_bytes(), [(blob, path)])
    set_read_only(own_registry)
    there = client(own_registry)
    assert there.entry(entry.key) == entry.to_bytes()
    there.fetch(blob, tmp_path / "back")
    there.push(entry.key, entry.to_bytes(), [(blob, path)])  # it is there already
    with pytest.raises(Unavailable, match="uploads with 405"):
        there.push(entry_of(other[0]).key, b"{}", [other])
    set_read_only(own_registry, False)
    there.push(entry_of(other[0]).key, b"{}", [other])  # over a connection that the restart has closed


def test_an_unreachable_registry_is_an_error_after_one_more_try(
    own_registry: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = client(own_registry)
    assert there.entry("0" * 64) is None
    own_registry.stop()
    clock = Clock()
    monkeypatch.setattr(oci_transport, "time", clock)
    calls: list[Callable[[str], object]] = [there.entry, lambda key: there.push(key, b"{}", [])]
    for call in calls:
        with pytest.raises(Unavailable, match=rf"^{own_registry.reference}: Connection refused$"):
            call("0" * 64)
    # Each tried it once more after a moment, and waited for nothing else.
    assert clock.slept == [0.5, 0.5]


def test_several_threads_at_once(own_registry: Server, tmp_path: Path) -> None:
    files = [stored(tmp_path, f"file{number}", random.Random(number).randbytes(MIB)) for number in range(4)]
    entry = entry_of(*(blob for blob, _ in files))
    there = client(own_registry)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(there.push, entry.key, entry.to_bytes(), files) for _ in range(4)]:
            done.result()
        assert there.entry(entry.key) == entry.to_bytes()
        list(pool.map(lambda file: there.fetch(file[0], tmp_path / f"{file[1].name}.back"), files))
    assert all((tmp_path / f"{path.name}.back").read_bytes() == path.read_bytes() for _, path in files)


SCRIPT = """
import hashlib, re, sys
from pathlib import Path
import sevsnp.store.oci_transport, zstandard
from sevsnp.store.registry import *
from sevsnp.store.entries import Blob
action, reference, key, sha256, size, path = sys.argv[1:]
def peak(): return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
blob, there = Blob(sha256, int(size)), Registry(parse_reference(reference), timeout=120)
if action == "oras":
    import oras.client
    before = peak()
    target = reference.removeprefix("oci://") + ":control"
    oras.client.OrasClient(insecure=True).push(target, files=[path], disable_path_validation=True, quiet=True)
elif action == "push":
    before = peak()
    there.push(key, b"{}", [(blob, Path(path))])
else:
    before = peak()
    there.entry(key)
    there.fetch(blob, Path(path))
print(peak() - before)
"""


def transfer(server: Server, action: str, blob: Blob, path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, action, server.reference, blob.sha256, blob.sha256, str(blob.size), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Blob, Path]:
    """300 MB that do not compress."""
    path, digest, source = tmp_path_factory.mktemp("large") / "large", hashlib.sha256(), random.Random(3)
    with path.open("wb") as stream:
        for _ in range(LARGE // MIB):
            piece = source.randbytes(MIB)
            digest.update(piece)
            stream.write(piece)
    return Blob(digest.hexdigest(), LARGE), path


@pytest.mark.full
def test_memory_stays_small(own_registry: Server, large: tuple[Blob, Path], tmp_path: Path) -> None:
    blob, path = large
    taken = {}
    for action, file in (("push", path), ("fetch", tmp_path / "back"), ("oras", path)):
        with transfer(own_registry, action, blob, file) as process:
            out, _ = process.communicate(timeout=4 * NET)
            assert process.returncode == 0
            taken[action] = int(out)
    assert (tmp_path / "back").stat().st_size == LARGE
    # The control arm shows that the ruler measures.
    assert taken["oras"] > 200 << 10
    assert max(taken["push"], taken["fetch"]) < MEMORY_KIB, taken


def test_a_killed_push_leaves_no_entry_and_no_file(own_registry: Server, large: tuple[Blob, Path]) -> None:
    blob, path = large
    with transfer(own_registry, "push", blob, path) as process:
        parts = own_registry.root
        wait_until(
            lambda: process.poll() is not None or any(p.stat().st_size for p in parts.glob("**/_uploads/*/data"))
        )
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert client(own_registry).entry(blob.sha256) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    client(own_registry).push(blob.sha256, b"{}", [large])
    assert client(own_registry).entry(blob.sha256) == b"{}"
