# SPDX-License-Identifier: Apache-2.0
"""The shared cache for users of doit: the next machine copies what one machine made; a bad registry delays no build."""

import contextlib
import glob
import hashlib
import os
import re
import resource
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.conftest import GOALS, Built
from tests.support import registry_server
from tests.support.copies import copy_built, leavings, one_line
from tests.support.hostile_registry import SLOW_BODY, SLOW_CHUNK, Handler, Hostile, Misbehaviour, says, stalls
from tests.support.registry_logins import basic, write_login
from tests.support.registry_server import PASSWORD, USER, set_read_only
from tests.support.shared_cache import (
    CANARY,
    PATIENCE,
    PUBLIC,
    TIMEOUT,
    Machine,
    blobs,
    clone,
    contents,
    keys,
    make_small_project,
    manifest,
    manifest_file,
    plain_contents,
)
from tests.support.waiting import NET, wait_until

Server = registry_server.Registry
SMALL = ("word", "image", "tree")
MORE = {f"more:{number}" for number in range(1, 7)}
WRITES = ('"POST ', '"PUT ', '"PATCH ', '"DELETE ')


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of small tasks, to be cloned."""
    target = tmp_path_factory.mktemp("small") / "project"
    make_small_project(target)
    return target


def nobody() -> str:
    """A loopback address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


# The whole pipeline.


@pytest.fixture(scope="module")
def shared(
    built: Built, registry_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, Machine]]:
    """A registry to which everything was pushed, and the sources of what was."""
    directory = tmp_path_factory.mktemp("shared")
    copy = copy_built(built, directory / "project")
    for database in copy.project.glob(".doit.db*"):
        database.unlink()
    for server in registry_server.running(registry_program, directory / "registry"):
        done = copy.doit(*GOALS, CACHE=server.reference, CACHE_MODE="push")
        assert "shared cache" not in done.stdout, done.stdout
        yield server, Machine(copy.project, directory / "home")
    shutil.rmtree(directory)


@pytest.mark.full
def test_a_fresh_clone_builds_nothing(shared: tuple[Server, Machine], built: Built, tmp_path: Path) -> None:
    server, source = shared
    fresh = clone(source.project, tmp_path)
    config, mirror = str(built.config_dir), f"http://{nobody()}/debian"
    said = fresh.doit(*GOALS, CACHE=server.reference, CONFIG_DIR=config, MIRROR=mirror)
    assert said.built == {"build_tools"} and said.warnings == []
    assert {"packages", "guest packages", "create_new_vm", "host_bundle", "verity config"} <= said.done.keys()
    assert not any(path.is_file() for path in (fresh.home / "downloads").rglob("*"))
    made = contents(fresh.build, "bin", "run")
    # No registry has an encrypted volume, and what only that needs was not asked for.
    whole = contents(built.build, "bin", "run", "control", "luks", "host-bundle-luks")
    assert made == {name: fact for name, fact in whole.items() if "appliance" not in name or name in made}
    assert len(made) > 100


@pytest.mark.full
def test_control_without_the_shared_cache_a_clone_needs_the_mirror(
    shared: tuple[Server, Machine], built: Built, tmp_path: Path
) -> None:
    fresh = clone(shared[1].project, tmp_path)
    failed = fresh.doit(
        *GOALS, check=False, CONFIG_DIR=str(built.config_dir), MIRROR=f"http://{nobody()}/debian", SNAPSHOT_MIRROR=""
    )
    assert failed.code != 0 and one_line(failed.output).startswith("✗ packages")


@pytest.mark.full
def test_a_fresh_clone_needs_less_processor_time_than_a_cold_build(
    shared: tuple[Server, Machine], built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processor time of both in one run; the cold build has its downloads already."""
    server, source = shared
    seconds = {}
    downloads = os.environ.get("CACHE_DIR", "")
    for name, cache in (("cold build", "off"), ("from the registry", server.reference)):
        fresh = clone(source.project, tmp_path / cache[:3])
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        fresh.doit(*GOALS, CACHE=cache, CACHE_DIR=downloads, CONFIG_DIR=str(built.config_dir))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds[name] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        shutil.rmtree(fresh.project)
    cold, pulled = seconds.values()
    with capsys.disabled():
        print(f"\ncold build {cold:.1f} s, from the registry {pulled:.1f} s: {cold / pulled:.1f} times as much", end="")
    assert pulled < cold


# Reading and writing.


def test_only_the_mode_push_writes_to_the_registry(own_registry: Server, small: Path, tmp_path: Path) -> None:
    reader, writer, other = (clone(small, tmp_path / name) for name in ("reader", "writer", "other"))
    assert reader.doit(*SMALL, CACHE=own_registry.reference).built == set(SMALL)
    assert not any(method in own_registry.log for method in WRITES)
    assert '"GET ' in own_registry.log and keys(own_registry) == {}
    # The control arm: the same with leave to write.
    assert writer.doit(*SMALL, CACHE=own_registry.reference, CACHE_MODE="push").built == set(SMALL)
    assert all(method in own_registry.log for method in ('"POST ', '"PUT ')) and set(keys(own_registry)) == set(SMALL)
    said = other.doit(*SMALL, CACHE=own_registry.reference)
    assert said.built == set() and said.warnings == []
    assert contents(other.build) == contents(writer.build) == contents(reader.build)


def test_a_read_only_registry_is_still_read(own_registry: Server, small: Path, tmp_path: Path) -> None:
    first, second = (clone(small, tmp_path / name) for name in ("first", "second"))
    first.doit(*SMALL, CACHE=own_registry.reference, CACHE_MODE="push")
    set_read_only(own_registry)
    said = second.doit("public", "more", *SMALL, CACHE=own_registry.reference, CACHE_MODE="push")
    assert said.built == {"public", *MORE}
    [warning] = said.warnings
    assert warning.startswith(f"nothing more is pushed to the shared cache: {own_registry.reference}: ")
    assert said.output.index(warning) < said.output.index("✓ public")


# What cannot be reached, is slow, or is no registry.


def late(it: Handler) -> None:
    time.sleep(0.75 * TIMEOUT)
    it.reply(404)


HOSTILE: dict[str, Misbehaviour] = {
    "never answers": stalls,
    "trickles": SLOW_BODY,
    "trickles in chunks": SLOW_CHUNK,
    "fails": says(500),
    "is a portal": says(200, b"<!DOCTYPE html><title>Log in</title>", Content_Type="text/html; charset=utf-8"),
    "is late each time": late,
}
WORDS = {
    "closed": "Connection refused",
    "unroutable": "",
    "never answers": "no answer in time|gave up",
    "trickles": "gave up|no answer in time",
    "trickles in chunks": "gave up|no answer in time",
    "fails": "answers requests with 500",
    "is a portal": "web page",
    "is late each time": "too slow|no answer in time",  # a busy machine makes it later
}
# Those that only a limit in time ends.
SLOW = {"unroutable", "never answers", "trickles", "trickles in chunks", "is late each time"}
# What each doit tried to connect to: Python says it before it does so.
WITNESS = """
import os, sys

def seen(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        with open(os.environ["WITNESS"], "a") as stream:
            stream.write(f"{arguments[1][0]}\\n")

sys.addaudithook(seen)
"""


@pytest.mark.full
@pytest.mark.parametrize("words", [[], ["-n", "2"]], ids=["one", "threads"])
def test_an_unusable_registry_costs_one_line(small: Path, tmp_path: Path, words: list[str]) -> None:
    """All such registries at once, as this is mostly waiting. Each task would cost a time-out if it asked by itself."""
    tasks = [*words, *SMALL, "more"]
    calm = clone(small, tmp_path / "calm")
    calm.doit(*tasks)
    (tmp_path / "witness").mkdir()
    (tmp_path / "witness" / "sitecustomize.py").write_text(WITNESS)
    tried: dict[str, int] = {}

    def build(name: str, host: str) -> None:
        machine, log = clone(small, tmp_path / name.replace(" ", "-")), tmp_path / "witness" / name
        own: Any = {"WITNESS": str(log), "PYTHONPATH": str(tmp_path / "witness")}
        own |= {PATIENCE: str(TIMEOUT)} if name in SLOW else {}
        said = machine.doit(*tasks, CACHE=f"oci://{host}/cache", CACHE_MODE="push", **own)
        tried[name] = log.read_text().split().count(host.partition(":")[0])
        assert said.built == {*SMALL, *MORE}
        assert len(said.warnings) == 1, (name, said.output)
        # Where tasks run side by side, the line has the task's name before it.
        found = rf"going on without the shared cache: oci://{re.escape(host)}/cache: .*({WORDS[name]})"
        assert re.search(found, said.warnings[0]), (name, said.warnings)
        assert contents(machine.build) == contents(calm.build), name

    with ThreadPoolExecutor(3) as pool:
        servers = {name: Hostile(misbehave={"manifest": how}) for name, how in HOSTILE.items()}
        runs = [pool.submit(build, "closed", nobody()), pool.submit(build, "unroutable", "192.0.2.1")]
        try:
            for name, server in servers.items():
                server.__enter__()
                runs.append(pool.submit(build, name, server.host))
            for run in runs:
                run.result()
        finally:
            for server in servers.values():
                server.__exit__()
    # Fewer connections and fewer requests than tasks: after the first trouble, or the second, none asks any more.
    asked = {name: len(server.seen) for name, server in servers.items()}
    assert all(0 < count < len(MORE) for count in (*asked.values(), *tried.values())), (asked, tried)


def test_a_registry_that_fails_midway(small: Path, tmp_path: Path) -> None:
    """The first failure could concern one entry only; after the second the registry is not asked again."""
    seen: list[str] = []

    def fails(it: Handler) -> None:
        seen.append(it.path)
        it.reply(404 if len(seen) <= 2 else 503)

    machine = clone(small, tmp_path)
    with Hostile(misbehave={"manifest": fails}) as server:
        said = machine.doit(*SMALL, "more", CACHE=f"oci://{server.host}/cache")
        assert said.built == {*SMALL, *MORE}
        first, second = said.warnings
        assert first.startswith(f"not available from the shared cache: oci://{server.host}/cache: ") and "503" in first
        assert second.startswith(f"going on without the shared cache: oci://{server.host}/cache: ")
        assert len(set(seen)) == 4


# Two at once, and one that dies.


def test_two_machines_at_once(own_registry: Server, small: Path, tmp_path: Path) -> None:
    both = [clone(small, tmp_path / name) for name in ("left", "right")]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(machine.doit, *SMALL, "more", CACHE=own_registry.reference, CACHE_MODE="push")
            for machine in both
        ]
    assert [run.result().warnings for run in runs] == [[], []]
    third = clone(small, tmp_path / "third")
    said = third.doit(*SMALL, "more", CACHE=own_registry.reference)
    assert said.built == set() and said.warnings == []
    assert contents(third.build) == contents(both[0].build) == contents(both[1].build)


def uploaded(root: Path) -> int:
    """The length of the longest upload that is under way; those that end meanwhile are none."""
    lengths = [0]
    for name in glob.glob(f"{root}/**/_uploads/*/data", recursive=True):  # pathlib's stops at what has gone
        with contextlib.suppress(FileNotFoundError):
            lengths.append(Path(name).stat().st_size)
    return max(lengths)


@pytest.mark.full
def test_a_killed_push_is_completed_by_the_next_run(own_registry: Server, small: Path, tmp_path: Path) -> None:
    first, second, third = (clone(small, tmp_path / name) for name in ("first", "second", "third"))
    cache = own_registry.reference
    with first.start("word", "big", CACHE=cache, CACHE_MODE="push") as process:
        wait_until(lambda: process.poll() is not None or uploaded(own_registry.root) > 1 << 20)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert keys(own_registry).keys() == {"word"}  # the one that was through
    said = second.doit("word", "big", CACHE=own_registry.reference)
    assert said.built == {"big"} and said.warnings == []
    # The next run of the one that was killed has it already, and sends it.
    assert first.doit("big", CACHE=cache, CACHE_MODE="push").warnings == []
    assert leavings(first.home / "cache") == []
    assert third.doit("word", "big", CACHE=own_registry.reference).built == set()
    assert contents(third.build) == contents(second.build) == contents(first.build)


# Secrets.


def test_secret_outputs_are_never_sent(own_registry: Server, small: Path, tmp_path: Path) -> None:
    first, second = (clone(small, tmp_path / name) for name in ("first", "second"))
    tasks = ("secret", "secret_inside", "public")
    first.doit(*tasks, CACHE=own_registry.reference, CACHE_MODE="push")
    assert (first.build / "secret").read_text() == CANARY
    stored = list(plain_contents(own_registry))
    assert not any(CANARY.encode() in data for data in stored)
    assert any(PUBLIC.encode() in data for data in stored)  # the control arm: it would be found
    assert second.doit(*tasks, CACHE=own_registry.reference).built == {"secret", "secret_inside"}


def test_a_login_is_used_and_never_shown(locked_registry: Server, small: Path, tmp_path: Path) -> None:
    first, second, stranger = (clone(small, tmp_path / name) for name in ("first", "second", "stranger"))
    tasks = ("child", *SMALL)
    said = []
    for machine, mode in ((first, "push"), (second, "pull")):
        write_login(machine.home / "docker", locked_registry.host, USER, PASSWORD)
        said.append(machine.doit(*tasks, CACHE=locked_registry.reference, CACHE_MODE=mode))
    assert said[0].built == set(tasks) and said[1].built == set()
    assert said[0].warnings == said[1].warnings == []
    # The control arm: without the login it is not to be had, and that is said once.
    refused = stranger.doit(*tasks, CACHE=locked_registry.reference)
    assert refused.built == set(tasks)
    assert len(refused.warnings) == 1 and "needs a login, but found none in" in refused.warnings[0]
    environment = (stranger.build / "child").read_text()
    assert "LC_ALL=" in environment and "DOCKER_CONFIG" not in environment and "CACHE" not in environment
    login = {PASSWORD, basic(USER, PASSWORD)}
    shown = [run.output.encode() for run in (*said, refused)]
    for machine in (first, second):
        places = (machine.build, machine.home / "cache", machine.project / ".cache")
        files = [path for place in places for path in place.rglob("*") if path.is_file()]
        files += list(machine.project.glob(".doit.db*"))
        assert len(files) > 5
        shown += [path.read_bytes() for path in files]
    shown += plain_contents(locked_registry)
    assert not any(word.encode() in data for word in login for data in shown)


# Others' tools.


def test_oras_can_pull_an_artefact(own_registry: Server, small: Path, tmp_path: Path) -> None:
    import oras.client

    machine = clone(small, tmp_path / "machine")
    machine.doit(*SMALL, CACHE=own_registry.reference, CACHE_MODE="push")
    for name, made in (("image", machine.build / "image"), ("tree", machine.build / "tree" / "large")):
        tag = keys(own_registry)[name]
        taken = oras.client.OrasClient(insecure=True).pull(
            f"{own_registry.host}/cache:{tag}", outdir=str(tmp_path / name)
        )
        layers = manifest(own_registry, tag)["layers"]
        assert [f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}" for path in taken] == [
            layer["digest"] for layer in layers
        ]
        decoder = zstandard.ZstdDecompressor()
        assert made.read_bytes() in [decoder.decompress(Path(path).read_bytes()) for path in taken]
        assert {layer["annotations"]["org.opencontainers.image.title"] for layer in layers} == {
            Path(path).name for path in taken
        }


def test_garbage_collection_removes_what_no_tag_names(own_registry: Server, small: Path, tmp_path: Path) -> None:
    import requests

    first, second = (clone(small, tmp_path / name) for name in ("first", "second"))
    first.doit(*SMALL, "public", CACHE=own_registry.reference, CACHE_MODE="push")
    before, tags = blobs(own_registry), keys(own_registry)
    own_registry.collect_garbage()
    assert blobs(own_registry) == before  # the control arm: all of it is held by a tag
    held = manifest(own_registry, tags["image"])
    digest = f"sha256:{manifest_file(own_registry, tags['image']).parent.name}"
    url = f"http://{own_registry.host}/v2/cache/manifests/{digest}"
    assert requests.delete(url, timeout=NET).status_code == 202
    own_registry.collect_garbage()
    assert before - blobs(own_registry) == {digest, held["config"]["digest"], *(it["digest"] for it in held["layers"])}
    said = second.doit(*SMALL, "public", CACHE=own_registry.reference)
    assert said.built == {"image"} and said.warnings == []
    assert contents(second.build) == contents(first.build)
