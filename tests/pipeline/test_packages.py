# SPDX-License-Identifier: Apache-2.0
"""Packages end to end against an archive made here: resolved, fetched, refused, fetched again, unpacked."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sevsnp.errors import UserError
from sevsnp.packages import download as downloading
from sevsnp.packages.fetch import cached_path, fetch
from sevsnp.packages.lock import Package, read_lock
from sevsnp.packages.pipeline import packages, packages_lock
from sevsnp.packages.sets import PackageSet
from sevsnp.packages.sources import Sources
from sevsnp.packages.wrappers import LOADER
from sevsnp.store import pinned as pinning
from sevsnp.store.cache import Cache
from sevsnp.store.digests import Index
from sevsnp.store.session import Options
from tests.support.debian_repository import Repository, Server, build_deb, listing

LIST = Path("list.yaml")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(downloading, "ATTEMPTS", 1)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Repository, Repository]]:
    """A main and a security archive; the latter has a newer tool."""
    root = tmp_path_factory.mktemp("archive")
    main, security = Repository(root / "debian"), Repository(root / "debian-security")
    security.keyring = main.keyring
    security.key = main.key
    main.add("base", fields="Essential: yes\n")
    main.add("apt")
    main.add("lib+a", "1:1.0~rc1", content={"usr/lib/liba.so": "a", LOADER: "loader"})
    main.add("tool", fields="Depends: lib+a, scripts\nRecommends: unwanted\n", content={"usr/bin/tool": "old"})
    security.add("tool", "1.1", fields="Depends: lib+a, scripts\n", content={"usr/bin/tool": "new"})
    main.add("scripts", arch="all")
    main.add("unwanted")
    main.add("linux-image-6.1.0-amd64", content={"boot/vmlinuz-6.1.0-amd64": "x"})
    main.add("linux-image-amd64", fields="Depends: linux-image-6.1.0-amd64 (= 1.0), initramfs-tools | dracut\n")
    main.add("provider", fields="Provides: service\n")
    main.publish("trixie")
    security.publish("trixie-security")
    yield main, security


def make_set(name: str, *names: str, **how: object) -> PackageSet:
    return dataclasses.replace(PackageSet(name, LIST, "trixie", names), **how)  # type: ignore[arg-type]


def lock_sets(
    archive: tuple[Repository, Repository], output: Path, *sets: PackageSet, secure: bool = True
) -> list[str]:
    main, security = archive
    notes: list[str] = []
    sources = Sources(main.uri, security.uri if secure else "", "test")
    packages_lock(sets=sets, sources=sources, output=output, keyring=main.keyring, note=notes.append)
    return notes


def test_lock_resolves_and_is_deterministic(archive: tuple[Repository, Repository], tmp_path: Path) -> None:
    sets = (
        make_set("tools", "tool", exclude=("scripts",)),
        make_set("guest", "tool", essential=True),
        make_set("kernel", "linux-image-amd64", dependencies=False, security=False),
    )
    assert lock_sets(archive, tmp_path / "packages.lock", *sets)[-1] == "0 changed, 6 added, 0 removed"
    lock = read_lock(tmp_path / "packages.lock")
    lock.check(sets)
    assert [package.name for package in lock.packages("tools")] == ["lib+a", "tool"]
    assert [package.name for package in lock.packages("guest")] == ["apt", "base", "lib+a", "scripts", "tool"]
    assert [package.name for package in lock.packages("kernel")] == ["linux-image-6.1.0-amd64"]
    library, tool = lock.packages("tools")
    assert (library.version, library.archive) == ("1:1.0~rc1", "debian")
    assert library.filename == "pool/main/l/lib+a/lib+a_1.0~rc1_amd64.deb"
    assert (tool.version, tool.archive) == ("1.1", "debian-security")
    deb = archive[0].root / library.filename
    assert (library.size, library.sha256) == (deb.stat().st_size, hashlib.sha256(deb.read_bytes()).hexdigest())
    assert str(archive[0].root.parent) not in lock.path.read_text()
    lock_sets(archive, tmp_path / "again.lock", *reversed(sets))
    assert (tmp_path / "again.lock").read_bytes() == lock.path.read_bytes()


def test_lock_without_a_security_archive_says_so(archive: tuple[Repository, Repository], tmp_path: Path) -> None:
    notes = lock_sets(archive, tmp_path / "packages.lock", make_set("tools", "tool"), secure=False)
    assert "without security updates" in notes[0]
    assert {package.archive for package in read_lock(tmp_path / "packages.lock").packages("tools")} == {"debian"}


def test_lock_keeps_the_old_file_when_a_name_is_wrong(archive: tuple[Repository, Repository], tmp_path: Path) -> None:
    output = tmp_path / "packages.lock"
    lock_sets(archive, output, make_set("tools", "tool"))
    before = output.read_bytes()
    for wrong, said in (("no-such-thing", "no-such-thing"), ("service", "service")):
        with pytest.raises(UserError, match=said) as caught:
            lock_sets(archive, output, make_set("tools", "tool"), make_set("guest", wrong))
        assert "list.yaml" in caught.value.message
        assert "\n" not in caught.value.message
    assert output.read_bytes() == before
    assert os.listdir(tmp_path) == ["packages.lock"]


def test_lock_refuses_an_archive_signed_with_another_key(
    archive: tuple[Repository, Repository], tmp_path: Path
) -> None:
    other = Repository(tmp_path / "other")
    sources = Sources(archive[0].uri, "", "test")
    with pytest.raises(UserError, match="cannot read suite trixie"):
        packages_lock(sets=[make_set("t", "tool")], sources=sources, output=tmp_path / "l", keyring=other.keyring)
    assert not (tmp_path / "l").exists()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Server, Package, Path]]:
    """A mirror with one package, that package as a lock would have it, and an empty cache."""
    deb = build_deb(tmp_path, "tool+x", content={"usr/share/tool": "x" * 5000})
    with Server(tmp_path) as server:
        data = deb.read_bytes()
        yield (
            server,
            Package("tool+x", "1.0", "amd64", "debian", deb.name, len(data), hashlib.sha256(data).hexdigest()),
            tmp_path / "cache",
        )


def from_server(server: Server) -> Callable[[], Sources]:
    return lambda: Sources(server.uri, "", "test")


def never() -> Sources:
    raise AssertionError("the sources were asked for")


def files_in(path: Path) -> list[str]:
    return [file.name for file in path.rglob("*") if file.is_file()]


def test_a_download_is_complete_and_the_cache_needs_no_network(served: tuple[Server, Package, Path]) -> None:
    server, package, cache = served
    seen: list[tuple[int, ...]] = []
    fetched = fetch(
        [package, package],
        cache_dir=cache,
        sources=from_server(server),
        progress=lambda *now: seen.append(now),
    )
    assert fetched == {package: cached_path(package, cache)}
    assert seen[-1] == (package.size, package.size, 1, 1)
    assert fetched[package].stat().st_mode & 0o777 == 0o644
    assert server.requests == [f"/{package.deb.replace('+', '%2B')}"]
    assert fetch([package], cache_dir=cache, sources=never) == fetched


@pytest.mark.parametrize("kind", ["changed", "cut", "longer", "empty"])
def test_a_corrupted_download_is_refused_and_removed(served: tuple[Server, Package, Path], kind: str) -> None:
    server, package, cache = served
    good = (cache.parent / package.deb).read_bytes()
    server.answers[package.deb] = server.answers[package.deb.replace("+", "%2B")] = {
        "changed": good[:-1] + bytes([good[-1] ^ 1]),
        "cut": good[:-1],
        "longer": good + bytes(10_000_000),
        "empty": b"",
    }[kind]
    with pytest.raises(UserError, match="does not match the lock and was removed") as caught:
        fetch([package], cache_dir=cache, sources=from_server(server))
    for part in (package.deb, package.sha256, f"expected {package.size} bytes"):
        assert part in caught.value.message
    assert files_in(cache) == []
    server.answers.clear()  # the control arm: the same mirror, telling the truth
    assert fetch([package], cache_dir=cache, sources=from_server(server))


def test_a_damaged_cache_entry_is_fetched_again(served: tuple[Server, Package, Path]) -> None:
    server, package, cache = served
    (path,) = fetch([package], cache_dir=cache, sources=from_server(server)).values()
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"!")
    assert fetch([package], cache_dir=cache, sources=from_server(server))[package].read_bytes() == good
    assert len(server.requests) == 2
    path.write_bytes(good[:-1])
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch([package], cache_dir=cache, sources=lambda: Sources("http://127.0.0.1:9/debian", "", "test"))
    assert files_in(cache) == []  # a damaged file is not left there to be used by another


def test_a_failing_mirror_is_not_reported_as_a_dropped_version(served: tuple[Server, Package, Path]) -> None:
    server, package, cache = served
    for code in (403, 500):
        server.answers[package.deb.replace("+", "%2B")] = code
        with pytest.raises(UserError, match=f"cannot be fetched from .*{code}"):
            fetch([package], cache_dir=cache, sources=from_server(server))


def test_a_temporary_failure_is_tried_again(
    served: tuple[Server, Package, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, package, cache = served
    monkeypatch.setattr(downloading, "ATTEMPTS", 2)
    name = package.deb.replace("+", "%2B")
    server.answers[name] = 503

    def mend(done: float) -> None:
        server.answers.clear()

    monkeypatch.setattr(downloading.Meter, "wait", lambda self, seconds: mend(seconds))
    assert fetch([package], cache_dir=cache, sources=from_server(server))
    assert len(server.requests) == 2


def test_local_mirrors(served: tuple[Server, Package, Path], tmp_path: Path) -> None:
    _, package, cache = served
    assert fetch([package], cache_dir=cache, sources=lambda: Sources(f"file:{tmp_path}", "", "test"))
    with pytest.raises(UserError, match="dropped"):
        fetch([package], cache_dir=tmp_path / "c2", sources=lambda: Sources(f"file:{tmp_path}/none", "", "test"))


def test_apts_proxy_is_used(served: tuple[Server, Package, Path]) -> None:
    server, package, cache = served
    sources = Sources("http://mirror.invalid/debian", "", "test", {"Acquire::http::Proxy": server.uri})
    with pytest.raises(UserError, match="dropped"):  # the proxy knows no such host, and says 404
        fetch([package], cache_dir=cache, sources=lambda: sources)
    assert server.requests == [f"http://mirror.invalid/debian/{package.deb.replace('+', '%2B')}"]


def test_packages_are_unpacked_from_a_lock_into_the_build_directory(
    archive: tuple[Repository, Repository], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = (
        make_set("tools", "tool"),
        make_set("ovmf", "unwanted", dependencies=False),
        make_set("kernel", "linux-image-amd64", dependencies=False),
        make_set("initramfs", "scripts"),
        make_set("guest", "tool", essential=True),
    )
    lock_sets(archive, tmp_path / "packages.lock", *sets)
    main, security = archive

    store = Cache(Options(tmp_path / "artefacts"), Index(None))
    monkeypatch.setattr("sevsnp.store.cache.cache", lambda: store)

    def run(cache: Path, lists: tuple[PackageSet, ...] = sets, source: str = main.uri) -> None:
        packages(
            lock=tmp_path / "packages.lock",
            sets=lists,
            release=tmp_path / "build/snp-release",
            debs={"initramfs": tmp_path / "build/debs/initramfs", "guest": tmp_path / "build/debs/guest"},
            cache_dir=cache,
            sources=lambda: Sources(source, security.uri, "test"),
            kept=pinning.PinnedFiles(print),
        )

    with pytest.raises(UserError, match="less is not in"):
        run(tmp_path / "cache", (make_set("tools", "tool", "less"), *sets[1:]))
    assert not (tmp_path / "build").exists()
    run(tmp_path / "cache")
    release = tmp_path / "build/snp-release"
    assert (release / "usr/bin/tool").read_text() == "new"
    assert os.listdir(release / "linux/guest") == ["linux-image-6.1.0-amd64_1.0_amd64.deb"]
    assert set(json.loads((release / "packages.json").read_text())["sets"]) == {"tools", "ovmf", "kernel"}
    assert len(list((tmp_path / "build/debs/guest").glob("*.deb"))) == 5
    assert len(list((tmp_path / "build/debs/initramfs").glob("*.deb"))) == 1
    # The firmware, and nothing else, is kept in the artefact cache.
    (firmware,) = read_lock(tmp_path / "packages.lock").packages("ovmf")
    assert [path.name for path in (tmp_path / "artefacts/blobs").glob("*/*")] == [firmware.sha256]
    before = listing(tmp_path / "build")
    shutil.rmtree(tmp_path / "build")
    run(tmp_path / "cache", source="file:/nowhere")  # from the cache alone
    assert listing(tmp_path / "build") == before
    with pytest.raises(UserError, match="the mirror dropped this version"):
        run(tmp_path / "empty", source="file:/nowhere")
    assert listing(tmp_path / "build") == before
