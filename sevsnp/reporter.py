"""What doit says while it runs: a line for each task that does something, and how long it took."""

import re
import time
from typing import Any

from doit.reporter import ConsoleReporter

# Seconds of each task that ran in this process, for the table of an end-to-end run.
timings: dict[str, float] = {}


class Reporter(ConsoleReporter):  # type: ignore[misc]
    """doit's console reporter with timings, and errors without the name of the exception class."""

    desc = "a line for each task that runs, with its time"

    def initialize(self, tasks: Any, selected_tasks: Any) -> None:
        super().initialize(tasks, selected_tasks)
        self._started: dict[str, float] = {}

    def execute_task(self, task: Any) -> None:
        self._started[task.name] = time.monotonic()
        if task.actions:
            self.write(f"▸ {_shown(task)}\n")
            self.outstream.flush()

    def skip_uptodate(self, task: Any) -> None:
        """Nothing to say: what is up to date is not news."""

    def add_success(self, task: Any) -> None:
        if task.actions:
            seconds = time.monotonic() - self._started[task.name]
            timings[_shown(task)] = seconds
            self.write(f"✓ {_shown(task)} ({seconds:.1f} s)\n")

    def add_failure(self, task: Any, fail: Any) -> None:
        if fail.report:
            self.failures.append({"task": task, "exception": fail})
            # doit's own words for a file that no task makes hold its name and no more that helps.
            absent = re.search(r"Dependent file '(.+)' does not exist", fail.get_msg())
            message = f"{absent[1]}: no such file, and no task makes it" if absent else fail.get_msg().strip()
            self.write(f"✗ {_shown(task)}: {message}\n")

    def complete_run(self) -> None:
        for message in self.runtime_errors:
            self.write(f"{message}\n")


def _shown(task: Any) -> str:
    return str(task.title()).removeprefix("_").replace("_", " ") if task.name.startswith("_") else str(task.title())
