# SPDX-License-Identifier: Apache-2.0
"""Compiles each test file in one of the test processes, which all collect all files."""

import contextlib
import importlib
from pathlib import Path

import pytest


def load_share(config: pytest.Config) -> None:
    """Load this process's share of the test files, so that every other process finds their byte code.

    In a clean clone all processes would compile all files at the same time, which takes three times as long as the
    collection itself. A file that cannot be loaded is left to the collection, which says why.
    """
    worker = getattr(config, "workerinput", None)
    if worker is None:
        return
    directories = [path for path in map(Path, config.args) if path.is_dir()]
    files = sorted({file.resolve() for path in directories for file in path.rglob("test_*.py")})
    for file in files[int(worker["workerid"].removeprefix("gw")) :: worker["workercount"]]:
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(file.relative_to(config.rootpath).with_suffix("").parts))
