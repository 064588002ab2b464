# SPDX-License-Identifier: Apache-2.0
"""The stages of a long command: one line for each stage while it runs, and a table of the results at the end."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sevsnp.system import progress


@dataclass
class Stages:
    """The stages of a run: for each its name, its seconds, and what it has shown."""

    rows: list[tuple[str, float, str]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage; the block gets a list and appends what the stage has shown."""
        from rich.console import Console

        console = Console()
        console.print(f"[bold]▸[/bold] {name} …", highlight=False)
        progress.step(name)
        shown: list[str] = []
        started = time.monotonic()
        try:
            yield shown
        except BaseException:
            console.print(f"[red]✗[/red] {name} after {time.monotonic() - started:.1f} s", highlight=False)
            raise
        seconds = time.monotonic() - started
        self.rows.append((name, seconds, "; ".join(shown)))
        console.print(f"[green]✓[/green] {name} ({seconds:.1f} s)", highlight=False)

    def add(self, name: str, seconds: float, shown: str) -> None:
        self.rows.append((name, seconds, shown))

    def table(self, title: str) -> None:
        """Print a table of the stages, their times, and what they proved."""
        from rich.console import Console
        from rich.table import Table

        table = Table("stage", "seconds", "proven", title=title)
        table.columns[1].justify = "right"
        for name, seconds, shown in self.rows:
            table.add_row(name, f"{seconds:.1f}", shown)
        Console().print(table)
