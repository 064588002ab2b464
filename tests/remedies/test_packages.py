# SPDX-License-Identifier: Apache-2.0
"""Hints about packages: lists and the lock, mirrors, downloads; against an archive that is made here."""

from pathlib import Path

import pytest

from sevsnp.firmware.released import take_firmware
from sevsnp.packages import sources
from sevsnp.packages.fetch import fetch
from sevsnp.packages.lock import Package, read_lock
from sevsnp.packages.pipeline import packages_lock, refresh_lock
from sevsnp.packages.release_archive import FIRMWARE, unpack_release
from sevsnp.packages.release_file import find_release
from sevsnp.packages.resolve import PrivateApt
from sevsnp.packages.sources import Sources, find_sources
from sevsnp.packages.steps import pack_sources
from sevsnp.packages.tree import make_release
from tests.pipeline.test_packages import archive, from_server, lock_sets, make_set, no_proxy, served
from tests.pipeline.test_repin import Locked, archives, locked
from tests.support.debian_repository import Repository, Server, as_package
from tests.support.release_tree import archive_of, members_of, small_release, written
from tests.support.table import Told, remedies

__all__ = ["archive", "archives", "locked", "no_proxy", "served"]
Archive = tuple[Repository, Repository]


@remedies("sevsnp.packages.lock", "run: ./doitw packages_lock")
def test_a_lock_that_is_older_than_its_lists(told: Told, archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "packages.lock"
    wanted = [make_set("tools", "tool", "scripts")]

    def lock() -> None:
        """What the task packages_lock does, with another archive and its key."""
        lock_sets(archive, path, *wanted)

    told.mended(lambda: read_lock(path), lock)
    lock_sets(archive, path, make_set("tools", "tool"))
    told.mended(lambda: read_lock(path).check(wanted), lock)
    path.write_text("damaged")
    told.mended(lambda: read_lock(path), lock)


@remedies(
    "sevsnp.packages.resolve",
    "correct the list in {}, or choose another MIRROR",
    "name the package that provides it",
    "choose another MIRROR; for an expired archive or a missing key, see apt-secure(8)",
)
def test_wrong_names_in_lists_and_unusable_mirrors(told: Told, archive: Archive, tmp_path: Path) -> None:
    def lock(name: str) -> None:
        lock_sets(archive, tmp_path / "packages.lock", make_set("tools", name))

    told.instead(lambda: lock("no-such-thing"), lambda: lock("tool"))
    told.instead(lambda: lock("service"), lambda: lock("provider"))
    main, _ = archive

    def lock_from(uri: str) -> None:
        lists = [make_set("tools", "tool")]
        found = Sources(uri, "", "test")
        packages_lock(sets=lists, sources=found, output=tmp_path / "packages.lock", keyring=main.keyring)

    told.instead(lambda: lock_from(f"file:{tmp_path}"), lambda: lock_from(main.uri))


@remedies("sevsnp.packages.sources", "set MIRROR to the URI of a Debian mirror")
def test_no_mirror_is_known(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a machine whose apt has no source, and whose mmdebstrap names none.
    monkeypatch.setattr(sources, "_from_host", lambda: ("", ""))
    monkeypatch.setattr(sources, "run", lambda *_, **__: b"")
    told.instead(sources.find_sources, lambda: sources.find_sources("http://127.0.0.1:9/debian"))


@remedies("sevsnp.packages.download", "check the network, the proxy settings or MIRROR", "set CACHE_DIR")
@remedies("sevsnp.packages.download", "try again; if it fails again, choose another MIRROR")
def test_downloads(told: Told, served: tuple[Server, Package, Path], tmp_path: Path) -> None:
    server, package, cache = served
    nobody = Sources("http://127.0.0.1:9/debian", "", "test")
    told.instead(
        lambda: fetch([package], cache_dir=cache, sources=lambda: nobody),
        lambda: fetch([package], cache_dir=cache, sources=from_server(server)),
    )
    told.instead(  # nobody can make anything in /proc
        lambda: fetch([package], cache_dir=Path("/proc/cache"), sources=from_server(server)),
        lambda: fetch([package], cache_dir=tmp_path / "cache", sources=from_server(server)),
    )
    other = tmp_path / "other"
    server.answers[package.deb] = server.answers[package.deb.replace("+", "%2B")] = b"damaged"
    told.mended(lambda: fetch([package], cache_dir=other, sources=from_server(server)), server.answers.clear)


@remedies("sevsnp.packages.tree", "name libc6, or a package that depends on it")
def test_tools_without_a_loader(told: Told, archive: Archive, tmp_path: Path) -> None:
    main, _ = archive
    debs = {name: next(main.root.rglob(f"{name}_*.deb")) for name in ("scripts", "lib+a")}

    def make(*names: str) -> None:
        tools = {as_package(debs[name]): debs[name] for name in names}
        make_release(tools=tools, firmware={}, kernels={}, output=tmp_path / "release")

    told.instead(lambda: make("scripts"), lambda: make("scripts", "lib+a"))  # which has it in this archive


@remedies("sevsnp.packages.repin", "expected a package")
def test_a_name_that_no_list_has(told: Told, locked: Locked) -> None:
    told.instead(lambda: locked.refresh(1, only="tol"), lambda: locked.refresh(1, only="tool"))


@remedies("sevsnp.packages.resolve", "choose another MIRROR")
def test_an_archive_without_a_date(told: Told, tmp_path: Path) -> None:
    def date(text: str) -> None:
        apt = PrivateApt(tmp_path, (("debian", "copy:/archive"),))
        (tmp_path / "state" / "lists").mkdir(parents=True, exist_ok=True)
        (tmp_path / "state" / "lists" / "archive_InRelease").write_text(text)
        apt.date()

    told.instead(lambda: date("Suite: x\n"), lambda: date("Suite: x\nDate: Sat, 09 Mar 2024 16:00:00 UTC\n"))


@remedies("sevsnp.packages.archive", "give a file made by ./doitw pack_sources, or the URI of a mirror")
@remedies("sevsnp.packages.steps", "to take packages from it: ./doitw e2e MIRROR={}")
@remedies("sevsnp.packages.pipeline", "give the URI of a Debian mirror, or leave MIRROR empty")
def test_archives_of_pinned_packages(
    told: Told, archive: Archive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, _ = archive
    lock, wanted = tmp_path / "packages.lock", [make_set("tools", "tool")]
    lock_sets(archive, lock, *wanted)
    packed, other = tmp_path / "sources.tar", tmp_path / "other"
    other.write_text("no archive\n" * 1000)

    def pack() -> None:
        """What the task pack_sources does, with another lock."""
        pack_sources(locks=[lock], cache_dir=str(tmp_path / "cache"), mirror=main.uri, snapshot="", output=packed)

    pack()
    taken = told.read(capsys.readouterr().out).rpartition("MIRROR=")[2]
    told.instead(lambda: find_sources(str(other)), lambda: find_sources(taken))
    find_sources(main.uri)
    told.instead(
        lambda: refresh_lock(sets=wanted, mirror=str(packed), output=lock), lambda: lock_sets(archive, lock, *wanted)
    )


@remedies("sevsnp.packages.by_digest", "check the network, the proxy settings or {}")
def test_a_release_that_cannot_be_fetched(told: Told, served: tuple[Server, Package, Path]) -> None:
    server, package, cache = served
    told.instead(
        lambda: find_release("http://127.0.0.1:9/a.tar.gz", package.sha256, cache),
        lambda: find_release(f"{server.uri}/{package.deb.replace('+', '%2B')}", package.sha256, cache),
    )


@pytest.mark.full  # it makes build/snp-release twice
@remedies(
    "sevsnp.packages.release_file",
    "name an archive and its digest: "
    "./doitw packages PACKAGES_SOURCE=release PACKAGES_RELEASE=FILE PACKAGES_SHA256=DIGEST",
)
@remedies("sevsnp.packages.release_archive", "make the archive again where it was built: ./doitw pack_release")
@remedies("sevsnp.packages.pack_release", "to take build/snp-release from it: ./doitw packages {}")
@remedies(
    "sevsnp.firmware.released",
    "take build/snp-release from packages.lock: ./doitw packages PACKAGES_SOURCE=debian",
)
def test_releases(told: Told, clone: Path, tmp_path: Path) -> None:
    """The release is a small one without a real firmware; at the end the tree of the lock is back."""
    tree = clone / "build/snp-release"
    archive, digest = written(tmp_path / "a.tar.gz", archive_of(members_of(small_release(tmp_path / "small"))))
    damaged, of_damaged = written(tmp_path / "b.tar.gz", archive.read_bytes(), lambda data: data[:-100])
    told.obey(told.hint(lambda: told.doitw("packages", "PACKAGES_SOURCE=release")), FILE=archive, DIGEST=digest)
    settings = {"PACKAGES_SOURCE": "release", "PACKAGES_RELEASE": str(archive), "PACKAGES_SHA256": digest}
    told.variables |= settings
    told.obey(
        told.hint(lambda: unpack_release(archive=damaged, sha256=of_damaged, output=tmp_path / "new")),
    )
    said = told.doitw("pack_release").stdout
    for name in settings:
        del told.variables[name]
    told.obey(told.read(said))

    def take() -> None:
        take_firmware(stock=tree / FIRMWARE, python=tree / "bin/python3", output=tmp_path / "OVMF.fd")

    told.mends(take)
