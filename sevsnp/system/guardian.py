# SPDX-License-Identifier: Apache-2.0
"""Ends what a killed run has left behind: a process of its own, started by sevsnp.system.command, that outlives it.

A signal handler does this for every signal but SIGKILL. The guardian is told through a pipe which process groups run,
which single processes of the run's own group, and which temporary directories exist ("+4711", "-4711", "+=4712",
"-=4712", "+/tmp/x", "-/tmp/x", a line each); the kernel closes the pipe when the run is gone, however it went, and what
is still on the list is then ended and removed.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

# As long as sevsnp.system.command gives them: mmdebstrap removes its own tree, whose files belong to other users.
GRACE = 5.0


def watch(lines: Iterable[str], grace: float = GRACE) -> None:
    """Keep the list until the lines end, then end and remove what is on it, after ``grace`` seconds at the most."""
    guarded: set[str] = set()
    places: set[str] = set()
    single: dict[str, int] = {}
    for line in lines:
        sign, name = line[:1], line[1:].rstrip("\n")
        (guarded.add if sign == "+" else guarded.discard)(name)
        if name.startswith("="):
            _hold(single, name, held=sign == "+")
        if sign == "+" and name.startswith("/"):
            places.add(name)  # kept: a run that ends in order removes its own before a stray is seen
    time.sleep(0.1)  # a child that was just forked is not what it will be yet
    groups = [int(name) for name in guarded if name.isdigit()]
    # After SIGKILL too they have an instant in which they still write to what is removed next.
    # A test run, which is a single one, tidies up on what Ctrl-C sends.
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
    """Keep a descriptor of a process, by which it is signalled: its number may be another's when this run has ended."""
    if not held:
        if name in single:
            os.close(single.pop(name))
        return
    with contextlib.suppress(OSError):
        single[name] = os.pidfd_open(int(name[1:]))


def _signal_single(descriptors: Iterable[int], number: int) -> bool:
    """Send a signal to processes; whether one was there. Those of another user are not ours to wait for."""
    there = False
    for descriptor in descriptors:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(descriptor, number)
            there = True
    return there


def _strays(places: Iterable[str]) -> list[int]:
    """The groups of commands that were started and not on the list yet when the run ended: their TMPDIR is ours."""
    wanted = {b"TMPDIR=" + os.fsencode(place) for place in places}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            group = os.getpgid(int(process.name))
            # Each leads a session of its own; what does not is not one of them.
            if group == os.getsid(int(process.name)):
                found += [group] * (not wanted.isdisjoint((process / "environ").read_bytes().split(b"\0")))
    return found


def _signal(groups: Iterable[int], number: int) -> list[int]:
    """Send a signal to process groups; those that were there."""
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
