# SPDX-License-Identifier: Apache-2.0
"""The tasks that build from source, as a user calls them; with --full the real stages, up to configure."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import copy_project
from tests.pipeline.test_cli import doit
from tests.support.waiting import wait_until

# Seconds. A kernel's source is large, and its configuration is compiled.
CONFIGURE = 3000.0


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    target = tmp_path_factory.mktemp("clone") / "project"
    copy_project(target)
    yield target
    doit("packages_clean", cwd=target)
    shutil.rmtree(target)


def test_status_and_fetch_say_that_no_build_was_started(clone: Path) -> None:
    status = doit("packages_status", cwd=clone)
    assert status.returncode == 0 and "nothing was started; run: ./doitw packages_build" in status.stdout
    fetched = doit("packages_fetch", cwd=clone)
    assert fetched.returncode == 1 and "build/from-source: nothing was started" in fetched.stdout
    assert doit("packages_clean", cwd=clone).returncode == 0
    assert not (clone / "build" / "from-source").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "PACKAGES_SOURCE=debian: expected container or local"),
        (("PACKAGES_SOURCE=local", "--only", "bios"), "there is no stage 'bios', expected some of ovmf, qemu"),
        (("PACKAGES_SOURCE=local", "COMPILER_CLUSTER=distcc"), "found no DISTCC_HOSTS"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_fetched(clone: Path, words: tuple[str, ...], message: str) -> None:
    done = doit("packages_build", *words, cwd=clone)
    assert done.returncode == 1 and message in done.stdout and "Traceback" not in done.stdout
    assert not (clone / "build" / "from-source").exists()


@pytest.mark.full  # makes the image; unpacks the sources of QEMU and of the kernel, and compiles what configures them
@pytest.mark.parametrize("road", ["container", "local"])
def test_packages_are_built_up_to_configure(clone: Path, road: str) -> None:
    words = [f"PACKAGES_SOURCE={road}", "--only", "qemu,guest-kernel,host-kernel", "--configure"]
    argv = [sys.executable, "-m", "doit", "packages_build", *words]
    started = subprocess.run(argv, cwd=clone, capture_output=True, text=True, timeout=CONFIGURE, check=False)
    if re.search("no container engine runs here|not installed here", started.stdout):
        pytest.skip(started.stdout)
    assert started.returncode == 0, started.stdout
    state = clone / "build" / "from-source" / "state.json"
    try:
        wait_until(lambda: '"running"' not in state.read_text(), state.read_text, CONFIGURE)
        said = doit("packages_status", cwd=clone).stdout
        assert f"{road} build of stable sources" in said and "configured only" in said, said
        assert "the build was only configured" in doit("packages_fetch", cwd=clone).stdout
    finally:
        assert doit("packages_clean", cwd=clone).returncode == 0
