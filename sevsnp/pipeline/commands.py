# SPDX-License-Identifier: Apache-2.0
"""doit's own commands, changed where their result would surprise a user of this project.

doit applies `clean` and `forget` without a task to the default task, which here only prints the possible commands. It
treats a group (setup_verity) as a task that makes nothing. It calls a task up to date although its inputs are not.
"""

import contextlib
import errno
import functools
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from doit import cmd_clean, cmd_forget, cmd_help, cmd_ignore, cmd_info, cmd_list, cmd_resetdep, cmd_run, cmd_strace
from doit.cmdparse import CmdParseError
from doit.exceptions import InvalidCommand

from sevsnp.errors import UserError
from sevsnp.pipeline import run_log
from sevsnp.pipeline.help import LEGEND, Guide, list_text, main_text, task_text
from sevsnp.pipeline.reporter import Reporter
from sevsnp.pipeline.settings_page import settings_page
from sevsnp.pipeline.tasks import Tasks
from sevsnp.system.files import remove_tree
from sevsnp.system.nearest import did_you_mean

BUILD = Path("build")
# doit's own command for the same purpose as `completion`; it loads no task, so it cannot be replaced.
HIDDEN = ("tabcompletion",)
# Our own commands, with their purpose.
OWN = {
    "settings": "show all settings and their values; settings NAME: one, and what it rebuilds",
    "completion": "print a script for TAB: completion bash, zsh or fish; README.md says where it goes",
}


class Run(cmd_run.Run):  # type: ignore[misc]
    """`doit [run] TASK …`, and our own commands: doit's list of commands is closed and takes their names for tasks."""

    guide = Guide()
    outstream: Any
    sel_tasks: Any

    def _execute(self, *arguments: Any, **options: Any) -> Any:
        name, *words = self.sel_tasks
        if name not in OWN:
            return super()._execute(*arguments, **options)
        self.outstream.write(_page(name, words, self))
        return 0


def _page(name: str, words: list[str], command: Any) -> str:
    """The output of our own command ``name``. An error in its words becomes doit's error, without a traceback."""
    try:
        if name == "settings":
            return settings_page(command.guide, Tasks(command.task_list), words)
        from sevsnp.pipeline.completion import completion_script, read_words

        return completion_script(read_words(command.guide, command.task_list, OWN, HIDDEN), words)
    except UserError as error:
        raise InvalidCommand(str(error)) from None


class Clean(cmd_clean.Clean):  # type: ignore[misc]
    """`doit clean [TASK …]`"""

    outstream: Any
    # Returns what else is left, a line each.
    left: Callable[[], list[str]] = staticmethod(list)

    doc_purpose = "remove what was built"
    doc_description = (
        "Without TASK everything that was built is removed, with the log of the last runs. Keys, downloads, the "
        "artefact cache, volumes that guests have written and what guests and tests wrote below build/ stay."
    )

    def _execute(
        self, dryrun: bool, cleandep: bool, cleanall: bool, cleanforget: bool, pos_args: list[str] | None = None
    ) -> None:
        everything = cleanall or not pos_args
        super()._execute(dryrun, cleandep, everything, cleanforget, pos_args)
        if everything and not dryrun and BUILD.is_dir():
            if run_log.DIRECTORY.is_dir():
                remove_tree(run_log.DIRECTORY)
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
        # The name of a function of the library does not help the user.
        lines = [line for line in said.getvalue().splitlines() if " - executing 'Python: " not in line]
        if dryrun:
            lines = [line.replace("removing ", "would remove ", 1) for line in lines]
        outstream.write("".join(f"{line}\n" for line in lines) or "nothing to remove\n")


class Forget(cmd_forget.Forget):  # type: ignore[misc]
    """`doit forget [TASK …]`"""

    sel_tasks: Any

    doc_purpose = "forget that tasks have run, so that they run again"
    doc_description = "Without TASK: all of them. What is in the artefact cache is copied, not made again."

    def _execute(self, forget_sub: bool, forget_disable_default: bool, forget_all: bool) -> None:
        if not self.sel_default_tasks:
            known = Tasks(self.task_list, self.dep_manager)
            self.sel_tasks = known.standing_for(self.sel_tasks)
        super()._execute(forget_sub, forget_disable_default, forget_all or self.sel_default_tasks)


class List(cmd_list.List):  # type: ignore[misc]
    """`doit list`

    A task whose ``meta`` says ``unlisted`` (another name for a task) is shown only with --all. The order is that of the
    guide, whatever --sort says; output for programs (--quiet, --template, --deps) has no groups.
    """

    guide = Guide()
    outstream: Any

    doc_purpose = "list the tasks; --all: subtasks and other names, --status: whether they are up to date"

    def _execute(
        self,
        subtasks: bool = False,
        quiet: bool = True,
        status: bool = False,
        private: bool = False,
        list_deps: bool = False,
        template: str | None = None,
        sort: str = "name",
        pos_args: list[str] | None = None,
    ) -> int:
        tasks = Tasks(self.task_list, self.dep_manager)
        if pos_args:
            shown = self._list_filtered(tasks.by_name, pos_args, subtasks)
        else:
            shown = [task for task in self._list_all(subtasks) if subtasks or not (task.meta or {}).get("unlisted")]
        shown = [task for task in shown if private or not task.name.startswith("_")]
        letters = {task.name: tasks.status(task.name) for task in shown} if status else {}
        if not (quiet or list_deps or template or pos_args):
            self.outstream.write(list_text(self.guide, shown, letters))
            return 0
        width = max((len(task.name) for task in shown), default=0)
        for task in (task for group in self.guide.order(shown).values() for task in group):
            line = f"{letters.get(task.name, '')} " if status and not template else ""
            line += template or f"{{name:<{width + 3}}}{'' if quiet else '{doc}'}"
            self.outstream.write(line.format(name=task.name, doc=task.doc, status=letters.get(task.name, "")) + "\n")
            if list_deps:
                self.outstream.write("".join(f" -  {path}\n" for path in sorted(task.file_dep)) + "\n")
        return 0


class Help(cmd_help.Help):  # type: ignore[misc]
    """`doit help TASK`. Without a word, doit prints its own help before this is loaded, so doitw runs `help doitw`."""

    guide = Guide()
    outstream: Any

    def _execute(self, pos_args: list[str]) -> bool:
        name = pos_args[0]
        tasks = Tasks(self.task_list)
        if name == "doitw":
            self.outstream.write(_all_commands(self.cmds))
        elif name == "settings":
            self.outstream.write(_page(name, [], self))
        elif name in OWN:
            self.outstream.write(f"{name}: {OWN[name]}\n")
        elif name in tasks.by_name:
            self.outstream.write(task_text(self.guide, tasks, name))
        else:
            raise InvalidCommand(not_found=name)
        return True


class Ignore(cmd_ignore.Ignore):  # type: ignore[misc]
    """`doit ignore TASK …`: for a misspelt task it suggests the nearest one, as all commands here do."""


class ResetDep(cmd_resetdep.ResetDep):  # type: ignore[misc]
    """`doit reset-dep [TASK …]`: likewise."""


class Strace(cmd_strace.Strace):  # type: ignore[misc]
    """`doit strace TASK`: doit would call a misspelt task a dependency of strace's own task."""

    sel_tasks: Any

    def _execute(self, *arguments: Any, **options: Any) -> Any:
        for name in self.sel_tasks:
            if name not in Tasks(self.task_list).by_name:
                raise InvalidCommand(not_found=name)
        return super()._execute(*arguments, **options)


class Info(cmd_info.Info):  # type: ignore[misc]
    """`doit info TASK`"""

    doc_purpose = "say whether a task is up to date, and why not; its inputs and outputs"

    def _execute(self, pos_args: list[str], hide_status: bool = False) -> int:
        tasks = Tasks(self.task_list, self.dep_manager)
        if len(pos_args) != 1 or pos_args[0] not in tasks.by_name:
            found = f"found {' '.join(pos_args)}" if pos_args else "found none"
            if len(pos_args) == 1:
                raise InvalidCommand(not_found=pos_args[0])
            raise InvalidCommand(f"info: expected the name of one task, {found}; see: ./doitw list")
        task = tasks.by_name[pos_args[0]]
        lines = [task.name, "", task.doc or ""]
        letter = "-" if hide_status else tasks.status(task.name)
        if not hide_status:
            lines += ["", f"status: {LEGEND[letter]}"]
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
        waiting = [f"{name} must be made first" for name in tasks.needed(task) if tasks.status(name) in "RE"]
        if tasks.is_group(task):
            stale = sorted(name for name in tasks.all_needed(task.name) if tasks.status(name) in "RE")
            return [f"{name}: {line}" for name in stale for line in self._own(tasks, tasks.by_name[name])] or waiting
        return self._own(tasks, task) + waiting

    def _own(self, tasks: Tasks, task: Any) -> list[str]:
        """The reasons in the task itself, not in a task that must run before it."""
        if tasks.is_group(task):
            return []
        reasons = self.dep_manager.get_status(task, tasks.by_name, get_log=True).reasons
        # Some items say what they found; doit's own items are values and functions.
        own = [
            repr(item)
            for item, _, _ in reasons["uptodate_false"] or ()
            if not callable(item) or hasattr(item, "reason")
        ]
        for reason, words in _REASONS.items():
            own += [f"{path}: {words}" for path in sorted(reasons[reason] or ())]
        return [line for line in own if line != "False"]


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


def adopt(guide: Guide | None = None, left: Callable[[], list[str]] = list) -> None:
    """Replace doit's commands by these. ``left`` returns what `doit clean` leaves outside build/, a line each.

    dodo.py calls this, when doit's command already exists. doit's own way, a plugin, does not work: it is loaded before
    this directory is on the path, and would break a bare checkout.
    """
    List.guide = Help.guide = Run.guide = Reporter.guide = guide or Guide()
    Clean.left = staticmethod(left)
    for ours in (Clean, Forget, Help, Ignore, Info, List, ResetDep, Run, Strace):
        _replace(ours.__base__, ours)
    cmd_help.Help.print_usage = _own_words


def _own_words(self: Any, commands: Mapping[str, Any]) -> None:
    """Replaces doit's usage text, which doit prints for every error, by the error itself."""
    if sys.exc_info()[0]:
        raise  # an except clause of doit calls this
    self.outstream.write(_all_commands(commands))


def _all_commands(commands: Mapping[str, Any]) -> str:
    purposes = {name: command.doc_purpose for name, command in commands.items() if name not in HIDDEN}
    return main_text({**purposes, **OWN})


def _replace(own: Any, ours: Any) -> None:
    original = own._execute
    own.doc_purpose, own.doc_description = ours.doc_purpose, ours.doc_description

    @functools.wraps(original)
    def execute(self: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(self, ours):
            return original(self, *arguments, **options)  # ours called it, by super()
        self.__class__ = ours
        with _understood(self), _standard_output():
            Tasks(self.task_list)  # raises for two tasks that make the same file, whatever task was asked for
            return self._execute(*arguments, **options)

    own._execute = execute


@contextlib.contextmanager
def _understood(command: Any) -> Iterator[None]:
    """Refuse a word that names no task, or no option of one, and suggest the nearest that does."""
    try:
        yield
    except CmdParseError as error:
        said = re.search("option (--[a-z-]+) not recognized", str(error))
        if not said:
            raise
        meant = did_you_mean(said[1], re.findall("'long':'([a-z-]+)'", str(error)), "--{}")
        raise InvalidCommand("\n  ".join(filter(None, (f"{said[1]}: no such option", meant)))) from None
    except InvalidCommand as error:
        said = re.fullmatch("'(.*)' is not a task.", str(error))
        word = error.not_found or (said and said[1])
        if not word:
            raise
        names = [task.name for task in command.task_list if not task.name.startswith("_")]
        meant = did_you_mean(word, [*names, *command.loader.cmd_names, *OWN], "./doitw {}")
        raise InvalidCommand(
            f"{word}: no such task\n  {' '.join(filter(None, (meant, 'all tasks: ./doitw list')))}"
        ) from None


@contextlib.contextmanager
def _standard_output() -> Iterator[None]:
    """Report a failure to write to standard output in one line; report nothing if the reader has closed the pipe."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        # For an exception from a thread, doit keeps only its text.
        said = re.fullmatch(r"\[Errno (\d+)\] [^:]*", str(error))
        number = int(said[1]) if said else 0
        if error.filename is not None or number not in (errno.ENOSPC, errno.EPIPE, errno.EIO):
            raise
        # Otherwise Python would try to write again when it ends, and report that.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if number != errno.EPIPE:
            sys.stderr.write(f"standard output: cannot be written: {os.strerror(number)}\n")
        sys.exit(1)
