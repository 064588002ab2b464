# SPDX-License-Identifier: Apache-2.0
"""FIRMWARE=source: what is made with it, that its bytes are the same everywhere, and a guest that boots with it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevsnp.firmware.gate import find_roads
from sevsnp.firmware.known import OURS, OURS_FROM_SOURCE
from sevsnp.firmware.volumes import leaves
from sevsnp.system.files import sha256_file
from tests.conftest import PROJECT, Built
from tests.support.copies import copy_built
from tests.support.odd_builds import made_oddly
from tests.support.shared_guests import attested, started

FROM_SOURCE, FROM_BUILD = "build/firmware/source/OVMF.fd", "build/firmware/OVMF.fd"
CONFIGS = ("_verity_config", "_verity_config_emulated", "_luks_config", "_luks_config_emulated")
PROGRAM = "section 0x10"
GRAPH = """\
import json
import dodo
from doit.loader import load_tasks
found = {task.name: [[*task.file_dep], task.targets] for task in load_tasks(vars(dodo), allow_delayed=True)}
print(json.dumps(found))
"""


def graph(**settings: str) -> Any:
    """Inputs and outputs of each task, with these settings."""
    done = subprocess.run(
        [sys.executable, "-c", GRAPH],
        cwd=PROJECT,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_the_value_source_selects_the_firmware_from_source(tmp_path: Path) -> None:
    """Every VM config then has this firmware. A path is a path, ./source too."""
    plain, source = graph(FIRMWARE=""), graph(FIRMWARE="source")
    assert plain["_firmware"][1] == [FROM_BUILD] and not {"_compiler", "_edk2"} & {*plain}
    assert source["_firmware"][1] == [FROM_SOURCE]
    fetched = {*source["_compiler"][1], *source["_edk2"][1]}
    assert fetched == {"build/debs/compiler/packages.json", "build/edk2/packages.json"}
    assert fetched <= {*source["_firmware"][0]}
    assert "templates/firmware/changes.yaml" in source["_firmware"][0]
    for name in CONFIGS:
        assert FROM_BUILD in plain[name][0] and FROM_SOURCE not in plain[name][0]
        assert FROM_SOURCE in source[name][0] and FROM_BUILD not in source[name][0]
    assert "source" in graph(FIRMWARE="./source")["_verity_config"][0]
    assert f"{tmp_path}/x.fd" in graph(FIRMWARE=f"{tmp_path}/x.fd")["_verity_config"][0]


@pytest.fixture(scope="module")
def copy(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """The built project with everything made again for the firmware from source."""
    directory = tmp_path_factory.mktemp("source-firmware")
    copied = copy_built(built, directory / "project")
    copied.doit("setup_verity", "host_bundle", "FIRMWARE=source")
    yield copied
    shutil.rmtree(directory)


@pytest.mark.full
def test_the_bytes_are_the_pinned_ones(copy: Built) -> None:
    made = copy.project / FROM_SOURCE
    assert sha256_file(made) == OURS_FROM_SOURCE
    assert find_roads(made.read_bytes()) == ()
    for place in (copy.build / "verity", copy.build / "host-bundle"):
        texts = [path.read_text() for path in place.glob("*.toml")]
        assert texts and all(OURS_FROM_SOURCE in text and OURS not in text for text in texts)


@pytest.mark.full
def test_the_firmware_from_source_is_much_smaller(copy: Built) -> None:
    """The number of its programs, and the bytes of their code, compared with Debian's build."""

    def programs(path: str) -> list[int]:
        found = leaves((copy.project / path).read_bytes())
        return [len(leaf.data) for leaf in found if leaf.place.endswith(PROGRAM)]

    source, build = programs(FROM_SOURCE), programs(FROM_BUILD)
    assert 0 < len(source) < len(build) / 2 and sum(source) < sum(build) / 3


# At the paths that the stage of packages_build has in its container.
MAKE = """\
import sys
from pathlib import Path
from sevsnp.images import source_firmware
source_firmware._TREE, source_firmware._WORK = "sources/ovmf", "work/ovmf"
source_firmware._MADE = "out/ovmf/OVMF.fd"
output, sources, debs, templates = map(Path, sys.argv[1:])
source_firmware.make_source_firmware(
    sources=sources, debs=debs, changes=templates / "firmware", script=templates / "packages/ovmf.sh", output=output,
    jobs=1,
)
"""


@pytest.mark.full
def test_another_directory_gives_the_same_bytes(copy: Built) -> None:
    """The second build also has another user without rights, umask, time zone, locale, and number of compilers."""
    made = made_oddly(MAKE, copy.build / "edk2", copy.build / "debs/compiler", PROJECT / "templates")
    assert made == (copy.project / FROM_SOURCE).read_bytes()


@pytest.mark.full
@pytest.mark.boot
def test_a_verified_guest_boots_with_the_firmware_from_source(copy: Built, tmp_path: Path) -> None:
    """It boots to its login; the verdict is about a launch digest with this firmware."""
    with started(copy, copy.config("emulated"), tmp_path / "state") as running:
        guest = attested(running)
        assert "openend2e-sevsnp" in guest.ssh("sudo dmesg | grep -i 'efi: EFI v'")
        assert guest.ssh("ls /sys/class/dmi 2>/dev/null || true").strip() == ""
