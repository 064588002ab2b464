# SPDX-License-Identifier: Apache-2.0
"""Hints about builds from source: container engines, sources, and builds that are running or not finished.

Engines and apt-get are stand-ins on PATH that fail as the real ones do, until they have what the hint asks for.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from sevsnp.builds import image, steps
from sevsnp.builds.engines import LABEL, Engine, find_engine
from sevsnp.builds.git import resolve_commit
from sevsnp.builds.pins import GitSource
from sevsnp.builds.place import Place
from sevsnp.builds.start import free_name
from sevsnp.packages.built import RECORD
from sevsnp.packages.sets import read_sets
from sevsnp.system import command
from tests.pipeline.test_packages import archive, lock_sets
from tests.support.debian_repository import Repository
from tests.support.table import Told, remedies
from tests.support.tiny_builds import Tiny
from tests.unit.builds.test_engines import CGROUPS, LIMITS, NO_MAPS, fails, stand_in

__all__ = ["archive"]
PROJECT = Path(__file__).resolve().parents[2]
# Makes each program, and says that its package is installed.
APT_GET = """here=${0%/*}
shift
for name; do
    printf '#!/bin/sh\\nexit 0\\n' >"$here/$name" && /bin/chmod 755 "$here/$name"
    echo "installed|$name|" >>"$here/installed"
done"""
# Has a thing of another's under every name, until it is removed.
FOREIGN = f"""here=${{0%/*}}
case $* in
*inspect*) [ ! -e "$here/removed" ] || {{ echo "Error: no such thing" >&2; exit 1; }}; echo "{LABEL} of another" ;;
*rm*) : >"$here/removed" ;;
esac"""


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Tiny]:
    made = Tiny(tmp_path)
    yield made
    made.end()


@pytest.fixture
def bare(tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with apt-get and nothing else, for this process and for what the user types."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sh").symlink_to("/bin/sh")
    stand_in(folder, "apt-get", APT_GET)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(command, "_SBIN", ())
    told.variables["PATH"] = str(folder)
    return folder


@remedies("sevsnp.builds.engines", "run as root: apt-get install podman runc")
def test_no_engine(told: Told, bare: Path) -> None:
    told.mends(find_engine)


@remedies("sevsnp.builds.engines", "run as root: apt-get install runc", "run as root: apt-get install uidmap")
def test_podman_lacks_a_program(told: Told, bare: Path) -> None:
    for program, said in (("runc", CGROUPS), ("uidmap", NO_MAPS)):
        stand_in(bare, "podman", f'[ -e "${{0%/*}}/{program}" ] && exit 0\n{fails(said)}')
        told.mends(find_engine)


@remedies("sevsnp.builds.engines", "build without a container: ./doitw packages_build PACKAGES_SOURCE=local")
def test_no_engine_can_run(told: Told, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "podman", fails(LIMITS))
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        told.hint(find_engine)
    tiny.build(source="local")


@remedies("sevsnp.builds.image", "remove it: {}")
@remedies("sevsnp.builds.start", "remove it: {}")
def test_names_that_other_images_and_containers_have(told: Told, bare: Path, tmp_path: Path) -> None:
    stand_in(bare, "docker", FOREIGN)
    told.mends(lambda: image.find_image(Engine("docker"), "0" * 64))
    (bare / "removed").unlink()
    told.mends(lambda: free_name(Engine("docker"), "sevsnp-packages-x", Place(tmp_path)))


@remedies("sevsnp.builds.image", "run as root: apt-get install {}")
@remedies("sevsnp.builds.image", "build in a container: ./doitw packages_build PACKAGES_SOURCE=container")
def test_packages_that_this_machine_lacks(told: Told, bare: Path, tiny: Tiny, tmp_path: Path) -> None:
    stand_in(bare, "gcc", "echo gcc 1.0")
    tiny.environment = None

    def check() -> None:
        image.check_machine(tiny.table, ["ccache"], tmp_path / "listing.yaml")

    def container() -> None:
        stand_in(bare, "docker", "exit 0")
        find_engine()

    told.instead(check, container)
    (bare / "installed").touch()
    stand_in(bare, "dpkg-query", 'while read -r line; do echo "$line"; done <"${0%/*}/installed"')
    told.mends(check)


@remedies("sevsnp.builds.image", "pin them again: .venv/bin/python -m sevsnp.builds.image")
def test_an_image_s_lock_that_is_older_than_its_list(
    told: Told, archive: tuple[Repository, Repository], tmp_path: Path
) -> None:
    listing, lock = tmp_path / "list.yaml", tmp_path / "list.lock"
    listing.write_text("common: {suite: trixie, packages: [tool]}\n")
    lock_sets(archive, lock, *read_sets(listing))
    listing.write_text("common: {suite: trixie, packages: [tool, scripts]}\n")
    told.mended(lambda: image.pinned(listing, lock), lambda: lock_sets(archive, lock, *read_sets(listing)))


@remedies("sevsnp.builds.steps", "next: ./doitw packages_build PACKAGES_SOURCE=container")
def test_the_next_step_after_an_image_is_made(
    told: Told, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, lock = PROJECT / image.LIST, PROJECT / image.LOCK
    stand_in(tmp_path, "docker", f"echo {image.image_digest(image.pinned(listing, lock))}")
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(tmp_path))
        steps.make_image(
            source="container", pins=Path(), listing=listing, lock=lock, cache_dir="", mirror="", snapshot="off"
        )
    told.read(capsys.readouterr().out)
    tiny.build(source="container")


@remedies(
    "sevsnp.builds.git", "check the network and the proxy settings, or build the pinned sources: PACKAGES_PIN=stable"
)
def test_a_repository_that_does_not_answer(told: Told, tiny: Tiny, tmp_path: Path) -> None:
    nobody = GitSource("x", f"file://{tmp_path}/nobody", tag="v1")
    told.instead(lambda: resolve_commit(nobody, "today", date(2026, 1, 1)), lambda: tiny.build(pin="stable"))


@remedies("sevsnp.builds.sources", "pin versions in {} that a mirror has{}")
def test_a_source_that_the_mirror_dropped(told: Told, tiny: Tiny) -> None:
    pins = tiny.tmp / "sources.yaml"
    pins.write_text(pins.read_text().replace("hello_1", "hello_0"))
    told.mended(tiny.build, tiny.write_pins)


@remedies(
    "sevsnp.builds.recipe",
    "use the other cache: COMPILER_CACHE=ccache",
    "name them, as: DISTCC_HOSTS='build1/8 build2/8'",
)
def test_settings_of_compiler_caches_and_clusters(told: Told, tiny: Tiny) -> None:
    told.hint(lambda: tiny.build(cache="sccache", cluster="icecc"))
    tiny.build(cache="ccache", cluster="icecc")
    tiny.ended()
    told.hint(lambda: tiny.build(cluster="distcc"))
    tiny.build(cluster="distcc", hosts="build1/8 build2/8")


@remedies("sevsnp.builds.start", "see: df -h {}")
def test_a_disk_that_is_too_small(told: Told, tiny: Tiny) -> None:
    tiny.room = 1 << 60
    told.obey(told.hint(tiny.build))
    tiny.room = 1  # another disk
    tiny.build()


@remedies("sevsnp.builds.place", "see how far it is: ./doitw packages_status")
@remedies(
    "sevsnp.builds.steps",
    "when it is done: ./doitw packages_fetch",
    "next: ./doitw packages_fetch",
    "to use it: ./doitw packages PACKAGES_SOURCE={}",
)
def test_a_build_that_runs(told: Told, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.script = tiny.waits
    tiny.build()
    said = capsys.readouterr().out
    told.instead(tiny.build, tiny.report)
    told.instead(tiny.fetch, tiny.report)
    tiny.go()
    tiny.ended()
    told.read(said.splitlines()[-1])
    tiny.fetch()
    told.read(capsys.readouterr().out)
    assert (tiny.output / RECORD).exists()  # what `packages` takes
    tiny.report()
    told.read(capsys.readouterr().out)
    tiny.fetch()


@remedies("sevsnp.builds.place", "remove it, and build again: ./doitw packages_clean")
def test_a_damaged_record(told: Told, tiny: Tiny) -> None:
    tiny.build()
    tiny.ended()
    tiny.place.plan.write_text("{")
    told.mended(tiny.build, tiny.clean)
    tiny.ended()
    (tiny.place.out / "one" / "result").unlink()

    def again() -> None:
        tiny.clean()
        tiny.build()
        tiny.ended()

    told.mended(tiny.fetch, again)


@remedies("sevsnp.builds.steps", "run: ./doitw packages_build PACKAGES_SOURCE={}")
@remedies("sevsnp.builds.steps", "name one: ./doitw packages_build PACKAGES_SOURCE={}")
def test_nothing_to_fetch(told: Told, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    told.instead(lambda: tiny.build(source="debian"), tiny.clean)
    tiny.report()
    told.read(capsys.readouterr().out)

    def build() -> None:
        tiny.build()
        tiny.ended()

    told.mended(tiny.fetch, build)
    tiny.build(configure=True)
    tiny.ended()
    told.mended(tiny.fetch, build)
    tiny.script = "exit 1\n"
    build()
    tiny.script = ""
    told.mended(tiny.fetch, build)
