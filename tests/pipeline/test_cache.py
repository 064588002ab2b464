# SPDX-License-Identifier: Apache-2.0
"""The artefact cache for its user: status, pruning, damage, CACHE=off, another directory, and a fresh checkout."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.system.files import sha256_file
from tests.conftest import GOALS, Built
from tests.support.copies import copy_built, leavings, made, one_line, ran, restored
from tests.unit.system.test_locks import held_elsewhere

INIT, EMULATED, BASE = (f"build/layers/{name}.cpio.zst" for name in ("init", "emulated", "base"))
LARGE = ("_base_layer", "_init_layer")  # together more than a MiB


@pytest.fixture(scope="module")
def copy(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    directory = tmp_path_factory.mktemp("cache")
    copied = copy_built(built, directory / "project")
    copied.doit(*GOALS)
    yield copied
    shutil.rmtree(directory)


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A cache of its own, for two layers."""
    return str(tmp_path / "small")


def build(copy: Built, *tasks: str, cache: str, **variables: str) -> str:
    """Make the two layers' outputs anew, whatever the tests before left."""
    for path in (INIT, EMULATED, BASE):
        (copy.project / path).unlink(missing_ok=True)
    words = tasks or ("_emulated_layer", "_init_layer")
    return copy.doit(*words, check=True, SEVSNP_CACHE=cache, **variables).stdout


def digests(directory: Path, *without: str) -> dict[str, tuple[int, str]]:
    return {
        path.relative_to(directory).as_posix(): (path.stat().st_mode, sha256_file(path))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.relative_to(directory).parts[0] not in ("log", *without)
    }


def blobs(cache: str) -> list[Path]:
    """The cache's blobs, the smallest first."""
    return sorted(Path(cache, "blobs").glob("*/*"), key=lambda path: path.stat().st_size)


def test_a_fresh_checkout_builds_nothing_that_the_cache_has(built: Built, copy: Built, tmp_path: Path) -> None:
    def without_builds(directory: str, names: list[str]) -> list[str]:
        here = Path(directory) == built.project
        return [name for name in names if here and name in ("build", ".doit.db", ".cache")]

    shutil.copytree(built.project, tmp_path / "fresh", ignore=without_builds)
    fresh = Built(tmp_path / "fresh", built.config_dir)
    out = fresh.doit(*GOALS).stdout
    assert made(out) == {"build_tools"}  # they name the directory
    assert len(restored(out)) > 15
    assert ran(out) == made(out) | restored(out)
    # No cache has an encrypted volume, and what only that needs was not asked for.
    whole, apart = digests(copy.build, "bin", "run", "luks", "host-bundle-luks"), digests(fresh.build, "bin", "run")
    assert apart.items() <= whole.items()
    assert {name for name in whole.keys() - apart.keys() if "appliance" not in name} == set()
    assert leavings(fresh.project) == []
    assert ran(fresh.doit(*GOALS).stdout) == set()
    # Holes come back as holes: an image costs no more than it did.
    image = Path("verity/verity.img")
    assert (fresh.build / image).stat().st_blocks <= (built.build / image).stat().st_blocks * 1.1
    shutil.rmtree(fresh.project)


@pytest.mark.full
def test_a_cache_in_another_directory_begins_empty(copy: Built, small: str) -> None:
    assert made(build(copy, cache=small)) == {"init layer", "emulated layer"}
    assert made(build(copy, cache=small)) == set()
    assert len(list(Path(small, "entries").iterdir())) == len(blobs(small)) == 2


@pytest.mark.full
def test_a_cache_that_is_switched_off_is_neither_read_nor_written(copy: Built, small: str) -> None:
    assert made(build(copy, cache=small, CACHE="off")) == {"init layer", "emulated layer"}
    assert not Path(small, "entries").exists()
    build(copy, cache=small)
    before = digests(Path(small, "entries"))
    assert made(build(copy, cache=small, CACHE="off")) == {"init layer", "emulated layer"}
    assert digests(Path(small, "entries")) == before
    assert restored(build(copy, cache=small)) == {"init layer", "emulated layer"}, "the control"
    for task in ("cache_status", "cache_prune", "cache_verify"):
        refused = copy.doit(task, check=False, CACHE="off", SEVSNP_CACHE=small)
        assert refused.returncode != 0
        assert "CACHE=off: found no artefact cache" in one_line(refused.stdout)


def test_status(copy: Built, small: str) -> None:
    build(copy, cache=small)
    said = copy.doit("cache_status", "CACHE_SIZE=3G", SEVSNP_CACHE=small).stdout
    assert small in said
    assert "2 entries, 2 blobs" in said
    assert "of 3,072 MiB" in said
    assert "shared     no " in said
    said = copy.doit("cache_status", "CACHE=oci://127.0.0.1:1/x", "CACHE_MODE=push", SEVSNP_CACHE=small).stdout
    assert "oci://127.0.0.1:1/x (read and write)" in said


@pytest.mark.full
def test_prune_removes_the_entries_used_longest_ago_above_the_limit(copy: Built, small: str) -> None:
    build(copy, "_base_layer", cache=small)
    build(copy, "_init_layer", cache=small)
    assert sum(path.stat().st_size for path in blobs(small)) > 1 << 20
    assert "removed 0 entries" in copy.doit("cache_prune", SEVSNP_CACHE=small).stdout, "the control"
    said = copy.doit("cache_prune", "CACHE_SIZE=1M", SEVSNP_CACHE=small).stdout
    assert "removed 1 entries, 1 blobs" in said
    assert "kept    1 entries, 1 blobs" in said
    out = build(copy, *LARGE, cache=small)
    assert (restored(out), made(out)) == ({"init layer"}, {"base layer"})


@pytest.mark.full
def test_prune_fails_at_once_while_another_run_uses_the_cache(copy: Built, small: str) -> None:
    build(copy, cache=small)
    with held_elsewhere(Path(small, "locks", "all"), "shared"):
        refused = copy.doit("cache_prune", "CACHE_SIZE=1M", check=False, SEVSNP_CACHE=small)
    assert refused.returncode != 0
    assert "in use by another run" in one_line(refused.stdout)
    assert len(blobs(small)) == 2


@pytest.mark.full
def test_a_build_keeps_to_the_limit(copy: Built, small: str) -> None:
    build(copy, *LARGE, cache=small, CACHE_SIZE="1M")
    assert sum(path.stat().st_blocks * 512 for path in blobs(small)) <= 1 << 20


@pytest.mark.parametrize("said_before", [True, pytest.param(False, marks=pytest.mark.full)])
def test_a_damaged_blob_is_reported_once_and_made_again(copy: Built, small: str, said_before: bool) -> None:
    build(copy, cache=small)
    good = digests(copy.build / "layers")
    whole = copy.doit("cache_verify", SEVSNP_CACHE=small)
    assert "2 entries and 2 blobs" in whole.stdout, "the control"
    blob = blobs(small)[0]
    status = blob.stat()
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns))
    if said_before:
        found = copy.doit("cache_verify", check=False, SEVSNP_CACHE=small)
        assert found.returncode != 0
        assert blob.name in one_line(found.stdout)
    out = build(copy, cache=small)
    assert len(made(out)) == len(restored(out)) == 1
    assert digests(copy.build / "layers") == good
    assert copy.doit("cache_verify", SEVSNP_CACHE=small).returncode == 0
    assert made(build(copy, cache=small)) == set()


def test_a_cache_that_others_can_write_to_is_refused(copy: Built, small: str) -> None:
    build(copy, cache=small)
    Path(small).chmod(0o777)
    (copy.project / INIT).unlink()
    refused = copy.doit("_init_layer", check=False, SEVSNP_CACHE=small)
    assert refused.returncode != 0
    assert "expected one that only you can write to" in one_line(refused.stdout)
    Path(small).chmod(0o755)
    assert restored(copy.doit("_init_layer", SEVSNP_CACHE=small).stdout) == {"init layer"}, "the control"
