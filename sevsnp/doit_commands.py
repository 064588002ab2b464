"""doit's own commands, where they would say something else than a user of this project expects.

doit applies `clean` and `forget` without a task to the default task, which here only says what there is to do; it takes
a group (setup_verity) for a task that makes nothing; and it calls a task up to date whose inputs are not.
"""

import functools
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from doit import cmd_clean, cmd_forget, cmd_info, cmd_list
from doit.exceptions import InvalidCommand

BUILD = Path("build")


class Tasks:
    """doit's tasks, who makes what, and whether what they make is as it should be."""

    def __init__(self, tasks: Iterable[Any], database: Any) -> None:
        self.by_name = {task.name: task for task in tasks}
        self._maker = {target: task.name for task in self.by_name.values() for target in task.targets}
        self._database = database
        self._known: dict[str, str] = {}

    def needed(self, task: Any) -> list[str]:
        """The tasks before ``task``: those that make its inputs, and those it names."""
        makers = {self._maker[path] for path in task.file_dep if path in self._maker}
        return sorted(makers | {*task.task_dep, *task.setup_tasks})

    def standing_for(self, names: Iterable[str]) -> list[str]:
        """``names`` with the makers of what a group puts together in the group's place."""
        found: list[str] = []
        for name in names:
            task = self.by_name.get(name)
            found += [name] if task is None or not self.is_group(task) else [name, *self.needed(task)]
        return list(dict.fromkeys(found))

    @staticmethod
    def is_group(task: Any) -> bool:
        return not task.actions and not task.targets

    def status(self, name: str) -> str:
        """U for up to date, R where something is to be made, E where what it needs is not there and nobody makes it.

        I for ignored, and - for a command, which has nothing to be up to date.
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
            absent = set(found.reasons["missing_file_dep"] or ()) - self._maker.keys()
            own = "U" if found.status == "up-to-date" else "E" if absent else "R"
        return next((letter for letter in ("E", "R") if letter in {own, *before}), "U")


class Clean(cmd_clean.Clean):  # type: ignore[misc]
    """`doit clean [TASK …]`"""

    outstream: Any
    # Says what else is left, a line each.
    left: Callable[[], list[str]] = staticmethod(list)

    doc_purpose = "remove what was built"
    doc_description = (
        "Without TASK everything that was built goes. Keys, downloads, the artefact cache, volumes that guests have "
        "written and what guests and tests wrote below build/ stay."
    )

    def _execute(
        self, dryrun: bool, cleandep: bool, cleanall: bool, cleanforget: bool, pos_args: list[str] | None = None
    ) -> None:
        everything = cleanall or not pos_args
        super()._execute(dryrun, cleandep, everything, cleanforget, pos_args)
        if everything and not dryrun and BUILD.is_dir():
            _remove_empty(BUILD)
            if left := sorted(path.name for path in BUILD.iterdir()) if BUILD.is_dir() else []:
                self.outstream.write(f"left in {BUILD}: {', '.join(left)}\n")
        if everything:
            self.outstream.write("".join(f"left: {line}\n" for line in self.left()))

    def _expand(self, clean_list: list[str]) -> list[str]:
        return Tasks(self.task_list, self.dep_manager).standing_for(super()._expand(clean_list))

    def clean_tasks(self, tasks: list[Any], dryrun: bool, cleanforget: bool) -> None:
        said = io.StringIO()
        outstream, self.outstream = self.outstream, said
        try:
            super().clean_tasks(tasks, dryrun, cleanforget)
        finally:
            self.outstream = outstream
        # The name of a function within the library is no news to anybody.
        lines = [line for line in said.getvalue().splitlines() if " - executing 'Python: " not in line]
        if dryrun:
            lines = [line.replace("removing ", "would remove ", 1) for line in lines]
        outstream.write("".join(f"{line}\n" for line in lines) or "nothing to remove\n")


class Forget(cmd_forget.Forget):  # type: ignore[misc]
    """`doit forget [TASK …]`"""

    sel_tasks: Any

    doc_purpose = "forget that tasks have run, so that they run again"
    doc_description = "Without TASK: all of them. What the artefact cache has is copied from there all the same."

    def _execute(self, forget_sub: bool, forget_disable_default: bool, forget_all: bool) -> None:
        if not self.sel_default_tasks:
            known = Tasks(self.task_list, self.dep_manager)
            self.sel_tasks = known.standing_for(self.sel_tasks)
        super()._execute(forget_sub, forget_disable_default, forget_all or self.sel_default_tasks)


class List(cmd_list.List):  # type: ignore[misc]
    """`doit list`

    A task whose ``meta`` says ``unlisted`` (another name for a task, or one that few need) is shown with --all only.
    """

    def _execute(self, subtasks: bool, *arguments: Any, **options: Any) -> Any:
        self._everything = subtasks
        return super()._execute(subtasks, *arguments, **options)

    def _print_task(self, template: str, task: Any, status: bool, list_deps: bool, tasks: Mapping[str, Any]) -> None:
        if (task.meta or {}).get("unlisted") and not self._everything:
            return
        letter = ""
        if status:
            if not hasattr(self, "_tasks"):
                self._tasks = Tasks(self.task_list, self.dep_manager)
            letter = self._tasks.status(task.name)
        self.outstream.write(template.format(name=task.name, doc=task.doc, status=letter))
        if list_deps:
            self.outstream.write("".join(f" -  {path}\n" for path in sorted(task.file_dep)) + "\n")


class Info(cmd_info.Info):  # type: ignore[misc]
    """`doit info TASK`"""

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> int:
        tasks = Tasks(self.task_list, self.dep_manager)
        if len(pos_args) != 1 or pos_args[0] not in tasks.by_name:
            found = f"found {' '.join(pos_args)}" if pos_args else "found none"
            raise InvalidCommand(f"info: expected the name of one task, {found}; see: ./doitw list")
        task = tasks.by_name[pos_args[0]]
        lines = [task.name, "", task.doc or ""]
        letter = "-" if hide_status else tasks.status(task.name)
        if not hide_status:
            lines += ["", f"status: {_WORDS[letter]}"]
            lines += [f"  {reason}" for reason in self._why(tasks, task, letter)]
        makers = [name for name in tasks.needed(task) if tasks.by_name[name].targets or not name.startswith("_")]
        for title, items in (
            ("after", makers),
            ("inputs", sorted(task.file_dep)),
            ("outputs", list(task.targets)),
            ("options", [f"--{option['long']}: {option.get('help', '')}" for option in task.params]),
        ):
            if items:
                lines += ["", f"{title}:", *(f"  {item}" for item in items)]
        self.outstream.write("\n".join(lines) + "\n")
        return int(letter in "RE")

    def _why(self, tasks: Tasks, task: Any, letter: str) -> list[str]:
        """The reasons for a status, a line each."""
        if letter not in "RE":
            return []
        waiting = [f"{name} is to be made first" for name in tasks.needed(task) if tasks.status(name) in "RE"]
        if tasks.is_group(task):
            return waiting
        reasons = self.dep_manager.get_status(task, tasks.by_name, get_log=True).reasons
        # An item that can say what it found says it; doit's own are values and functions.
        own = [
            repr(item)
            for item, _, _ in reasons["uptodate_false"] or ()
            if not callable(item) or hasattr(item, "reason")
        ]
        for reason, words in _REASONS.items():
            own += [f"{path}: {words}" for path in sorted(reasons[reason] or ())]
        return [line for line in own if line != "False"] + waiting


_WORDS = {
    "U": "up to date",
    "R": "to be made",
    "E": "cannot be made",
    "I": "ignored",
    "-": "a command, runs whenever it is asked for",
}
_REASONS = {
    "missing_target": "not there",
    "missing_file_dep": "not there",
    "changed_file_dep": "changed",
    "removed_file_dep": "no longer an input",
    "added_file_dep": "a new input",
}


def _remove_empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            _remove_empty(path)
    if not any(directory.iterdir()):
        directory.rmdir()


def adopt(left: Callable[[], list[str]] = list) -> None:
    """Have doit use these for its own. ``left`` says what `doit clean` leaves outside build/, a line each.

    From dodo.py, when the command is already there: doit's own way, a plugin, is loaded before this directory is on the
    path, and would stop a bare checkout from working.
    """
    Clean.left = staticmethod(left)
    for own, ours in ((cmd_clean.Clean, Clean), (cmd_forget.Forget, Forget), (cmd_info.Info, Info)):
        _replace(own, ours)
    _replace(cmd_list.List, List)


def _replace(own: Any, ours: Any) -> None:
    original = own._execute

    @functools.wraps(original)
    def execute(self: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(self, ours):
            return original(self, *arguments, **options)
        self.__class__ = ours
        return self._execute(*arguments, **options)

    own._execute = execute
