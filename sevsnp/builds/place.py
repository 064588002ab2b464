# SPDX-License-Identifier: Apache-2.0
"""The directory of a build from source, and the record of what was started in it."""

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from sevsnp.builds.engines import Engine
from sevsnp.errors import UserError
from sevsnp.system.files import write_atomic

STATUS = "see how far it is: ./doitw packages_status"
CLEAN = "remove it, and build again: ./doitw packages_clean"
_INSTANT = 5.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Place:
    """The directory of a build; templates/packages/run.sh knows the names in it, too."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe"

    @property
    def sources(self) -> Path:
        return self.root / "sources"

    @property
    def done(self) -> Path:
        return self.root / "done"

    @property
    def logs(self) -> Path:
        return self.root / "log"

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def mark(self) -> dict[str, str]:
        """The variable that every process of a build on this machine has."""
        return {"SEVSNP_BUILD": str(self.root.absolute())}

    def make(self) -> None:
        for path in (self.recipe, self.sources, self.done, self.logs, self.out, self.root / "work"):
            path.mkdir(parents=True, exist_ok=True)

    def log(self, stage: str) -> Path:
        return self.logs / f"{stage}.log"

    @contextlib.contextmanager
    def alone(self) -> Iterator[int]:
        """Hold the directory's lock; yields its descriptor. Raises :class:`UserError` if another process holds it."""
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            # A runner that has written its last state lives for another instant.
            deadline = time.monotonic() + _INSTANT
            while not _taken(descriptor):
                if time.monotonic() > deadline:
                    raise UserError(f"{self.root}: a build runs here already", STATUS)
                time.sleep(0.02)
            yield descriptor
        finally:
            os.close(descriptor)


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Plan:
    """What was started: where, with which stages and sources, and how to find it again.

    ``road`` is container or local; ``run`` are the stages that were not done already; ``keys`` are the digests of all
    that decides the result of each stage. ``sources`` maps each source to its version or commit and its digests.
    ``since`` is in seconds since 1970.
    """

    road: str
    pin: str
    stages: tuple[str, ...]
    run: tuple[str, ...]
    keys: Mapping[str, str]
    sources: Mapping[str, Mapping[str, Any]]
    configure_only: bool
    since: float
    container: str = ""
    image: str = ""
    engine: Engine | None = None
    pid: int = 0
    boot: str = field(default_factory=lambda: boot_id())

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=2) + "\n")


def boot_id() -> str:
    """The kernel's name for this boot of the machine."""
    return _BOOT_ID.read_text().strip()


def read_plan(place: Place) -> Plan | None:
    """The record of what was started last; None if nothing was. Raises :class:`UserError` for a damaged one."""
    try:
        document = json.loads(place.plan.read_text())
        if engine := document["engine"]:
            words = {name: tuple(engine[name]) for name in ("options", "run_options")}
            document["engine"] = Engine(engine["program"], **words)
        for name in ("stages", "run"):
            document[name] = tuple(document[name])
        return Plan(**{each.name: document[each.name] for each in fields(Plan)})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place.plan}: damaged: {error}", CLEAN) from None


def check_path(root: Path, road: str) -> None:
    """Refuse a directory that the tools cannot take: make splits names at blanks and colons, engines at commas."""
    path = str(root.absolute())
    if found := re.search(r"[\s:]" if road == "local" else r'[,":\n]', path):
        raise UserError(f"{path}: found {found[0]!r} in the path, which {road} builds cannot use; move the checkout")
