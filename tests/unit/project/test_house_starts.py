# SPDX-License-Identifier: Apache-2.0
"""Processes are started in sevsnp.system.command only; its guardian ends them when a run is killed."""

import pytest

from tests.support.house_starts import process_starts
from tests.unit.project.test_house_rules import python_files, relative

# Everything else goes through sevsnp.system.command.spawned, run or run_attached.
MAY_START = {
    "sevsnp/system/command.py": "the one place; and the guardian, which nothing can guard",
    "sevsnp/builds/detached.py": "a build that the user wants to outlive the command; `packages_clean` ends it",
    "sevsnp/guests/detach.py": "a guest that the user wants to outlive the command; `stop` ends it",
    "sevsnp/system/own_mounts.py": "becomes the program that sevsnp.system.command has started it for",
    "sevsnp/keys/taken_key.py": "becomes itself anew, before anything is loaded, and starts nothing",
    "sevsnp/qemu/process.py": "QEMU, in host bundles too, with only the standard library; it dies with its parent",
    "sevsnp/qemu/confine.py": "becomes the QEMU that sevsnp/qemu/process.py starts",
}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import subprocess\nsubprocess.Popen(['x'])", {"subprocess.Popen"}),
        ("import subprocess as s\nstart = s.run", {"subprocess.run"}),
        ("from subprocess import check_output", {"subprocess.check_output"}),
        ("def f():\n    import os\n    if os.fork() == 0: os.execv('x', ['x'])", {"os.fork", "os.execv"}),
        ("import os\nos.spawnvp(0, 'x', ['x'])\nos.posix_spawn('x', [], {})", {"os.spawnvp", "os.posix_spawn"}),
        ("import os\nos.system('x')\nos.popen('x')", {"os.system", "os.popen"}),
        ("import pty\npty.spawn('x')", {"pty.spawn"}),
        ("import multiprocessing.pool", {"multiprocessing.pool"}),
        ("from multiprocessing import Process", {"multiprocessing.Process"}),
        ("from plumbum import local\nlocal['x'].popen()", {"plumbum.local", "popen"}),
        ("import asyncio\nasyncio.create_subprocess_exec('x')", {"asyncio.create_subprocess_exec"}),
        ("from concurrent.futures import ProcessPoolExecutor", {"concurrent.futures.ProcessPoolExecutor"}),
        ("import subprocess\nx: 'subprocess.Popen[bytes]'\nsubprocess.PIPE; subprocess.TimeoutExpired", set()),
        ("import os\nos.path.join('fork')\nos.environ", set()),
        ("from sevsnp.system.command import run\nrun(['x'])", set()),
    ],
)
def test_control_process_starts_are_detected(source: str, found: set[str]) -> None:
    """Control: sources that must be flagged, and sources that must not."""
    assert process_starts(source) == found


def test_processes_are_started_in_one_place() -> None:
    """A process that is started elsewhere lives on when a run is killed: use spawned, run or run_attached."""
    # Another world, without doit: the guest. The tests' own processes are tests/support/processes.py's.
    files = [path for path in python_files() if not relative(path).startswith(("tests/", "initramfs/"))]
    starting = {relative(path): starts for path in files if (starts := process_starts(path.read_text()))}
    assert {name: starts for name, starts in starting.items() if name not in MAY_START} == {}
    assert {"sevsnp/system/command.py", "sevsnp/qemu/process.py", "sevsnp/keys/taken_key.py"} <= starting.keys()
