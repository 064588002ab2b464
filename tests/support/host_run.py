# SPDX-License-Identifier: Apache-2.0
"""What the doit of test_killed_runs.py runs: a bundle's ./run, started as e2e does, or past sevsnp.system.command."""

import subprocess
from pathlib import Path

from sevsnp.e2e.guest import hosted
from sevsnp.system.command import temporary_directory


def as_e2e(*, bundle: Path, qemu: Path, arguments: list[str]) -> None:
    """The way of the product."""
    with temporary_directory("sevsnp-host-"), hosted(bundle, qemu, arguments) as process:
        process.wait()


def as_before(*, bundle: Path, qemu: Path, arguments: list[str]) -> None:
    """The control: a process that nothing but its own context manager knows."""
    with subprocess.Popen([bundle / "run", *arguments], cwd=bundle, start_new_session=True) as process:
        process.wait()
