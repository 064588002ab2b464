# SPDX-License-Identifier: Apache-2.0
"""doit's output during a run: a line for each task that does something, with the time it took.

On a terminal a live area below the lines shows the running tasks (sevsnp.system.live). Any other output gets only the
lines: no escape code, no carriage return, nothing periodic.
"""

import atexit
import re
import sys
import threading
import time
from collections.abc import Container
from typing import Any, TextIO

from doit.reporter import ConsoleReporter

from sevsnp.pipeline.help import Guide
from sevsnp.pipeline.hints import with_settings
from sevsnp.pipeline.run_log import RunLog, verbose
from sevsnp.pipeline.tasks import Tasks
from sevsnp.settings.resolved import command_line_words
from sevsnp.system import progress, record
from sevsnp.system.colour import Colour, paint
from sevsnp.system.live import Screen, can_draw

# The seconds of each task that ran in this process, and its remarks, for the table of an end-to-end run.
timings: dict[str, float] = {}
remarks: dict[str, str] = {}


class Lines:
    """A stream for the output of tasks: whole lines, above the live area; with the task's name if several tasks run.

    An unfinished line (a prompt) waits for its end, or for a flush while there is no live area.
    """

    def __init__(self, stream: TextIO, screen: Screen | None, crowded: Container[str]) -> None:
        self.stream = stream
        self._crowded = crowded  # the tasks during which another task ran
        self._screen = screen if stream.isatty() else None
        self._partial: dict[int, str] = {}
        self._inside: set[int] = set()  # threads that have begun a line on the stream
        self._lock = threading.RLock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        with self._lock:
            whole, newline, rest = (self._partial.pop(thread, "") + text).rpartition("\n")
            if rest:
                self._partial[thread] = rest
            if newline:
                named = "".join(self._named(line) + "\n" for line in whole.split("\n"))
                self._inside.discard(thread)
                self.put(named)
        return len(text)

    def flush(self) -> None:
        thread = threading.get_ident()
        with self._lock:
            if thread in self._partial and not (self._screen and self._screen.drawing()):
                text = self._named(self._partial.pop(thread))
                self._inside.add(thread)
                self.stream.write(text)
            self.stream.flush()

    def put(self, text: str) -> None:
        """Write whole lines as they are."""
        with self._lock:
            if not (self._screen and self._screen.write(text)):
                self.stream.write(text)
                self.stream.flush()

    def finish(self) -> None:
        """Write the lines that have no end."""
        with self._lock:
            for text in self._partial.values():
                self.put(f"{text}\n")
            self._partial.clear()

    def _named(self, line: str) -> str:
        name = progress.current()
        if name not in self._crowded or not line.strip() or threading.get_ident() in self._inside:
            return line
        return f"  {readable(name)}: {line.lstrip()}"


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """doit's console reporter with timings, and errors without the name of the exception class."""

    desc = "a line for each task that runs, with its time"
    guide = Guide()

    def initialize(self, tasks: Any, selected_tasks: Any) -> None:
        super().initialize(tasks, selected_tasks)
        self._tasks, self._selected = tasks, list(selected_tasks)
        self._busy: set[str] = set()  # tasks that did something, or should have
        # When doit began to check a task, then when the task started: seconds since 1970, and the monotonic clock.
        self._since: dict[str, tuple[float, float]] = {}
        self._screen = Screen(self.outstream) if can_draw(self.outstream) else None
        self._running: set[str] = set()
        self._crowded: set[str] = set()
        self._lines = Lines(self.outstream, self._screen, self._crowded)
        self._streams = (sys.stdout, sys.stderr)
        progress.show_on(self._screen)
        # doit gives each task the sys.stdout of that moment.
        self._wrapped = [Lines(stream, self._screen, self._crowded) for stream in self._streams]
        sys.stdout, sys.stderr = self._wrapped
        self._log = RunLog(sys.argv[1:], self._running, self.write)
        record.tell(self._log)
        atexit.register(self._finish)

    def write(self, text: str) -> None:
        self._lines.put(text)

    def get_status(self, task: Any) -> None:
        self._begin(task)

    def execute_task(self, task: Any) -> None:
        """Called in the thread that runs the task, right before the task."""
        # Otherwise each task has a sys.stdout of its own, which is freed at its end. If another thread is in print()
        # with it at that moment, Python crashes: it holds no reference to it.
        task.io.capture = False
        self._begin(task)
        progress.begin(task.name)
        if task.actions:
            self._busy.add(task.name)
            self._running.add(task.name)
            if len(self._running) > 1:
                self._crowded |= self._running
            self.write(f"▸ {_shown(task)}\n")
            if self._screen:
                # A command may talk to the user, or start a program that does. It is drawn as soon as it reports a
                # step.
                self._screen.begin(task.name, _shown(task), drawn=bool(task.targets))

    def skip_uptodate(self, task: Any) -> None:
        """Print nothing: a task that is up to date is not news, unless all tasks are (:meth:`complete_run`)."""
        self._note(task, "up to date")

    def add_success(self, task: Any) -> None:
        if task.actions:
            seconds = time.monotonic() - self._since[task.name][1]
            timings[_shown(task)] = seconds
            if remark := progress.take_remark(task.name):
                remarks[_shown(task)] = remark
            self._ended(task)
            # What the artefact's check found: the reason why it was made.
            found = [line for check, _, _ in task.uptodate for line in getattr(check, "reason", ())]
            self._note(task, "done", **({"reason": ", ".join(found)} if found else {}))
            self.write(f"{self._mark('✓', 'green')} {_shown(task)} ({seconds:.1f} s{remark and f', {remark}'})\n")

    def add_failure(self, task: Any, fail: Any) -> None:
        self._busy.add(task.name)
        self._ended(task)
        # tasks.graph sets it, for errors that a user can correct; for other errors doit's own message has a traceback.
        trace = getattr(fail, "trace", "")
        self._note(task, "failed", error=fail.get_msg().strip(), **({"traceback": trace} if trace else {}))
        if fail.report:
            if trace and verbose():
                self.write(trace)
            self.failures.append({"task": task, "exception": fail})
            # Of doit's own message for a file that no task makes, only the file's name helps.
            absent = re.search(r"Dependent file '(.+)' does not exist", fail.get_msg())
            message = f"{absent[1]}: no such file, and no task makes it" if absent else fail.get_msg().strip()
            message = with_settings(message, command_line_words(sys.argv[1:]), self.guide, self._tasks)
            self.write(f"{self._mark('✗', 'red')} {_shown(task)}: {message}\n")

    def complete_run(self) -> None:
        self._finish()
        if idle := self._idle():
            self.write(f"{', '.join(map(readable, idle))}: nothing to do, all is up to date\n")
        for message in self.runtime_errors:
            self.write(f"{message}\n")

    def _mark(self, mark: str, colour: Colour) -> str:
        return paint(mark, colour, self.outstream)

    def _idle(self) -> list[str]:
        """The selected tasks for which nothing ran."""
        known = Tasks(self._tasks.values())
        asked = [name for name in self._selected if name in known.by_name]
        return [name for name in asked if not self._busy & {name, *known.all_needed(name)}]

    def _begin(self, task: Any) -> None:
        self._since[task.name] = (time.time(), time.monotonic())

    def _note(self, task: Any, outcome: str, **more: str) -> None:
        # A helper that makes nothing (a bare ./doitw) is not worth a log file.
        if task.actions and (task.targets or not task.name.startswith("_") or outcome == "failed"):
            self._log.task(task.name, outcome, self._since[task.name], **more)

    def _ended(self, task: Any) -> None:
        self._running.discard(task.name)
        if self._screen:
            self._screen.end(task.name)

    def _finish(self) -> None:
        """Restore the streams, even if doit does not reach complete_run."""
        atexit.unregister(self._finish)
        record.tell(None)
        for name in self._running:
            self._log.task(name, "interrupted", self._since[name])
        self._log.close()
        progress.show_on(None)
        progress.begin("")
        if self._screen:
            self._screen.close()
        for lines in self._wrapped:
            lines.finish()
        sys.stdout, sys.stderr = self._streams


def readable(name: str) -> str:
    """A task's name as it is shown: helpers, which users do not call by name, in plain words."""
    return name[1:].replace("_", " ") if name.startswith("_") else name


def _shown(task: Any) -> str:
    return readable(str(task.title()))
