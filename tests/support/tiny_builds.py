# SPDX-License-Identifier: Apache-2.0
"""A build from source that takes a second: its own pins, sources and stages, run by the project's own recipe."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sevsnp.builds import steps
from sevsnp.builds.detached import end_marked
from sevsnp.builds.place import Place
from sevsnp.builds.stages import Stage
from sevsnp.builds.start import Environment
from sevsnp.builds.state import Phase, Status, look
from tests.support.waiting import wait_until

SECONDS = 60.0
# Writes what it was given, and ends once the file `go` is there (or at once).
SCRIPT = """#!/bin/sh
set -eu
echo "[1/2] begins"
printf '%s\\n' "$JOBS" "$CONFIGURE_ONLY" "${FLAVOUR:-}" >"$OUT/said"
cat "$SOURCES"/*.txt >"$OUT/result"
"""
LISTING = "common:\n  suite: trixie\n  packages: [bash]\ntiny:\n  suite: trixie\n  packages: [coreutils]\n"


@dataclass
class Tiny:
    """The build in ``tmp``; ``script`` are the lines that its one stage runs beside :data:`SCRIPT`."""

    tmp: Path
    script: str = ""
    stages: tuple[str, ...] = ("one",)
    limit: int = 50
    room: int = 1
    environment: Environment | None = field(default_factory=lambda: Environment("this machine"))

    def __post_init__(self) -> None:
        self.mirror = self.tmp / "mirror"
        self.source = self.mirror / "pool" / "main" / "hello_1.txt"
        self.source.parent.mkdir(parents=True)
        self.source.write_text("hello\n")
        (self.tmp / "listing.yaml").write_text(LISTING)
        self.write_pins()

    @property
    def place(self) -> Place:
        return Place(self.tmp / "from-source")

    @property
    def output(self) -> Path:
        return self.tmp / "snp-built"

    def write_pins(self) -> None:
        content = self.source.read_bytes()
        pinned = f"{{path: pool/main/hello_1.txt, size: {len(content)}, sha256: {hashlib.sha256(content).hexdigest()}}}"
        source = f"  hello:\n    version: '1'\n    date: '2026-01-01T00:00:00Z'\n    files: [{pinned}]\n"
        (self.tmp / "sources.yaml").write_text(f"stable:\n{source}upstream: {{}}\namd: {{}}\n")

    @property
    def table(self) -> tuple[Stage, ...]:
        path = self.tmp / "tiny.sh"
        path.write_text(SCRIPT + self.script)
        flavour = {"FLAVOUR": "guest"}
        return tuple(
            Stage(name, str(path), ("hello",), "tiny", ("result",), self.limit, self.room, flavour)
            for name in self.stages
        )

    def build(self, **settings: Any) -> None:
        given = {
            "source": "local", "pin": "stable", "commit_date": "today", "jobs": 3, "cache": "off", "cluster": "off",
            "hosts": "", "mirror": f"file:{self.mirror}", "snapshot": "off", "cache_dir": str(self.tmp / "cache"),
        }  # fmt: skip
        steps.build(
            root=self.place.root,
            pins=self.tmp / "sources.yaml",
            listing=self.tmp / "listing.yaml",
            lock=self.tmp / "no.lock",
            environment=self.environment,
            table=self.table,
            **{**given, **settings},
        )

    def fetch(self) -> None:
        steps.fetch(root=self.place.root, output=self.output, table=self.table)

    def report(self) -> None:
        steps.report(root=self.place.root)

    def clean(self) -> None:
        steps.clean(root=self.place.root)

    def ended(self) -> Status:
        return self.reached(lambda status: status.phase is not Phase.RUNNING)

    def reached(self, wanted: Callable[[Status], bool]) -> Status:
        wait_until(lambda: wanted(look(self.place)), lambda: look(self.place), SECONDS)
        return look(self.place)

    def go(self) -> None:
        """End a stage that waits for it."""
        (self.tmp / "go").touch()

    @property
    def waits(self) -> str:
        """Lines with which a stage waits for :meth:`go`."""
        return f"while [ ! -e '{self.tmp}/go' ]; do sleep 0.05; done\n"

    def end(self) -> None:
        """Leave no process behind, whatever a test did."""
        end_marked(self.place.mark)
