# SPDX-License-Identifier: Apache-2.0
"""Runs a bundle's ./run for the doit of test_killed_runs.py: as e2e does, or without sevsnp.system.command."""

import subprocess
from pathlib import Path

from sevsnp.e2e.guest import hosted
from sevsnp.system.command import temporary_directory


def as_e2e(*, bundle: Path, qemu: Path, arguments: list[str]) -> None:
    """The product's way."""
    with temporary_directory("sevsnp-host-"), hosted(bundle, qemu, arguments) as process:
        process.wait()


def as_before(*, bundle: Path, qemu: Path, arguments: list[str]) -> None:
    """The control: only its own context manager knows the process."""
    with subprocess.Popen([bundle / "run", *arguments], cwd=bundle, start_new_session=True) as process:
        process.wait()
