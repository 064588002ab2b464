# SPDX-License-Identifier: Apache-2.0
"""The live area of a terminal: a line for each running task, below the lines that stay.

It never hides the cursor and writes only to its own lines. The terminal is therefore usable however a run ends.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from sevsnp.system.progress import Amount

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

REFRESHES_PER_SECOND = 8
# A task that ends at once does not deserve a line that comes and goes.
SECONDS_BEFORE_SHOWN = 0.3
BAR_WIDTH = 24
# On a narrower terminal a bar replaces the words.
WIDTH_FOR_BARS = 72


def can_draw(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


@dataclass
class _Row:
    """A running task. ``drawn``: it has something to show; a command that is not drawn has the terminal to itself."""

    shown: str
    drawn: bool
    text: str = ""
    started: float = field(default_factory=time.monotonic)
    amounts: list[Amount] = field(default_factory=list)

    def amount(self) -> Amount | None:
        """The amount to show: the latest one that is not complete."""
        return next((one for one in reversed(self.amounts) if not one.complete), None)


class Screen:
    """A :class:`sevsnp.system.progress.Board` on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.spinner import Spinner

        class Terminal(Console):
            def show_cursor(self, show: bool = True) -> bool:
                """Leave the cursor alone: if this process is killed or stopped, the terminal still has a cursor."""
                return False

        self.stream = stream
        self._spinner = Spinner("dots")
        self._console = Terminal(file=stream, force_terminal=True)
        self._rows: dict[str, _Row] = {}
        self._pauses = 0
        self._closed = False
        self._live: Live | None = None
        # Two locks, because rich draws from its own thread under its own lock. That thread takes only _state, and no
        # thread calls rich while holding _state. Reentrant, because a signal handler interrupts the main thread
        # anywhere.
        self._state = threading.RLock()
        self._screen = threading.RLock()

    def begin(self, task: str, shown: str, drawn: bool) -> None:
        """``task`` starts; it is shown as ``shown``."""
        with self._state:
            self._rows[task] = _Row(shown, drawn)
        self._arrange()

    def end(self, task: str) -> None:
        with self._state:
            self._rows.pop(task, None)
        self._arrange()

    def step(self, task: str, text: str) -> None:
        with self._state:
            if row := self._rows.get(task):
                row.text, row.drawn = text, True
        self._arrange()

    def opened(self, task: str, amount: Amount) -> None:
        with self._state:
            if row := self._rows.get(task):
                row.amounts.append(amount)
                row.drawn = True
        self._arrange()

    def closed(self, task: str, amount: Amount) -> None:
        with self._state:
            if (row := self._rows.get(task)) and amount in row.amounts:
                row.amounts.remove(amount)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Hide the live area while the context lasts; several callers may do so at once."""
        self._pause(1)
        try:
            yield
        finally:
            self._pause(-1)

    def write(self, text: str) -> bool:
        """Put whole lines above the live area.

        False if there is no live area: the caller then writes to the stream itself.
        """
        with self._screen:
            if self._live is None:
                return False
            from rich.text import Text

            self._live.refresh()  # otherwise a task that has just ended would be drawn once more
            self._console.print(Text.from_ansi(text.removesuffix("\n")), soft_wrap=True)
            return True

    def drawing(self) -> bool:
        """Whether there is a live area now."""
        return self._live is not None

    def close(self) -> None:
        """Remove the live area for good: a thread that an interrupted run left behind may still report."""
        with self._state:
            self._closed = True
        self._arrange()

    def _pause(self, change: int) -> None:
        with self._state:
            self._pauses += change
        self._arrange()

    def _arrange(self) -> None:
        """Start or end the live area, depending on the running tasks."""
        with self._screen:
            with self._state:
                free = not self._closed and not self._pauses
                wanted = free and bool(self._rows) and all(row.drawn for row in self._rows.values())
            if wanted and self._live is None:
                from rich.live import Live

                self._live = Live(
                    console=self._console,
                    get_renderable=self._drawn,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                    refresh_per_second=REFRESHES_PER_SECOND,
                )
                self._live.start()
            elif not wanted and self._live is not None:
                live, self._live = self._live, None
                live.stop()

    def _drawn(self) -> "RenderableType":
        from rich.filesize import decimal
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = time.monotonic()
        wide = self._console.width >= WIDTH_FOR_BARS
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for _ in range(3 if wide else 2):
            table.add_column(no_wrap=True)
        with self._state:
            rows = [row for row in self._rows.values() if now - row.started >= SECONDS_BEFORE_SHOWN]
            for row in rows:
                amount = row.amount()
                words = f"{row.shown}: {amount.what if amount else row.text}".removesuffix(": ")
                size = ""
                if amount:
                    shown = decimal if amount.bytes else str
                    size = shown(amount.done) + (f" of {shown(amount.total)}" if amount.total else "")
                cells: list[RenderableType] = [self._spinner.render(now), Text(words)]
                if wide and amount and amount.total:
                    cells.append(ProgressBar(amount.total, min(amount.done, amount.total), width=BAR_WIDTH))
                elif wide:
                    cells.append("")
                table.add_row(*cells, size, f"{now - row.started:.0f} s")
        return table if rows else Text("")
