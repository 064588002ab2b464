# SPDX-License-Identifier: Apache-2.0
"""`run_… DETACH=yes`: runs the same command in a session of its own, without a terminal; it outlives this process."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.host.console import printable_lines, read_console
from sevsnp.host.run import another_guest, words_of
from sevsnp.host.state import check_free, running
from sevsnp.keys.luks_key import DESCRIPTOR_VARIABLE
from sevsnp.system import progress, record

_SECONDS = 120.0


def run_detached(*, task: str, words: Sequence[str], state: Path, name: str, variable: str) -> None:
    """Start ``task`` with the settings ``words`` for the guest ``name``, and return when the guest runs.

    The environment ``variable`` tells the new process that it is detached. Its output goes to ``run.log`` in its
    state directory. Raises UserError if it ends before the guest runs.
    """
    check_free(state, another_guest(task, name))
    state.mkdir(parents=True, exist_ok=True)
    log = state / "run.log"
    variables = {each: text for each, text in os.environ.items() if each not in (DESCRIPTOR_VARIABLE, "DETACH")}
    argv = [sys.executable, "-m", "doit", task, *words, "DETACH=no"]
    told = record.starting(argv, env={variable: "1"})
    with log.open("wb") as stream:
        # Not with sevsnp.system.command on purpose: its processes end with this one.
        process = subprocess.Popen(
            argv,
            env={**variables, variable: "1"},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    serial, deadline = state / "serial.log", 0.0
    try:
        while not ((found := running(state)) and found.pid == process.pid and read_console(serial)):
            if process.poll() is not None:
                said = "\n".join(line for line in printable_lines(read_console(log)) if line.strip())
                raise UserError(f"the guest {name} did not start (exit code {process.returncode}):\n{said[-3000:]}")
            # Until QEMU makes the log, disks are copied and files hashed, which takes as long as they are large.
            if not (found and found.pid == process.pid and serial.exists()):
                deadline = time.monotonic() + _SECONDS
            elif time.monotonic() > deadline:
                raise UserError(
                    f"the guest {name} wrote no console line in {_SECONDS:.0f} s", f"see: ./doitw logs NAME={name}"
                )
            progress.step(f"the guest {name} starts")
            time.sleep(0.1)
    except BaseException:
        process.terminate()
        raise
    finally:
        told.ended(process.poll())
    print(f"the guest {name} runs (process {found.pid}): ssh at 127.0.0.1:{found.ssh_port}", end="")
    print(f", evidence at 127.0.0.1:{found.attest_port}" if found.workflow != "plain" else "")
    for line in found.forward_lines:
        print(line)
    print(f"./doitw logs, console, ssh or stop NAME={name}")
    if found.workflow != "plain":
        print(f"next: ./doitw attest_{found.workflow}{words_of(name, found.workflow, found.platform)}")
