# SPDX-License-Identifier: Apache-2.0
"""A build from source in a real container, with the engine that works here."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.builds import engines, image
from sevsnp.builds.engines import Engine, find_engine, probe
from sevsnp.builds.place import read_plan
from sevsnp.builds.start import Environment, container_name
from sevsnp.builds.state import Phase, look
from sevsnp.errors import UserError
from tests.support.tiny_builds import Tiny
from tests.support.tiny_image import make_rootfs

# Engines share their images and names with the whole machine.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("containers")]
DIGEST = "0" * 52 + "sevsnp-tests"


@pytest.fixture(scope="module")
def engine() -> Engine:
    try:
        return find_engine()
    except UserError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def tiny_image(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rootfs = tmp_path_factory.mktemp("image") / "rootfs.tar"
    make_rootfs(rootfs)
    yield image.load_image(engine, rootfs, DIGEST, 0)
    engine("rmi", "--force", image.image_name(DIGEST))


@pytest.fixture
def tiny(engine: Engine, tiny_image: str, tmp_path: Path) -> Iterator[Tiny]:
    made = Tiny(tmp_path, environment=Environment(tiny_image, engine, tiny_image))
    yield made
    subprocess.run(engine.command("rm", "--force", container_name(made.place)), capture_output=True, check=False)


def test_a_build_in_a_container_has_no_network_and_outlives_this_process(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.script = (
        'cat /proc/net/route /proc/net/dev >"$OUT/network"\n'
        'if touch "$SOURCES/../new"; then exit 9; fi\n'
        'while [ ! -e "$SOURCES/../../go" ]; do sleep 0.05; done\n'
    )
    tiny.build(source="container")
    plan = read_plan(tiny.place)
    assert plan and plan.engine and plan.container and "container" in plan.road
    assert tiny.reached(lambda status: status.steps is not None).phase is Phase.RUNNING
    with pytest.raises(UserError, match="still runs: stage one"):
        tiny.fetch()
    with pytest.raises(UserError, match="a build runs here already"):
        tiny.build(source="container")
    tiny.report()
    assert "[1/2] begins" in capsys.readouterr().out
    (tiny.place.root / "go").touch()
    assert tiny.ended().phase is Phase.DONE
    tiny.fetch()
    assert (tiny.output / "one" / "result").read_text() == "hello\n"
    network = (tiny.output / "one" / "network").read_text()
    assert "lo:" in network and "eth" not in network and len(network.splitlines()) == 4


def test_a_container_that_is_killed_or_removed(tiny: Tiny, engine: Engine) -> None:
    tiny.script = "sleep 300\n"
    tiny.build(source="container")
    name = container_name(tiny.place)
    engine("kill", name)
    status = tiny.ended()
    assert status.phase is Phase.STOPPED and f"container {name} ended, exit code 137" in status.reason
    with pytest.raises(UserError, match="ended early in stage one"):
        tiny.fetch()
    engine("rm", "--force", name)
    assert look(tiny.place).reason == f"container {name} was removed"
    tiny.script = ""
    tiny.build(source="container")
    assert tiny.ended().phase is Phase.DONE


def test_foreign_containers_and_images_with_our_names_are_not_used(tiny: Tiny, engine: Engine, tiny_image: str) -> None:
    name = container_name(tiny.place)
    engine.start("--detach", "--name", name, "--network", "none", tiny_image, "/bin/sleep", "300")
    with pytest.raises(UserError, match=f"{name}: found a container of this name"):
        tiny.build(source="container")
    engine("kill", name)
    engine("rm", "--force", name)
    with pytest.raises(UserError, match="found an image of this name"):
        image.find_image(engine, DIGEST[:12] + "f" * 52)
    assert image.find_image(engine, DIGEST) and not image.find_image(engine, "e" * 64)


def test_clean_removes_container_and_images(tiny: Tiny, engine: Engine, tmp_path: Path) -> None:
    tiny.script = "sleep 300\n"
    tiny.build(source="container")
    tiny.clean()
    assert not tiny.place.root.exists()
    assert container_name(tiny.place) not in engine("ps", "--all", "--format", "{{.Names}}")
    assert not image.find_image(engine, DIGEST)
    rootfs = tmp_path / "rootfs.tar"  # for the tests that follow
    make_rootfs(rootfs)
    image.load_image(engine, rootfs, DIGEST, 0)


def test_an_engine_without_its_daemon_is_not_chosen(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether docker's client is installed or not, the chosen engine is one that runs a container."""
    assert engine in tuple(engines.candidates())
    probe(engine)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent.sock")
    with pytest.raises(UserError, match="no container engine runs here: docker: "):
        find_engine([Engine("docker")])
