# SPDX-License-Identifier: Apache-2.0
"""The sources of the builds: their pins, and git repositories that are made here."""

import os
import subprocess
import tarfile
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from sevsnp.builds.git import pack_commit, resolve_commit
from sevsnp.builds.pins import PINS, FileSource, GitSource, read_pins
from sevsnp.builds.sources import Fetched, fetch_sources, needed, place_sources
from sevsnp.builds.stages import STAGES, Stage, chosen
from sevsnp.errors import UserError
from sevsnp.packages.lock import read_lock

PROJECT = Path(__file__).resolve().parents[3]
TODAY = date(2026, 3, 31)
WRAP = "[wrap-git]\nurl = {url}\nrevision = {revision}\npatch_directory = library\n"


def git(directory: Path, *words: str, day: str = "2026-01-01", hour: str = "12:00:00") -> str:
    when = f"{day}T{hour}Z"
    variables = {
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": when,
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_COMMITTER_DATE": when,
        "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"],
    }  # fmt: skip
    argv = ["git", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main", *words]
    return subprocess.run(argv, cwd=directory, env=variables, check=True, capture_output=True, text=True).stdout.strip()


def commit(directory: Path, text: str, day: str = "2026-01-01", hour: str = "12:00:00") -> str:
    (directory / "file").write_text(text)
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "--message", text, day=day, hour=hour)
    return git(directory, "rev-parse", "HEAD")


def repository(directory: Path) -> str:
    directory.mkdir()
    git(directory, "init", "--quiet")
    return f"file://{directory}"


@pytest.fixture
def upstream(tmp_path: Path) -> tuple[Path, GitSource]:
    url = repository(tmp_path / "upstream")
    return tmp_path / "upstream", GitSource("thing", url, branch="main")


def test_the_commit_of_a_day(upstream: tuple[Path, GitSource]) -> None:
    directory, source = upstream
    first = commit(directory, "first", "2026-01-10")
    late = commit(directory, "late", "2026-01-20", "23:59:59")
    commit(directory, "next day", "2026-01-21", "00:00:00")
    last = commit(directory, "last", "2026-03-01")
    assert resolve_commit(source, "2026-01-20", TODAY) == late
    assert resolve_commit(source, "2026-01-19", TODAY) == first
    assert resolve_commit(source, "today", TODAY) == resolve_commit(source, "2026-03-31", TODAY) == last
    with pytest.raises(UserError, match=r"COMMIT_DATE=2026-01-09: main of .* has no commit that old"):
        resolve_commit(source, "2026-01-09", TODAY)
    with pytest.raises(
        UserError, match="COMMIT_DATE=2026-04-01: found a day in the future, expected one to 2026-03-31"
    ):
        resolve_commit(source, "2026-04-01", TODAY)


def test_a_commit_that_was_merged_later_is_not_chosen_for_a_date(upstream: tuple[Path, GitSource]) -> None:
    directory, source = upstream
    base = commit(directory, "base", "2026-01-01")
    git(directory, "checkout", "--quiet", "-b", "topic")
    (directory / "topic").write_text("x")
    git(directory, "add", ".")
    git(directory, "commit", "--quiet", "--message", "topic", day="2026-01-05")
    git(directory, "checkout", "--quiet", "main")
    git(directory, "merge", "--quiet", "--no-ff", "--message", "merge", "topic", day="2026-02-01")
    assert resolve_commit(source, "2026-01-10", TODAY) == base


def test_the_commit_of_a_tag(upstream: tuple[Path, GitSource]) -> None:
    """A lightweight and an annotated tag: the result is the commit, not the tag object."""
    directory, source = upstream
    released = commit(directory, "released")
    git(directory, "tag", "v1")
    git(directory, "tag", "--annotate", "--message", "x", "v1-signed")
    commit(directory, "after")
    for tag in ("v1", "v1-signed"):
        assert resolve_commit(replace(source, branch="", tag=tag), "2026-01-01", TODAY) == released
    with pytest.raises(UserError, match="there is no refs/tags/v2"):
        resolve_commit(replace(source, branch="", tag="v2"), "today", TODAY)
    with pytest.raises(UserError, match="there is no refs/heads/other"):
        resolve_commit(replace(source, branch="other"), "today", TODAY)


def names(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {one.name: stream.read() for one in tar if (stream := tar.extractfile(one))}


def test_a_tree_is_packed_with_its_submodules_and_wraps(upstream: tuple[Path, GitSource], tmp_path: Path) -> None:
    directory, source = upstream
    inner = commit(repository_path(tmp_path, "inner"), "inner")
    library = repository_path(tmp_path, "library")
    old = commit(library, "pinned")
    commit(library, "newer")
    (directory / "subprojects" / "packagefiles" / "library").mkdir(parents=True)
    (directory / "subprojects" / "packagefiles" / "library" / "meson.build").write_text("added")
    (directory / "subprojects" / "library.wrap").write_text(WRAP.format(url=f"file://{library}", revision=old))
    git(directory, "submodule", "--quiet", "add", f"file://{tmp_path}/inner", "inner")
    at = commit(directory, "outer")
    whole = replace(source, submodules=True, wraps=("library",))
    for name in ("one.tar", "two.tar"):
        pack_commit(whole, at, tmp_path / name)
    found = names(tmp_path / "one.tar")
    assert found["thing/file"] == b"outer" and found["thing/inner/file"] == b"inner"
    assert found["thing/subprojects/library/file"] == b"pinned"
    assert found["thing/subprojects/library/meson.build"] == b"added"
    assert not any(part == ".git" for name in found for part in name.split("/"))
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert inner
    # Control: without them, the same commit has neither.
    pack_commit(source, at, tmp_path / "bare.tar")
    assert not {"thing/inner/file", "thing/subprojects/library/file"} & names(tmp_path / "bare.tar").keys()


def repository_path(tmp_path: Path, name: str) -> Path:
    repository(tmp_path / name)
    return tmp_path / name


def test_a_wrap_that_is_not_pinned(upstream: tuple[Path, GitSource], tmp_path: Path) -> None:
    directory, source = upstream
    (directory / "subprojects").mkdir()
    (directory / "subprojects" / "library.wrap").write_text(WRAP.format(url="file:///x", revision="main"))
    at = commit(directory, "outer")
    with pytest.raises(UserError, match=r"library\.wrap: revision: found 'main', expected a whole commit"):
        pack_commit(replace(source, wraps=("library",)), at, tmp_path / "x.tar")
    (directory / "subprojects" / "option.wrap").write_text(WRAP.format(url="--upload-pack=id", revision=at))
    with pytest.raises(UserError, match=r"option\.wrap: url: found '--upload-pack=id', expected https"):
        pack_commit(replace(source, wraps=("option",)), commit(directory, "more"), tmp_path / "x.tar")
    with pytest.raises(UserError, match=r"other\.wrap: found no url and revision"):
        pack_commit(replace(source, wraps=("other",)), at, tmp_path / "x.tar")
    assert not (tmp_path / "x.tar").exists()


def fetched(source: GitSource, cache: Path) -> Fetched:
    pins = Path("sources.yaml")
    found = fetch_sources([source], file=pins, cache_dir=cache, mirror="", snapshot="off", commit_date="today")
    return found[source.name]


def test_a_repository_is_fetched_once(upstream: tuple[Path, GitSource], tmp_path: Path) -> None:
    directory, source = upstream
    at = commit(directory, "first")
    found, again = (fetched(source, tmp_path / "cache") for _ in range(2))
    assert found == again and found.version == at
    assert found.files["thing.tar"].stat().st_ino == again.files["thing.tar"].stat().st_ino
    place_sources([Stage("s", "x.sh", ("thing",), "", (), 1, 1)], {"thing": found}, tmp_path / "sources")
    assert names(tmp_path / "sources" / "s" / "thing.tar")["thing/file"] == b"first"
    other = commit(directory, "second")
    assert fetched(source, tmp_path / "cache").version == other


def prepare(*, sources: Path, output: Path, page: Path) -> None:
    """Stands for a stage whose sources the library prepares."""
    output.mkdir()
    (output / page.name).write_text(" ".join(path.name for path in sources.iterdir()))


def test_a_stage_can_prepare_its_sources(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("x")
    name, templates = f"{__name__}:prepare", {"page": "verdict.html.j2"}
    stage = Stage("s", "x.sh", ("thing",), "", (), 1, 1, prepare=name, templates=templates)
    place_sources([stage], {"thing": Fetched("1", {"a.tar": tmp_path / "a.tar"}, {})}, tmp_path / "sources")
    assert (tmp_path / "sources" / "s" / "verdict.html.j2").read_text() == "a.tar"
    assert [path.name for path in (tmp_path / "sources").iterdir()] == ["s"]


@pytest.mark.parametrize("pin", PINS)
def test_every_set_of_pins_has_the_sources_of_every_stage(pin: str) -> None:
    pins = read_pins(PROJECT / "tasks" / "sources.yaml", pin)
    for source in needed(STAGES, pins, Path("sources.yaml")):
        if isinstance(source, GitSource):
            assert bool(source.tag) is (pin == "upstream") and bool(source.branch) is (pin == "amd")
        else:
            assert pin == "stable" or source.name in ("ovmf", "kernel-config", "meson", "pycotap")


def test_the_stable_sources_are_those_of_the_pinned_packages() -> None:
    lock = read_lock(PROJECT / "packages.lock")
    versions = {package.name: package.version for one in lock.sets.values() for package in one.packages}
    pins = read_pins(PROJECT / "tasks" / "sources.yaml", "stable")
    qemu, kernel = pins["qemu"], pins["guest-kernel"]
    assert isinstance(qemu, FileSource) and isinstance(kernel, FileSource)
    assert versions["qemu-system-x86"] == f"1:{qemu.version}"
    # The mirrors keep few kernels: one of the same series, so that its configuration fits.
    series = {version.rpartition(".")[0] for name, version in versions.items() if name.startswith("linux-image-")}
    assert {kernel.version.rpartition(".")[0]} == series


def test_both_firmware_builds_use_the_same_source() -> None:
    """The build with FIRMWARE=source, and the stage of the builds from source."""
    firmware = read_pins(PROJECT / "tasks" / "sources.yaml", "stable")["ovmf"]
    assert isinstance(firmware, FileSource)
    pinned = read_lock(PROJECT / "sources.lock").packages("edk2")
    assert {one.sha256 for one in firmware.files} == {one.sha256 for one in pinned}


def test_both_firmware_builds_use_the_same_compiler() -> None:
    """So the bytes are equal, and packages_fetch compares them (``known`` of the stage)."""
    locks = {name: read_lock(PROJECT / name) for name in ("packages.lock", "tasks/build-packages.lock")}
    alone = locks["packages.lock"].packages("compiler")
    image = {one.name: one for name in ("common", "ovmf") for one in locks["tasks/build-packages.lock"].packages(name)}
    assert alone and {one.name: one.sha256 for one in alone} == {one.name: image[one.name].sha256 for one in alone}


FILE = "{path: pool/x, size: 1, sha256: " + "c" * 64 + "}"
GOOD = f"stable: {{a: {{version: '1', date: '2026-01-01T00:00:00Z', files: [{FILE}]}}}}\nupstream: {{}}\namd: {{}}\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("amd", "intel", "found stable, upstream, intel, expected stable, upstream, amd"),
        ("upstream: {}", "upstream: [x]", "upstream: found \\['x'\\], expected sources by name"),
        ("version: '1', ", "", "a: version: found None"),
        ("T00:00:00Z", "", "a: date: found '2026-01-01'"),
        ("version: '1'", "version: 1", "a: version: found 1"),
        ("files", "fils", "a: found neither files, tag nor branch"),
        ("version: '1'", "version: '1', x: y", "a: unknown field x"),
        (f"[{FILE}]", "[]", "a: files: found \\[\\], expected a list of files"),
        ("pool/x", "etc/passwd", "path: found 'etc/passwd'"),
        ("pool/x", "pool/../x", "expected a path without \\.\\."),
        ("size: 1", "size: '1'", "size: found '1'"),
        ("size: 1", "size: true", "size: found True"),
        ("size: 1", "size: 0", "size: found 0"),
        ("c" * 64, "'" + "A" * 64 + "'", "sha256: found 'AAAA"),
        ("size: 1", "size: 1, url: x", "expected path, size and sha256"),
    ],
)
def test_bad_pins(tmp_path: Path, old: str, new: str, message: str) -> None:
    file = tmp_path / "sources.yaml"
    file.write_text(GOOD)
    read_pins(file, "stable")
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=f"sources.yaml.*{message}"):
        read_pins(file, "upstream")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("repository: 'ext::sh -c id', tag: v1", "repository: found 'ext::sh -c id'"),
        ("repository: https://example.org/x, tag: --upload-pack=x", "tag: found '--upload-pack=x'"),
        ("repository: https://example.org/x, branch: main, wraps: x", "wraps: found 'x'"),
        ("repository: https://example.org/x, branch: main, wraps: [../x]", "wraps: found"),
        ("repository: https://example.org/x, branch: main, submodules: 1", "submodules: found 1"),
        ("repository: https://example.org/x, branch: main, tag: v1", "unknown field branch"),
    ],
)
def test_bad_repositories(tmp_path: Path, fields: str, message: str) -> None:
    file = tmp_path / "sources.yaml"
    file.write_text(GOOD.replace("amd: {}", f"amd: {{b: {{{fields}}}}}"))
    with pytest.raises(UserError, match=f"sources.yaml: amd: b: .*{message}"):
        read_pins(file, "amd")


def test_a_source_without_a_pin_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sources.yaml"
    file.write_text(GOOD)
    with pytest.raises(UserError, match=r"sources\.yaml: found no source qemu, which qemu needs"):
        needed(chosen("qemu"), read_pins(file, "stable"), file)
