"""What the tests share: one build of the whole project, in a directory of its own, with keys of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevsnp.key_paths import Keys
from sevsnp.vm.config import VmConfig, read_vm_config

PROJECT = Path(__file__).resolve().parents[1]
BUILD_SECONDS = 1200
GOALS = ("setup_verity", "host_bundle", "build_tools", "create_new_vm")


@dataclass(frozen=True)
class Built:
    """A copy of the project in which everything was built, with the keys in ``config_dir``."""

    project: Path
    config_dir: Path

    @property
    def build(self) -> Path:
        return self.project / "build"

    @property
    def qemu(self) -> Path:
        return self.tools / "qemu-system-x86_64"

    @property
    def tools(self) -> Path:
        """The pinned tools, as wrappers."""
        return self.build / "snp-release" / "bin"

    @property
    def keys(self) -> Keys:
        return Keys.of(self.config_dir)

    def config(self, platform: str) -> VmConfig:
        """The VM config of the integrity workflow for ``snp`` or ``emulated``."""
        suffix = ".emulated.toml" if platform == "emulated" else ".toml"
        return read_vm_config(self.build / "verity" / f"vm-config-verity{suffix}")

    def doit(self, *words: str, check: bool = True, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run doit in the copy with extra environment variables; its output is in the result."""
        return subprocess.run(
            [sys.executable, "-m", "doit", *words],
            cwd=self.project,
            env={**os.environ, "CONFIG_DIR": str(self.config_dir), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=check,
            timeout=BUILD_SECONDS,
        )


def copy_project(target: Path) -> None:
    """Copy what git tracks or would track, as it stands, so that a build there touches nothing here."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        source = PROJECT / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--built", metavar="DIR", help="build in DIR and keep it, so that the next run builds less")


@pytest.fixture(scope="session", autouse=True)
def artefact_cache(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test takes anything from the user's own artefact cache, or leaves anything there."""
    kept = request.config.getoption("--built")
    directory = Path(kept).resolve() / "cache" if kept else tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("SEVSNP_CACHE", str(directory))
    yield directory
    patch.undo()
    if not kept:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, artefact_cache: Path
) -> Iterator[Built]:
    """Everything, built once a session through doit as a user would."""
    kept = request.config.getoption("--built")
    base = Path(kept).resolve() if kept else tmp_path_factory.mktemp("built")
    made = Built(base / "project", base / "config")
    made.project.mkdir(parents=True, exist_ok=True)
    copy_project(made.project)
    result = made.doit(*GOALS, check=False)
    assert result.returncode == 0, result.stdout[-4000:]
    yield made
    if not kept:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def tools(built: Built) -> Path:
    """The directory of the pinned tools."""
    return built.tools
