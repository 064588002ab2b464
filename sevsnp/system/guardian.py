# SPDX-License-Identifier: Apache-2.0
"""Ends the processes that a killed run left. sevsnp.system.command starts the guardian, which outlives the run.

A signal handler does this for every signal but SIGKILL. The run tells the guardian through a pipe which process groups
it runs, which single processes of its own group, and which temporary directories exist ("+4711", "-4711", "+=4712",
"-=4712", "+/tmp/x", "-/tmp/x", one per line). The kernel closes the pipe when the run is gone, however it ended. Then
the guardian ends and removes everything that is still on the list.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

# Seconds, as in sevsnp.system.command: mmdebstrap removes its own tree, whose files belong to other users.
GRACE = 5.0


def watch(lines: Iterable[str], grace: float = GRACE) -> None:
    """Keep the list until the lines end. Then end and remove everything on it, after ``grace`` seconds at the most."""
    guarded: set[str] = set()
    places: set[str] = set()
    single: dict[str, int] = {}
    for line in lines:
        sign, name = line[:1], line[1:].rstrip("\n")
        (guarded.add if sign == "+" else guarded.discard)(name)
        if name.startswith("="):
            _hold(single, name, held=sign == "+")
        if sign == "+" and name.startswith("/"):
            places.add(name)  # kept: a run removes its directories before a stray is seen
    time.sleep(0.1)  # a child that was just forked has not yet its final group and environment
    groups = [int(name) for name in guarded if name.isdigit()]
    # Even after SIGKILL a process has an instant to write into a directory that is removed next. A single process is a
    # test run; it shuts down its guests on SIGINT, as after Ctrl-C.
    for number, alone, seconds in ((signal.SIGTERM, signal.SIGINT, grace), (signal.SIGKILL, signal.SIGKILL, 1.0)):
        deadline = time.monotonic() + seconds
        groups = _signal({*groups, *_strays(places)}, number)
        alive = _signal_single(single.values(), alone)
        while (groups or alive) and time.monotonic() < deadline:
            time.sleep(0.05)
            groups, alive = _signal(groups, 0), _signal_single(single.values(), 0)
    for name in guarded:
        if name.startswith("/"):
            shutil.rmtree(name, ignore_errors=True)


def _hold(single: dict[str, int], name: str, *, held: bool) -> None:
    """Keep a pidfd of a process for signals: the process's number may be another's when this run has ended."""
    if not held:
        if name in single:
            os.close(single.pop(name))
        return
    with contextlib.suppress(OSError):
        single[name] = os.pidfd_open(int(name[1:]))


def _signal_single(descriptors: Iterable[int], number: int) -> bool:
    """Send a signal to processes; return whether one was there. Do not wait for processes of another user."""
    there = False
    for descriptor in descriptors:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(descriptor, number)
            there = True
    return there


def _strays(places: Iterable[str]) -> list[int]:
    """The groups of commands that were started but not yet on the list when the run ended: their TMPDIR is ours."""
    wanted = {b"TMPDIR=" + os.fsencode(place) for place in places}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            group = os.getpgid(int(process.name))
            # Each such command leads a session of its own; no other process counts.
            if group == os.getsid(int(process.name)):
                found += [group] * (not wanted.isdisjoint((process / "environ").read_bytes().split(b"\0")))
    return found


def _signal(groups: Iterable[int], number: int) -> list[int]:
    """Send a signal to process groups; return those that were there."""
    there = []
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            there.append(group)
    return there


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    watch(sys.stdin, *map(float, sys.argv[1:]))
