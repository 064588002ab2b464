# SPDX-License-Identifier: Apache-2.0
"""How compilers are called: compiler caches and clusters set up by the recipe; stand-ins record their input."""

import subprocess
from pathlib import Path

import pytest

from sevsnp.builds.place import Place
from sevsnp.builds.recipe import Compilers, real_compilers, stage_key, write_recipe
from sevsnp.builds.stages import STAGES, Stage
from sevsnp.errors import UserError
from sevsnp.system.template import find_template

# A cache, a cluster's client or a compiler: says what it was started as, and starts what stands behind.
TELLS = """#!/bin/sh
echo "$(basename "$0") $*"
env | grep -E '^(CCACHE|SCCACHE|DISTCC|ICECC|JOBS|HOME)' | sort
case $(basename "$0") in gcc) ;; *) exec "$@" ;; esac
"""
STAGE = Stage("one", "run.sh", (), "", (), 1, 1)


def compile_with(tmp_path: Path, compilers: Compilers) -> list[str]:
    """What `gcc -c x.c` leads to in a stage."""
    place, programs = Place(tmp_path / "a build"), tmp_path / "programs"
    programs.mkdir()
    for name in ("ccache", "sccache", "distcc", "icecc", "gcc"):
        (programs / name).write_text(TELLS)
        (programs / name).chmod(0o755)
    write_recipe(
        place,
        [STAGE],
        {"one": "key"},
        compilers,
        configure_only=False,
        cache="/a cache",
        real={"gcc": str(programs / "gcc")},
    )
    script = f'build="{place.root}"; . "$build/recipe/env.sh"; gcc -c x.c'
    said = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": f"{programs}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    return said.stdout.replace(str(place.root), "BUILD").replace(str(programs), "BIN").splitlines()


PLAIN = ["HOME=BUILD/home", "JOBS=4"]


def test_the_compiler_alone(tmp_path: Path) -> None:
    assert compile_with(tmp_path, Compilers(4)) == ["gcc -c x.c", *PLAIN]


def test_ccache(tmp_path: Path) -> None:
    said = compile_with(tmp_path, Compilers(4, "ccache"))
    assert said[0] == "ccache BIN/gcc -c x.c" and "gcc -c x.c" in said
    assert {"CCACHE_DIR=/a cache/ccache", "CCACHE_BASEDIR=BUILD"} <= set(said)
    assert not any("PREFIX" in line for line in said)


def test_sccache(tmp_path: Path) -> None:
    said = compile_with(tmp_path, Compilers(4, "sccache"))
    assert said[0] == "sccache BIN/gcc -c x.c" and "SCCACHE_DIR=/a cache/sccache" in said


@pytest.mark.parametrize("cluster", ["distcc", "icecc"])
def test_clusters(tmp_path: Path, cluster: str) -> None:
    said = compile_with(tmp_path, Compilers(4, "off", cluster, "build1/8,lzo build2"))
    assert said[0] == f"{cluster} BIN/gcc -c x.c"
    assert ("DISTCC_HOSTS=build1/8,lzo build2" in said) is (cluster == "distcc")


@pytest.mark.parametrize("cluster", ["distcc", "icecc"])
def test_a_cache_before_a_cluster(tmp_path: Path, cluster: str) -> None:
    """ccache starts the cluster's client itself for files that it does not have."""
    said = compile_with(tmp_path, Compilers(4, "ccache", cluster, "build1"))
    assert said[0] == "ccache BIN/gcc -c x.c" and f"CCACHE_PREFIX={cluster}" in said


def test_settings_that_cannot_be_combined_are_refused() -> None:
    with pytest.raises(UserError, match="COMPILER_CACHE=sccache: it cannot hand compilations to distcc"):
        Compilers(4, "sccache", "distcc", "build1").check()
    with pytest.raises(UserError, match="COMPILER_CLUSTER=distcc: found no DISTCC_HOSTS"):
        Compilers(4, "off", "distcc", " ").check()
    for good in (Compilers(4), Compilers(4, "sccache"), Compilers(4, "ccache", "icecc")):
        good.check()


def test_only_a_cluster_needs_the_network() -> None:
    assert [Compilers(1, "ccache", cluster).network for cluster in ("off", "distcc", "icecc")] == [False, True, True]


def test_this_machine_s_compilers() -> None:
    found = real_compilers(local=True)
    assert Path(found["gcc"]).is_file() and real_compilers(local=False)["gcc"] == "/usr/bin/gcc"


def test_the_key_of_a_stage() -> None:
    """Everything that changes the result changes the key; nothing else does."""

    def key(stage: Stage = STAGE, digests: object = "1", only: bool = False, environment: str = "image") -> str:
        return stage_key(stage, {"source": digests}, configure_only=only, environment=environment)

    others = [
        key(digests="2"),
        key(only=True),
        key(environment="other"),
        key(Stage("two", "run.sh", (), "", (), 1, 1)),
        key(Stage("one", "qemu.sh", (), "", (), 1, 1)),
        key(Stage("one", "run.sh", (), "", (), 1, 1, {"FLAVOUR": "guest"})),
        key(Stage("one", "run.sh", (), "", (), 1, 1, prepare="sevsnp.firmware.source:prepare_tree")),
        key(Stage("one", "run.sh", (), "", (), 1, 1, templates={"changes": "firmware/changes.yaml"})),
    ]
    assert len({key(), *others}) == len(others) + 1
    assert key() == key(Stage("one", "run.sh", (), "", (), 99, 99))


def test_the_scripts_are_valid_shell(tmp_path: Path) -> None:
    for stage in STAGES:
        script = find_template(f"packages/{stage.script}")
        if script.exists():  # that of the firmware comes with it
            subprocess.run(["bash", "-n", script], check=True)
    subprocess.run(["sh", "-n", find_template("packages/run.sh")], check=True)
