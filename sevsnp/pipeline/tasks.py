# SPDX-License-Identifier: Apache-2.0
"""doit's tasks as one graph: their outputs, the tasks before each task, and whether each task is up to date."""

import os
from collections.abc import Collection, Iterable
from typing import Any

from doit.exceptions import InvalidTask

# Inputs outside the checkout are shown by their owner.
YOURS = {"_keys": "your keys"}


class Tasks:
    """doit's tasks, the maker of each file, and whether the tasks are up to date.

    Raises InvalidTask if two tasks make the same file.
    """

    def __init__(self, tasks: Iterable[Any], database: Any = None) -> None:
        self.by_name = {task.name: task for task in tasks}
        self._maker: dict[str, str] = {}
        for task in self.by_name.values():
            for target in task.targets:
                other = self._maker.setdefault(os.path.normpath(target), task.name)
                if other != task.name:
                    raise InvalidTask(f"{target}: two tasks make it, {other} and {task.name}; expected one")
        self._database = database
        self._known: dict[str, str] = {}

    def sources(self, task: Any) -> list[str]:
        """The inputs of ``task`` that no task makes."""
        return sorted(path for path in map(os.path.normpath, task.file_dep) if path not in self._maker)

    def needed(self, task: Any) -> list[str]:
        """The tasks before ``task``: those that make its inputs, and those it names."""
        makers = {self._maker[path] for path in map(os.path.normpath, task.file_dep) if path in self._maker}
        return sorted(makers | {*task.task_dep, *task.setup_tasks})

    def all_needed(self, name: str) -> set[str]:
        """All tasks before the task ``name``, and those before them."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            more = set(self.needed(self.by_name[waiting.pop()])) - found
            found |= more
            waiting += more
        return found

    def helpers(self, task: Any) -> list[Any]:
        """The tasks before ``task`` that cannot be called by name, unless another task stands between."""
        found: dict[str, Any] = {}
        waiting = [task]
        while waiting:
            for name in self.needed(waiting.pop()):
                if name not in found and name.startswith("_"):
                    found[name] = self.by_name[name]
                    waiting.append(self.by_name[name])
        return list(found.values())

    def made_after(self, names: Collection[str]) -> set[str]:
        """The tasks that make something, directly or indirectly, from the outputs of the tasks ``names``."""
        return {
            name
            for name, task in self.by_name.items()
            if task.targets and name not in names and not self.all_needed(name).isdisjoint(names)
        }

    def standing_for(self, names: Iterable[str]) -> list[str]:
        """``names``; each group is followed by the makers of what it puts together."""
        found: list[str] = []
        for name in names:
            task = self.by_name.get(name)
            found += [name] if task is None or not self.is_group(task) else [name, *self.needed(task)]
        return list(dict.fromkeys(found))

    @staticmethod
    def is_group(task: Any) -> bool:
        return not task.actions and not task.targets

    def status(self, name: str) -> str:
        """U: up to date; R: the task must run; E: an input is missing that no task makes.

        I: ignored; -: a command, which cannot be up to date.
        """
        if name not in self._known:
            self._known[name] = self._status(self.by_name[name])
        return self._known[name]

    def _status(self, task: Any) -> str:
        if self._database.status_is_ignore(task):
            return "I"
        if not task.targets and not self.is_group(task):
            return "-"
        before = {self.status(name) for name in self.needed(task)}
        if self.is_group(task):
            own = "U"
        else:
            found = self._database.get_status(task, self.by_name, get_log=True)
            absent = {
                path for path in found.reasons["missing_file_dep"] or () if os.path.normpath(path) not in self._maker
            }
            own = "U" if found.status == "up-to-date" else "E" if absent else "R"
        return next((letter for letter in ("E", "R") if letter in {own, *before}), "U")
