# SPDX-License-Identifier: Apache-2.0
"""How far a build is: what its runner wrote, held against what really runs."""

import errno
import json
import os
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sevsnp.builds.engines import is_absent
from sevsnp.builds.place import Place, Plan, boot_id, read_plan
from sevsnp.builds.stages import STAGES
from sevsnp.errors import UserError
from sevsnp.system.command_failed import CommandFailed
from sevsnp.system.files import disks
from sevsnp.system.locks import is_locked
from sevsnp.system.text import printable

# Bytes at the end of a log that are looked at.
_TAIL = 16384
_STEP = re.compile(r"^\[(\d+)/(\d+)\]", re.MULTILINE)
# Exit codes of timeout(1), and of a process that SIGKILL ended.
_LATE, _KILLED = 124, 137


class Phase(Enum):
    NONE = "nothing was started"
    RUNNING = "running"
    DONE = "done"
    CONFIGURED = "configured only"
    FAILED = "failed"
    STOPPED = "ended early"


@dataclass(frozen=True)
class Status:
    """The state of a build. ``stage`` is stage ``number`` of the ``of`` that run; ``reason`` is why it ended badly.

    ``steps`` are those of the stage's own progress (done, of), where its log tells them; times are in seconds.
    """

    phase: Phase
    plan: Plan | None = None
    stage: str = ""
    number: int = 0
    of: int = 0
    seconds: float = 0.0
    steps: tuple[int, int] | None = None
    reason: str = ""


def look(place: Place, *, alone: bool = False) -> Status:
    """The state of the build in ``place``. Asks the container engine; changes nothing.

    ``alone``: the caller holds the lock, so that no build on this machine does.
    """
    plan = read_plan(place)
    if plan is None:
        return Status(Phase.NONE)
    said = _said(place)
    stage, number, of = str(said.get("stage", "")), int(said.get("number", 0)), len(plan.run)
    at, started = float(said.get("at") or plan.since), float(said.get("started") or plan.since)
    state = said.get("state", "starting")
    if state == "finished":
        return Status(Phase.CONFIGURED if plan.configure_only else Phase.DONE, plan, seconds=at - plan.since)
    if state == "stopped":
        return Status(Phase.STOPPED, plan, stage, number, of, at - started, reason="stopped on request")
    common: dict[str, Any] = {"plan": plan, "stage": stage, "number": number, "of": of}
    if state == "failed":
        why = _why_failed(place, stage, int(said.get("exit") or 1))
        return Status(Phase.FAILED, **common, seconds=at - started, reason=why)
    if gone := _gone(place, plan, alone):
        if _said(place).get("state") not in (None, "running"):
            return look(place, alone=alone)  # it came to its end between the two looks
        return Status(Phase.STOPPED, **common, seconds=at - started, reason=_full(place) or gone)
    steps = _STEP.findall(tail(place, stage))
    return Status(
        Phase.RUNNING,
        **common,
        seconds=max(0.0, time.time() - started),
        steps=(int(steps[-1][0]), int(steps[-1][1])) if steps else None,
    )


def tail(place: Place, stage: str, limit: int = _TAIL) -> str:
    """The end of a stage's log, printable."""
    try:
        with place.log(stage).open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - limit))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return printable(text, "\n")


def last_line(place: Place, stage: str) -> str:
    return next((line.strip() for line in reversed(tail(place, stage).splitlines()) if line.strip()), "")


def _said(place: Place) -> Mapping[str, Any]:
    """What the runner wrote last; empty if it has written nothing."""
    try:
        document = json.loads(place.state.read_text())
        return document if isinstance(document, dict) else {}
    except (OSError, ValueError):
        return {}


def _why_failed(place: Place, stage: str, code: int) -> str:
    limit = next((one.limit for one in STAGES if one.name == stage), 0)
    if full := _full(place) or (os.strerror(errno.ENOSPC) in tail(place, stage) and "the disk was full"):
        return str(full)
    if code == _LATE:
        return f"not finished after {limit / 3600:g} hours" if limit else "not finished within its time limit"
    if code == _KILLED:
        return "killed (exit code 137), most likely because memory ran out"
    return f"exit code {code}: {last_line(place, stage) or 'its log is empty'}"


def _full(place: Place) -> str:
    full = [str(disk) for disk, is_full in disks([place.root]).items() if is_full]
    return f"the disk is full: see df -h {shlex.quote(full[0])}" if full else ""


def _gone(place: Place, plan: Plan, alone: bool) -> str:
    """Why the build does not run any more; empty while it runs."""
    if plan.engine is None:
        if not alone and is_locked(place.lock):
            return ""
        return "the machine was restarted" if plan.boot != boot_id() else f"process {plan.pid} was ended"
    try:
        state, code, memory = plan.engine(
            "inspect", "--type", "container", "--format",
            "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}", plan.container, timeout=60,
        ).split()  # fmt: skip
    except CommandFailed as error:
        if is_absent(error):
            return "the machine was restarted" if plan.boot != boot_id() else f"container {plan.container} was removed"
        raise UserError(f"{plan.engine.program} does not answer: {error.message.splitlines()[0]}") from error
    if state in ("running", "created", "configured", "initialized", "restarting", "paused"):
        if plan.boot != boot_id():
            return "the machine was restarted"
        return ""
    if memory == "true":
        return "memory ran out"
    return (
        "the machine was restarted" if plan.boot != boot_id() else f"container {plan.container} ended, exit code {code}"
    )
