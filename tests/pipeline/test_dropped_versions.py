# SPDX-License-Identifier: Apache-2.0
"""Versions that the mirror has dropped: they come from a snapshot mirror, the shared cache, or sources.tar."""

import datetime
import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.packages import download as downloading
from sevsnp.packages.archive import Archive, member_name, write_archive
from sevsnp.packages.fetch import cached_path, fetch
from sevsnp.packages.lock import Lock, LockedSet, Package
from sevsnp.packages.pipeline import locked_files, refresh_lock
from sevsnp.packages.sets import PackageSet
from sevsnp.packages.snapshots import Snapshots
from sevsnp.packages.sources import Sources, find_sources
from sevsnp.packages.steps import pack_sources
from sevsnp.store import cache as caching
from sevsnp.store import pinned as pinning
from sevsnp.store.digests import Index
from sevsnp.store.session import Options
from tests.pipeline.test_download import content, files_in, pinned
from tests.support.debian_repository import Repository
from tests.support.mirror_server import Mirror
from tests.support.registry_server import Registry

DATE = datetime.datetime(2026, 1, 30, 12, tzinfo=datetime.UTC)
THEN, DAY_LATER = "20260130T120000Z", "20260131T120000Z"
POOL = f"/{pinned(b'').filename}"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, no waiting, and an apt that is set to nothing."""
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(downloading.Meter, "wait", lambda self, seconds: self.stopped.wait(min(seconds, 0.01)))
    configure_apt(monkeypatch, tmp_path)


def configure_apt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: str = "", sources: str = "") -> None:
    (tmp_path / "apt").mkdir(exist_ok=True)
    (tmp_path / "apt/sources.list").write_text(sources)
    # The keys of the tests are in a directory that is open to nobody else, _apt among them.
    cleared = '#clear Acquire::Snapshots;\n#clear Acquire::http;\nAPT::Sandbox::User "root";\n'
    text = f'Dir::Etc "{tmp_path}/apt";\nDir::Etc::parts "/dev/null";\n{cleared}{config}'
    (tmp_path / "apt.conf").write_text(text)
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))


def lock_of(*packages: Package, dates: tuple[str, ...] = (f"{DATE:%Y-%m-%dT%H:%M:%SZ}",)) -> Lock:
    names = tuple(package.name for package in packages)
    return Lock(Path("test.lock"), {"test": LockedSet("trixie", dates, names, False, False, (), True, {}, packages)})


@pytest.fixture
def package() -> Package:
    return pinned(content())


@pytest.fixture
def empty() -> Iterator[Mirror]:
    """A mirror that dropped everything."""
    with Mirror() as started:
        yield started


@pytest.fixture
def snapshot(package: Package) -> Iterator[Mirror]:
    """A snapshot mirror that has the package from a day after the lock on."""
    with Mirror({f"/archive/debian/{DAY_LATER}{POOL}": content()}) as started:
        yield started


def get(package: Package, mirror: Mirror, cache: Path, setting: str = "", keyring: Path = Path("none")) -> bytes:
    sources = Sources(mirror.uri, mirror.uri, "test", find_sources(mirror.uri).settings)
    snapshots = Snapshots(setting, lock_of(package), keyring)
    found = fetch([package], cache_dir=cache, sources=lambda: sources, snapshots=snapshots)[package]
    assert snapshots.served == ([] if POOL in mirror.files else [package])
    return found.read_bytes()


def asked(snapshot: Mirror) -> list[str]:
    return [path.split("/")[3] for path, _ in snapshot.requests]


def test_a_snapshot_of_a_time_in_the_lock(package: Package, empty: Mirror, snapshot: Mirror, tmp_path: Path) -> None:
    template = f"{snapshot.uri}/archive/debian/@SNAPSHOTID@/"
    assert get(package, empty, tmp_path / "one", template) == content()
    assert asked(snapshot) == [DAY_LATER]
    snapshot.files[f"/archive/debian/{THEN}{POOL}"] = snapshot.files.pop(f"/archive/debian/{DAY_LATER}{POOL}")
    assert get(package, empty, tmp_path / "two", template) == content()
    assert asked(snapshot) == [DAY_LATER, DAY_LATER, THEN]
    # A full cache needs nobody, and a snapshot is asked for nothing that the mirror has.
    assert get_from_cache(package, tmp_path / "two") == content()
    empty.files[POOL] = content()
    assert get(package, empty, tmp_path / "three", template) == content()
    assert len(snapshot.requests) == 3


def get_from_cache(package: Package, cache: Path) -> bytes:
    def never() -> Sources:
        raise AssertionError("the sources were asked for")

    return fetch([package], cache_dir=cache, sources=never, snapshots=Snapshots("", lock_of(package)))[
        package
    ].read_bytes()


def test_a_snapshot_mirror_with_a_fixed_time(package: Package, empty: Mirror, snapshot: Mirror, tmp_path: Path) -> None:
    assert get(package, empty, tmp_path / "one", f"{snapshot.uri}/archive/debian/{DAY_LATER}") == content()
    with pytest.raises(UserError, match="no longer have it") as caught:
        get(package, empty, tmp_path / "two", f"{snapshot.uri}/archive/debian/{THEN}")
    assert f"{THEN} no longer have it" in caught.value.message and "\n" not in caught.value.message
    assert caught.value.hint == "run: ./doitw packages_lock"


def test_snapshots_of_security_updates(empty: Mirror, snapshot: Mirror, tmp_path: Path, package: Package) -> None:
    update = Package(**{**vars(package), "archive": "debian-security"})
    snapshot.files = {f"/archive/debian-security/{DAY_LATER}{POOL}": content()}
    assert get(update, empty, tmp_path, f"{snapshot.uri}/archive/debian/@SNAPSHOTID@") == content()


def configured(snapshot: Mirror) -> dict[str, str]:
    """As apt 3 has it built in."""
    base = f"{snapshot.uri}/archive/debian/@SNAPSHOTID@/"
    return {"config": f'Acquire::Snapshots::URI::Origin::Debian "{base}";\n'}


def commented(snapshot: Mirror) -> dict[str, str]:
    """As Debian's container images have it."""
    lines = [f"# {snapshot.uri}/archive/debian{more}/20250520T000000Z" for more in ("-security", "")]
    return {"sources": "\n".join([*lines, "deb http://mirror.invalid/debian trixie main"])}


@pytest.mark.parametrize("known", [configured, commented])
def test_the_snapshot_mirror_of_this_machine_s_apt_is_used(
    known: Callable[[Mirror], dict[str, str]],
    package: Package,
    empty: Mirror,
    snapshot: Mirror,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(
        UserError, match=r"tool 1.0 \(pinned 2026-01-30\): the mirror dropped this version"
    ) as caught:  # control: it knows nothing
        get(package, empty, tmp_path / "one")
    assert 'in config.yaml: snapshot_mirror: "https://HOST' in caught.value.hint
    configure_apt(monkeypatch, tmp_path, **known(snapshot))
    assert get(package, empty, tmp_path / "two") == content()
    assert asked(snapshot) == [DAY_LATER]
    with pytest.raises(UserError, match="the mirror dropped this version") as caught:
        get(package, empty, tmp_path / "three", "off")
    assert caught.value.hint == "run: ./doitw packages_lock" and len(snapshot.requests) == 1


def test_the_security_archive_may_have_its_own_snapshot_mirror(
    empty: Mirror, snapshot: Mirror, tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Package(**{**vars(package), "archive": "debian-security"})
    label = f'Acquire::Snapshots::URI::Override::Label::Debian-Security "{snapshot.uri}/updates/@SNAPSHOTID@/";\n'
    configure_apt(monkeypatch, tmp_path, configured(snapshot)["config"] + label)
    snapshot.files = {f"/updates/{DAY_LATER}{POOL}": content()}
    assert get(update, empty, tmp_path / "cache") == content()


def test_the_snapshot_mirror_built_into_debian_s_apt_is_used(
    package: Package, empty: Mirror, snapshot: Mirror, tmp_path: Path
) -> None:
    repository = Repository(tmp_path / "debian")
    library = b"\0before\0%s/archive/debian/@SNAPSHOTID@/\0after" % snapshot.uri.encode()
    repository.add("libapt-pkg7.0", "3.0", content={"usr/lib/libapt-pkg.so.7.0": library})
    repository.add("libapt-pkg-dev", "3.0")
    repository.publish("trixie")
    for path in repository.root.rglob("*"):
        if path.is_file():
            empty.files[f"/{path.relative_to(repository.root)}"] = path.read_bytes()
    assert get(package, empty, tmp_path / "one", keyring=repository.keyring) == content()
    with pytest.raises(UserError, match="the mirror dropped this version"):  # signed by somebody else: not believed
        get(package, empty, tmp_path / "two", keyring=Repository(tmp_path / "other").keyring)


def test_with_a_local_mirror_no_snapshot_mirror_is_asked(
    package: Package, snapshot: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_apt(monkeypatch, tmp_path, **configured(snapshot))
    sources = Sources(f"file:{tmp_path}/nothing", "", "test", find_sources().settings)
    snapshots = Snapshots("", lock_of(package))
    with pytest.raises(UserError, match="dropped"):
        fetch([package], cache_dir=tmp_path / "cache", sources=lambda: sources, snapshots=snapshots)
    assert snapshot.requests == []


def test_a_snapshot_is_checked_like_a_mirror(package: Package, empty: Mirror, snapshot: Mirror, tmp_path: Path) -> None:
    template = f"{snapshot.uri}/archive/debian/@SNAPSHOTID@"
    snapshot.files = {path: content(7) for path in snapshot.files}
    with pytest.raises(UserError, match=r"the snapshot mirror failed: .*does not match the lock"):
        get(package, empty, tmp_path, template)
    assert files_in(tmp_path / "debs") == []


def test_an_unreachable_snapshot_mirror_is_reported(package: Package, empty: Mirror, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dropped .* failed: .*Connection refused") as caught:
        get(package, empty, tmp_path, "http://127.0.0.1:9/debian/@SNAPSHOTID@")
    assert "packages_lock" in caught.value.hint


def test_a_malformed_snapshot_mirror_is_refused(package: Package) -> None:
    with pytest.raises(UserError, match="SNAPSHOT_MIRROR: found 'rubbish'"):
        Snapshots("rubbish", lock_of(package))


def test_the_newest_date_is_asked_first(package: Package) -> None:
    dates = ("2026-03-01T00:00:00Z", "2026-01-01T00:00:00Z")
    snapshots = Snapshots("http://s.invalid/debian/@SNAPSHOTID@", lock_of(package, dates=dates))
    found = [uri.rpartition("/")[2] for uri in snapshots.bases(package, Sources("http://m.invalid", "", "test"))]
    assert found == ["20260302T000000Z", "20260102T000000Z", "20260301T000000Z", "20260101T000000Z"]


# The artefact cache.


@pytest.fixture
def open_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., caching.Cache]]:
    """Caches of other machines, by the name of their directory."""
    indices = []

    def opened(name: str, **options: Any) -> caching.Cache:
        indices.append(Index(None))
        found = caching.Cache(Options(tmp_path / name, **options), indices[-1])
        monkeypatch.setattr("sevsnp.store.cache.cache", lambda: found)
        return found

    yield opened
    for index in indices:
        index.close()


def test_a_dropped_version_is_taken_from_the_artefact_cache(
    package: Package, empty: Mirror, tmp_path: Path, open_cache: Callable[[str], caching.Cache]
) -> None:
    said: list[str] = []
    kept = pinning.PinnedFiles(said.append)
    open_cache("empty")
    sources = Sources(empty.uri, "", "test")

    def again(cache: Path) -> bytes:
        found = fetch([package], cache_dir=cache, sources=lambda: sources, kept=kept)
        return found[package].read_bytes()

    with pytest.raises(UserError, match="dropped"):  # control: it was not kept
        again(tmp_path / "one")
    file = tmp_path / "tool.deb"
    file.write_bytes(content())
    store = open_cache("full")
    kept.keep({package: file})
    assert again(tmp_path / "two") == content()
    # What is damaged there is not taken.
    (blob,) = (path for path in store.local.directory.glob("blobs/*/*"))
    blob.chmod(0o644)
    blob.write_bytes(content(7))
    with pytest.raises(UserError, match="dropped"):
        again(tmp_path / "three")
    assert files_in(tmp_path / "three") == [] and said == []


def test_a_dropped_version_is_taken_from_the_shared_cache(
    package: Package, empty: Mirror, registry: Registry, tmp_path: Path, open_cache: Callable[..., caching.Cache]
) -> None:
    said: list[str] = []
    kept = pinning.PinnedFiles(said.append)
    file = tmp_path / "tool.deb"
    file.write_bytes(content())
    sources = Sources(empty.uri, "", "test")

    def get_it(cache: Path) -> bytes:
        found = fetch([package], cache_dir=cache, sources=lambda: sources, kept=kept)
        return found[package].read_bytes()

    open_cache("reader", shared=registry.reference)
    kept.keep({package: file})  # control: who may not write to it sends nothing
    open_cache("second", shared=registry.reference)
    with pytest.raises(UserError, match="dropped"):
        get_it(tmp_path / "one")
    open_cache("writer", shared=registry.reference, push=True)
    kept.keep({package: file})
    open_cache("third", shared=registry.reference)
    assert get_it(tmp_path / "two") == content() and said == []


# sources.tar.


@pytest.fixture
def two(tmp_path: Path) -> dict[Package, Path]:
    made = {}
    for number, name in enumerate(("tool", "other+more")):
        file = tmp_path / name
        file.write_bytes(content(number, 70_000 + number))
        made[pinned(file.read_bytes(), name)] = file
    return made


def test_sources_are_one_reproducible_archive(two: dict[Package, Path], tmp_path: Path) -> None:
    counted: list[int] = []
    one, again = tmp_path / "one.tar", tmp_path / "again.tar"
    digest = write_archive(two, one, counted.append)
    for file in two.values():
        file.chmod(0o600)
    assert write_archive(dict(reversed(two.items())), again, counted.append) == digest
    assert one.read_bytes() == again.read_bytes() and hashlib.sha256(one.read_bytes()).hexdigest() == digest
    assert sum(counted) == 2 * sum(package.size for package in two)
    # Unpacked, it is a cache.
    with tarfile.open(one) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    for package, file in two.items():
        assert cached_path(package, tmp_path / "unpacked").read_bytes() == file.read_bytes()


def test_mirror_takes_the_archive(two: dict[Package, Path], tmp_path: Path) -> None:
    archive = tmp_path / "sources.tar"
    write_archive(two, archive, lambda size: None)
    found = locked_files(lock_of(*two), two, cache_dir=tmp_path / "cache", mirror=str(archive))
    assert {package: path.read_bytes() for package, path in found.items()} == {
        package: path.read_bytes() for package, path in two.items()
    }
    lacking = pinned(content(5, 1000), "lacking")
    with pytest.raises(UserError, match=f"lacking 1.0 .pinned 2026-01-30.: .* {archive} no longer has it") as caught:
        locked_files(lock_of(lacking), [lacking], cache_dir=tmp_path / "cache", mirror=str(archive))
    assert caught.value.hint == "run: ./doitw packages_lock"


@pytest.mark.parametrize("change", ["content", "longer", "cut"])
def test_an_archive_is_checked_like_a_mirror(two: dict[Package, Path], tmp_path: Path, change: str) -> None:
    package, file = next(iter(two.items()))
    data = {"content": bytes(package.size), "longer": file.read_bytes() + b"x", "cut": file.read_bytes()[:-1]}[change]
    archive = tmp_path / "sources.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(member_name(package))
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    said = "does not match the lock" if change == "content" else "no longer has it"
    with pytest.raises(UserError, match=said):
        locked_files(lock_of(package), [package], cache_dir=tmp_path / "cache", mirror=str(archive))
    assert files_in(tmp_path / "cache") == []


def test_a_cut_archive(two: dict[Package, Path], tmp_path: Path) -> None:
    archive = tmp_path / "sources.tar"
    write_archive(two, archive, lambda size: None)
    with archive.open("r+b") as stream:
        stream.truncate(100_000)
    with pytest.raises(UserError):
        locked_files(lock_of(*two), two, cache_dir=tmp_path / "cache", mirror=str(archive))


def test_other_files_are_no_archive(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"deb http://mirror.invalid/debian trixie main\n" * 100)
    with pytest.raises(UserError, match="not a plain tar archive") as caught:
        Archive(other)
    assert "pack_sources" in caught.value.hint
    with pytest.raises(UserError, match=r"or a file that \./doitw pack_sources made"):
        find_sources(str(tmp_path / "absent.tar"))


def test_a_lock_is_not_refreshed_from_an_archive(two: dict[Package, Path], tmp_path: Path) -> None:
    archive = tmp_path / "sources.tar"
    write_archive(two, archive, lambda size: None)
    asked_for = [PackageSet("test", Path("list.yaml"), "trixie", ("tool",))]
    with pytest.raises(UserError, match="found an archive of pinned packages, expected a mirror"):
        refresh_lock(sets=asked_for, mirror=str(archive), output=tmp_path / "lock")


def test_pack_sources(two: dict[Package, Path], tmp_path: Path) -> None:
    """The whole step, from a lock and a cache; sha256sum checks its output."""
    from sevsnp.packages.lock import dump_lock

    lock, cache = tmp_path / "packages.lock", tmp_path / "cache"
    lock.write_text(dump_lock(lock_of(*two).sets))
    for package, file in two.items():
        cached_path(package, cache).parent.mkdir(parents=True)
        shutil.copy(file, cached_path(package, cache))
    output, checksum = tmp_path / "out" / "sources.tar", tmp_path / "out" / "sources.tar.sha256"
    pack_sources(locks=[lock], cache_dir=str(cache), mirror="", snapshot="", output=output)
    check = ["sha256sum", "--check", "--quiet", checksum.name]
    assert subprocess.run(check, cwd=output.parent, timeout=600).returncode == 0
    output.write_bytes(output.read_bytes()[:-1] + b"x")
    assert subprocess.run(check, cwd=output.parent, timeout=600, capture_output=True).returncode == 1
