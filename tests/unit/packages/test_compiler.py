# SPDX-License-Identifier: Apache-2.0
"""The inputs of FIRMWARE=source: the compiler's packages and edk2's source, each pinned by its digest."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.packages.lock import LockedSet, Package, dump_lock, read_lock
from sevsnp.packages.sets import read_sets
from sevsnp.packages.steps import COMPILER, EDK2, make_compiler, make_edk2
from tests.conftest import PROJECT
from tests.support.debian_repository import build_deb

ARCHIVES = {"edk2.orig": b"the source", "edk2.debian": b"the patches"}


def package(name: str, data: bytes, filename: str) -> Package:
    digest = hashlib.sha256(data).hexdigest()
    return Package(name, "1-1", "source" if "edk2" in name else "all", "debian", filename, len(data), digest)


def locked(
    requested: tuple[str, ...], packages: tuple[Package, ...], *, security: bool, dependencies: bool
) -> LockedSet:
    dates = ("2026-01-30T12:00:00Z",)
    return LockedSet("trixie", dates, requested, dependencies, False, (), security, {}, packages)


@pytest.fixture
def mirror(tmp_path: Path) -> Path:
    """A mirror in a directory, with the two locks beside it and a list that asks for one package."""
    directory = tmp_path / "mirror"
    directory.mkdir()
    (tmp_path / "debs").mkdir()
    gcc = build_deb(tmp_path / "debs", "gcc", "1-1", arch="all")
    shutil.copyfile(gcc, directory / "gcc_1-1_all.deb")
    sources = []
    for name, data in ARCHIVES.items():
        file = f"{name.replace('.', '_1.')}.tar.xz"
        (directory / file).write_bytes(data)
        sources.append(package(name, data, file))
    (tmp_path / "packages.yaml").write_text(f"{COMPILER}:\n  suite: trixie\n  packages: [gcc]\n")
    compiler = locked(
        ("gcc",), (package("gcc", gcc.read_bytes(), "gcc_1-1_all.deb"),), security=True, dependencies=True
    )
    (tmp_path / "packages.lock").write_text(dump_lock({COMPILER: compiler}))
    names = tuple(sorted(ARCHIVES))
    edk2 = locked(names, tuple(sources), security=False, dependencies=False)
    (tmp_path / "sources.lock").write_text(dump_lock({EDK2: edk2}))
    return directory


def fetched(mirror: Path, snapshot: str = "off") -> tuple[Path, Path]:
    """The two directories that are made from this mirror."""
    place = mirror.parent
    debs, sources = place / "out/debs", place / "out/sources"
    places: dict[str, Any] = {"cache_dir": str(place / "cache"), "mirror": f"file:{mirror}", "snapshot": snapshot}
    make_edk2(source_lock=place / "sources.lock", sources=sources, **places)
    make_compiler(lock=place / "packages.lock", tools=place / "packages.yaml", debs=debs, **places)
    return debs, sources


def test_the_compiler_and_the_source_are_fetched(mirror: Path) -> None:
    debs, sources = fetched(mirror)
    assert {file.name for file in debs.iterdir()} == {"gcc_1-1_all.deb", "Packages", "packages.json"}
    assert {file.read_bytes() for file in sources.glob("*.tar.xz")} == {*ARCHIVES.values()}
    assert (sources / "packages.json").exists()


def test_a_mirror_without_the_source_is_an_error(mirror: Path) -> None:
    """The remedy is not that for packages, since no task pins the source again. No file is written."""
    (mirror / "edk2_1.orig.tar.xz").unlink()
    with pytest.raises(UserError) as refused:
        fetched(mirror)
    assert "edk2.orig 1-1" in refused.value.message and "the mirror dropped this version" in refused.value.message
    assert refused.value.hint.startswith("do not set FIRMWARE=source, or name a snapshot mirror")
    assert not (mirror.parent / "out").exists()


def test_a_source_with_another_digest_is_refused(mirror: Path) -> None:
    (mirror / "edk2_1.debian.tar.xz").write_bytes(b"THE PATCHES")
    with pytest.raises(UserError, match="does not match the lock and was removed") as refused:
        fetched(mirror)
    assert "edk2_1.debian.tar.xz" in refused.value.message and "choose another MIRROR" in refused.value.hint


@pytest.mark.parametrize("text", ["", "format = 2\n[sets.other]\n", 'format = 2\nsets = "x"\n'])
def test_a_damaged_lock_is_restored(mirror: Path, text: str) -> None:
    (mirror.parent / "sources.lock").write_text(text)
    with pytest.raises(UserError, match=r"sources\.lock") as refused:
        fetched(mirror)
    assert refused.value.hint == f"restore it: git checkout {mirror.parent / 'sources.lock'}"


def test_the_locks_of_the_project_have_the_compiler_and_the_source() -> None:
    names = {package.name for package in read_lock(PROJECT / "packages.lock").packages(COMPILER)}
    (asked,) = (one for one in read_sets(PROJECT / "tasks/packages.yaml") if one.name == COMPILER)
    assert {*asked.packages} <= names and not asked.exclude
    original, packaging = sorted(
        read_lock(PROJECT / "sources.lock").packages(EDK2), key=lambda package: package.name, reverse=True
    )
    assert ".orig.tar." in original.filename and ".debian.tar." in packaging.filename
