# SPDX-License-Identifier: Apache-2.0
"""`packages_lock --only NAME` against two states of an archive, and the lines that say what changed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.packages.changes import describe
from sevsnp.packages.lock import LockedSet, Package, read_lock
from sevsnp.packages.pipeline import locked_files, packages_lock
from sevsnp.packages.sets import PackageSet
from sevsnp.packages.sources import Sources
from tests.support.debian_repository import Repository

LIST = Path("list.yaml")
TOOLS = PackageSet("tools", LIST, "trixie", ("tool", "other", "plug"), exclude=("setup",), security=False)
GUEST = PackageSet("guest", LIST, "trixie", ("other",), essential=True, security=False)
KERNEL = PackageSet("kernel", LIST, "trixie", ("linux-image-amd64",), dependencies=False, security=False)
SETS = (TOOLS, GUEST, KERNEL)
WHEN = {"1.0": 1_700_000_000, "2.0": 1_710_000_000}
DATES = ("2024-03-09T16:00:00Z", "2023-11-14T22:13:20Z")


def make_archive(root: Path, version: str, more: str, key: Repository | None = None) -> Repository:
    made = Repository(root) if key is None else Repository(root, key.key)
    made.add("base", version, fields="Essential: yes\n")
    made.add("apt", version)
    made.add("lib", version)
    made.add("tool", version, fields=f"Depends: lib (>= {version}), setup (>= {version}){more}\n")
    made.add("plug", version, fields=f"Depends: lib (= {version})\n")
    made.add("other", version)
    made.add("setup", version, fields=f"Depends: lib (>= {version})\n")
    made.add("helper", version)
    made.add(f"linux-image-{version}-amd64", version)
    made.add("linux-image-amd64", version, fields=f"Depends: linux-image-{version}-amd64 (= {version})\n")
    made.publish(when=WHEN[version])
    return made


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Repository]:
    root = tmp_path_factory.mktemp("archives")
    old = make_archive(root / "old/debian", "1.0", "")
    return old, make_archive(root / "new/debian", "2.0", ", helper", old)


class Locked:
    """A lock of the old archive, with all that it pins in a cache."""

    def __init__(self, archives: tuple[Repository, Repository], directory: Path) -> None:
        self.archives, self.cache, self.path = archives, directory / "cache", directory / "packages.lock"
        self.notes: list[str] = []
        self.refresh(0)
        lock = read_lock(self.path)
        sources = self.sources(0)
        for name in lock.sets:
            locked_files(lock, lock.packages(name), cache_dir=self.cache, sources=lambda: sources)
        self.before = self.path.read_bytes()

    def sources(self, which: int) -> Sources:
        return Sources(self.archives[which].uri, "", "test")

    def refresh(self, which: int, only: str = "", sets: Sequence[PackageSet] = SETS) -> None:
        self.notes.clear()
        packages_lock(
            sets=sets,
            sources=self.sources(which),
            output=self.path,
            only=only,
            cache_dir=self.cache,
            keyring=self.archives[0].keyring,
            note=self.notes.append,
        )

    def versions(self, name: str) -> dict[str, str]:
        return {package.name: package.version for package in read_lock(self.path).packages(name)}


@pytest.fixture
def locked(archives: tuple[Repository, Repository], tmp_path: Path) -> Locked:
    return Locked(archives, tmp_path)


def test_only_the_named_package_is_updated(locked: Locked) -> None:
    assert locked.versions("tools") == dict.fromkeys(("lib", "other", "plug", "tool"), "1.0")
    locked.refresh(1, only="other")
    assert locked.versions("tools") == {**dict.fromkeys(("lib", "plug", "tool"), "1.0"), "other": "2.0"}
    assert locked.versions("guest") == {"apt": "1.0", "base": "1.0", "other": "2.0"}
    assert locked.versions("kernel") == {"linux-image-1.0-amd64": "1.0"}
    assert locked.notes == ["other 1.0 → 2.0 (guest, tools)", "1 changed, 0 added, 0 removed"]


def test_dependencies_of_the_named_package_are_updated_too(locked: Locked) -> None:
    """tool 2.0 needs lib 2.0 and a new helper; plug 1.0 fits lib 1.0 only; what is excluded stays out."""
    locked.refresh(1, only="tool")
    expected = {"helper": "2.0", "lib": "2.0", "other": "1.0", "plug": "2.0", "tool": "2.0"}
    assert locked.versions("tools") == expected
    assert locked.notes[-1] == "3 changed, 1 added, 0 removed" and "helper 2.0 added (tools)" in locked.notes
    assert locked.versions("guest")["other"] == "1.0"


def test_a_kernel_is_updated_by_its_own_name_or_that_of_its_meta_package(locked: Locked) -> None:
    for name in ("linux-image-amd64", "linux-image-1.0-amd64"):
        locked.path.write_bytes(locked.before)
        locked.refresh(1, only=name)
        assert locked.versions("kernel") == {"linux-image-2.0-amd64": "2.0"}
        assert read_lock(locked.path).sets["kernel"].resolved == {"linux-image-amd64": "linux-image-2.0-amd64"}
        assert locked.notes[:2] == [
            "linux-image-1.0-amd64 1.0 removed (kernel)",
            "linux-image-2.0-amd64 2.0 added (kernel)",
        ]


def test_a_package_that_is_new_in_a_list_is_added(locked: Locked) -> None:
    more = (dataclasses.replace(TOOLS, packages=(*TOOLS.packages, "helper")), GUEST, KERNEL)
    locked.refresh(1, only="helper", sets=more)
    assert locked.versions("tools")["helper"] == "2.0" and locked.versions("tools")["other"] == "1.0"
    read_lock(locked.path).check(more)
    # What is new besides is not made up for.
    locked.path.write_bytes(locked.before)
    with pytest.raises(UserError, match="apt is not in"):
        two = (dataclasses.replace(TOOLS, packages=(*TOOLS.packages, "helper", "apt")), GUEST, KERNEL)
        locked.refresh(1, only="helper", sets=two)
    assert locked.path.read_bytes() == locked.before


def test_the_lock_has_the_dates_of_both_refreshes(locked: Locked) -> None:
    locked.refresh(1, only="other")
    lock = read_lock(locked.path)
    assert {name: locked_set.dates for name, locked_set in lock.sets.items()} == {
        "tools": DATES,
        "guest": DATES,
        "kernel": DATES[1:],
    }
    (other,) = (package for package in lock.packages("tools") if package.name == "other")
    assert lock.dates(other) == DATES
    locked.refresh(1)
    assert read_lock(locked.path).sets["tools"].dates == DATES[:1]


def test_an_unchanged_archive_changes_nothing(locked: Locked) -> None:
    locked.refresh(0, only="tool")
    assert locked.path.read_bytes() == locked.before
    assert locked.notes == ["0 changed, 0 added, 0 removed"]


def test_a_name_that_no_set_has_is_refused(locked: Locked) -> None:
    for name in ("nonsense", "setup"):  # the latter is excluded
        with pytest.raises(UserError, match=f"--only {name}: no list asks for it"):
            locked.refresh(1, only=name)
    assert locked.path.read_bytes() == locked.before


def test_the_full_refresh_says_what_changed(locked: Locked) -> None:
    locked.refresh(1)
    assert locked.notes == [
        "apt 1.0 → 2.0 (guest)",
        "base 1.0 → 2.0 (guest)",
        "helper 2.0 added (tools)",
        "lib 1.0 → 2.0 (tools)",
        "linux-image-1.0-amd64 1.0 removed (kernel)",
        "linux-image-2.0-amd64 2.0 added (kernel)",
        "other 1.0 → 2.0 (guest, tools)",
        "plug 1.0 → 2.0 (tools)",
        "tool 1.0 → 2.0 (tools)",
        "6 changed, 2 added, 1 removed",
    ]


def test_a_changed_file_with_the_same_version_is_reported() -> None:
    one = Package("tool", "1.0", "amd64", "debian", "pool/tool.deb", 1, "a" * 64)
    made = LockedSet("trixie", ("2026-01-31T12:00:00Z",), ("tool",), True, False, (), True, {}, (one,))
    other = dataclasses.replace(made, packages=(dataclasses.replace(one, sha256="b" * 64),))
    assert describe({"tools": made}, {"tools": made}) == ["0 changed, 0 added, 0 removed"]
    assert describe({"tools": made}, {"tools": other})[0] == "tool 1.0, another file (tools)"
