# SPDX-License-Identifier: Apache-2.0
"""The live area of a terminal: a line for each task that runs, below the lines that stay.

It never hides the cursor and never leaves its own lines, so however a run ends there is nothing to put right.
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
# What is over at once is not worth a line that comes and goes.
SECONDS_BEFORE_SHOWN = 0.3
BAR_WIDTH = 24
# Below this a bar takes the place of the words.
WIDTH_FOR_BARS = 72


def can_draw(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")


@dataclass
class _Row:
    """A task that runs. ``drawn``: it has something to show; a command without has the terminal to itself."""

    shown: str
    drawn: bool
    text: str = ""
    started: float = field(default_factory=time.monotonic)
    amounts: list[Amount] = field(default_factory=list)

    def amount(self) -> Amount | None:
        """The amount to show: the latest that is not all done."""
        return next((one for one in reversed(self.amounts) if not one.complete), None)


class Screen:
    """A :class:`sevsnp.system.progress.Board` on a terminal."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.spinner import Spinner

        class Terminal(Console):
            def show_cursor(self, show: bool = True) -> bool:
                """Leave it alone: who kills or stops this process gets a terminal with a cursor."""
                return False

        self.stream = stream
        self._spinner = Spinner("dots")
        self._console = Terminal(file=stream, force_terminal=True)
        self._rows: dict[str, _Row] = {}
        self._pauses = 0
        self._closed = False
        self._live: Live | None = None
        # Two locks, because rich draws from a thread of its own under its own lock: that thread takes only _state, and
        # nobody calls rich while holding it. Reentrant, because a signal's handler runs wherever the main thread is.
        self._state = threading.RLock()
        self._screen = threading.RLock()

    def begin(self, task: str, shown: str, drawn: bool) -> None:
        """``task`` runs, under the name ``shown``."""
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
        """Without the live area, however many ask for it at once."""
        self._pause(1)
        try:
            yield
        finally:
            self._pause(-1)

    def write(self, text: str) -> bool:
        """Put whole lines above the live area; False where there is none, and the stream is free to write to."""
        with self._screen:
            if self._live is None:
                return False
            from rich.text import Text

            self._live.refresh()  # or a task that has just ended is drawn once more
            self._console.print(Text.from_ansi(text.removesuffix("\n")), soft_wrap=True)
            return True

    def drawing(self) -> bool:
        """Whether there is a live area now."""
        return self._live is not None

    def close(self) -> None:
        """Take the live area away, for good: a thread that an interrupted run left behind may still report."""
        with self._state:
            self._closed = True
        self._arrange()

    def _pause(self, change: int) -> None:
        with self._state:
            self._pauses += change
        self._arrange()

    def _arrange(self) -> None:
        """Start or end the live area, as what runs has it."""
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
