# SPDX-License-Identifier: Apache-2.0
"""What the tests of the hints share: a checkout in which everything is built, and the hints that they were given."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Built, copy_project
from tests.pipeline.test_full_disk import namespace
from tests.support.copies import copy_built
from tests.support.luks_ground import make_venv
from tests.support.table import Told

__all__ = ["namespace"]


@pytest.fixture
def told(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Told]:
    """The rows of this test; at its end each of them has been said."""
    rows = request.function.__dict__["rows"]
    kept = {name: text for name, text in os.environ.items() if name not in ("LUKS_KEY", "SEVSNP_LUKS_KEY_FD")}
    told = Told(rows, tmp_path, kept)
    failed = request.session.testsfailed
    yield told
    if request.session.testsfailed == failed:
        assert set(rows) == told.seen, f"never said: {set(rows) - told.seen}"


@pytest.fixture(scope="session")
def shared_checkout(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    base = tmp_path_factory.mktemp("a checkout")  # with a blank, as users have them
    copy = copy_built(built, base / "project")
    make_venv(copy.project)
    yield copy
    shutil.rmtree(base)


@pytest.fixture
def checkout(shared_checkout: Built, told: Told) -> Built:
    """All is built in it, and ./doitw runs there; the user stands in it. What a test breaks, it mends."""
    told.cwd = shared_checkout.project
    told.variables["CONFIG_DIR"] = str(shared_checkout.config_dir)
    return shared_checkout


@pytest.fixture(scope="session")
def shared_clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout in which nothing is built."""
    base = tmp_path_factory.mktemp("a clone")
    copy_project(base / "project")
    make_venv(base / "project")
    yield base / "project"
    shutil.rmtree(base)


@pytest.fixture
def clone(shared_clone: Path, told: Told, tmp_path: Path) -> Path:
    told.cwd = shared_clone
    told.variables |= {"CONFIG_DIR": str(tmp_path / "config"), "SEVSNP_CACHE": str(tmp_path / "cache")}
    return shared_clone
