# SPDX-License-Identifier: Apache-2.0
"""The benchmark of imports without the appliance: how it measures a command's time and memory."""

import sys

import pytest

from sevsnp.bench.image import measured
from sevsnp.errors import UserError

MIB = 1 << 20
# Takes 64 MiB in a process of its own, and ends when its parent reads the end of its output.
CHILD = "data = bytearray(b'x') * (64 << 20); import time; time.sleep(0.3)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}], check=True)"


def test_memory_of_all_processes_counts() -> None:
    alone, with_child = (
        measured([sys.executable, "-c", "import time; time.sleep(0.3)"]),
        measured([sys.executable, "-c", PARENT]),
    )
    assert 0 < alone.memory < 48 * MIB
    assert 64 * MIB < with_child.memory < 160 * MIB
    assert min(alone.seconds, with_child.seconds) >= 0.3


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(UserError, match="exit code 7"):
        measured([sys.executable, "-c", "raise SystemExit(7)"])
