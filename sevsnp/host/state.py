# SPDX-License-Identifier: Apache-2.0
"""The state directory of a guest: its logs, the values it was started with, and a lock that lasts as long as it runs.

Standard library only: a host bundle has it too.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system import locks

LOCK = "guest.lock"
CONSOLE = "console"
# Files that the attestation of an earlier guest left for ssh: a new guest must first be attested itself.
LOGIN = ("ssh_config", "known_hosts")


@dataclass(frozen=True)
class Run:
    """A running guest: its workflow, platform and VM config, and its ports at 127.0.0.1.

    ``pid`` is the process that started QEMU and ends it; ``since`` is in seconds since 1970. ``console``: the serial
    console is a socket in the state directory (:data:`CONSOLE`), not the terminal of that process. ``forwards`` are
    further ports at 127.0.0.1, each with the guest's port that it leads to.
    """

    workflow: str
    platform: str
    vm_config: str
    ssh_port: int
    attest_port: int
    pid: int = 0
    since: float = 0.0
    console: bool = False
    forwards: tuple[tuple[int, int], ...] = ()

    @property
    def forward_lines(self) -> list[str]:
        """A line for the user about each of ``forwards``."""
        return [f"127.0.0.1:{here} leads to the guest's port {inside}" for here, inside in self.forwards]

    @property
    def started(self) -> str:
        """The start time, in local time."""
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))


@contextlib.contextmanager
def held(directory: Path, run: Run, hint: str) -> Iterator[None]:
    """Hold the state directory for this process, and note the run in it. Raises UserError if a guest runs already.

    The kernel releases the lock when this process ends, however it ends. ``hint`` says how to run another guest.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with locks.held(directory / LOCK, lambda _: _taken(directory, running(directory), hint), 0o644) as note:
        for name in LOGIN:
            (directory / name).unlink(missing_ok=True)
        note(json.dumps({**asdict(run), "pid": os.getpid(), "since": time.time()}))
        yield


def check_free(directory: Path, hint: str) -> None:
    """Raise the UserError of :func:`held` if a guest runs already; to be called before all other checks."""
    if found := running(directory):
        raise _taken(directory, found, hint)


def _taken(directory: Path, found: Run | None, hint: str) -> UserError:
    which = f" (process {found.pid}, since {found.started})" if found else ""
    return UserError(f"{directory}: a guest runs here already{which}", hint)


def running(directory: Path) -> Run | None:
    """The guest that runs in a state directory; None if none does."""
    try:
        descriptor = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(descriptor, encoding="utf-8") as stream:
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                if found := _parsed(stream.read()):
                    return found
                time.sleep(0.02)  # the guest has just started, or ends
                continue
            return None
    return None


def _parsed(text: str) -> Run | None:
    try:
        document: Any = json.loads(text)
        run = Run(**{each.name: document[each.name] for each in fields(Run)})
        return replace(run, forwards=tuple((int(here), int(inside)) for here, inside in run.forwards))
    except (ValueError, KeyError, TypeError):
        return None
