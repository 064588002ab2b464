# SPDX-License-Identifier: Apache-2.0
"""The help texts: `./doitw list`, `help` and `help TASK`; settings_page.py has the settings.

All texts are made from the tasks, their docstrings, and the table of settings.
"""

import inspect
import json
import re
import shutil
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sevsnp.pipeline.tasks import YOURS, Tasks
from sevsnp.pipeline.welcome import WELCOME
from sevsnp.settings.table import SETTINGS, Setting

LEAST_WIDTH, WIDTH = 40, 110
NARROW = 80
# Every build reads these; no single task does.
OF_THE_CACHE = ("SEVSNP_CACHE", "CACHE", "CACHE_MODE", "CACHE_KEY", "CACHE_PUBLIC_KEY", "CACHE_SIZE")
LEGEND = {
    "U": "up to date",
    "R": "to be made",
    "E": "cannot be made: an input is missing",
    "I": "ignored",
    "-": "a command, which runs whenever it is asked for",
}


@dataclass(frozen=True)
class Guide:
    """Knowledge about the tasks by name: their groups in the list, their docstrings, and the settings that they read.

    ``tasks_with`` gives doit's tasks as they are with another setting, NAME=value.
    """

    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Collection[str]] = field(default_factory=dict)
    tasks_with: Callable[[str], Sequence[Any]] = lambda word: ()

    def read_by(self, task: Any) -> set[str]:
        """The settings that ``task`` itself reads."""
        return {*self.settings.get(base(task.name), ()), *((task.meta or {}).get("settings", ()))}

    def order(self, tasks: Sequence[Any]) -> dict[str, list[Any]]:
        """``tasks`` in their groups, with subtasks after their task; tasks without a group come last."""
        place = {name: (title, number) for title, names in self.groups.items() for number, name in enumerate(names)}
        grouped: dict[str, list[Any]] = {title: [] for title in (*self.groups, "Others")}
        for task in tasks:
            grouped[place.get(base(task.name), ("Others", 0))[0]].append(task)
        for title, found in grouped.items():
            found.sort(key=lambda task: (place.get(base(task.name), (title, 0))[1], task.name))
        return {title: found for title, found in grouped.items() if found}


def base(name: str) -> str:
    """The name of the task that a subtask belongs to."""
    return name.partition(":")[0]


def list_text(guide: Guide, tasks: Sequence[Any], letters: Mapping[str, str]) -> str:
    """The list for a human reader: in groups, with a legend; ``letters`` are statuses by task, or empty."""
    longest = max((len(task.name) for task in tasks), default=0)
    lines: list[str] = []
    grouped = guide.order(tasks)
    for title, found in grouped.items():
        if guide.groups:
            lines += [*([""] if lines else []), title]
        for task in found:
            status = f"{letters[task.name]} " if letters else ""
            lines.append(f"{'  ' if guide.groups else ''}{status}{task.name:<{longest}}   {task.doc}".rstrip())
    if guide.groups:
        lines += [
            "",
            "./doitw TASK [NAME=value]...   ./doitw help TASK: what it does and all its settings, some are in [ ]",
        ]
        lines += [
            "After build_tools, build/bin has verify_report, inspect_report, measure, idblock-generator and others."
        ]
        lines += [f"{letter}  {words}" for letter, words in LEGEND.items() if letter in letters.values()]
    return "".join(f"{line}\n" for line in lines)


def main_text(commands: Mapping[str, str]) -> str:
    """`./doitw help`: the purpose, the usual steps, and the commands beside the tasks, each with its purpose."""
    lines = [WELCOME.rstrip(), "", "The tasks are run by doit; the commands beside them are (./doitw help COMMAND):"]
    lines += [f"  {name:<22} {purpose}" for name, purpose in sorted(commands.items()) if name != "help"]
    return "\n".join(lines) + "\n"


def task_text(guide: Guide, tasks: Tasks, name: str) -> str:
    """`./doitw help TASK`: a paragraph, the task's options and settings, its outputs, and the next steps."""
    task = tasks.by_name[name]
    title, *rest = inspect.cleandoc(guide.texts.get(base(name), "")).split("\n\n")
    paragraphs = [" ".join(paragraph.split()) for paragraph in rest]
    then = [text for text in paragraphs if text.startswith("Next: ")]
    lines = [f"./doitw {name}", *wrapped(task.doc or title, width()), ""]
    for text in paragraphs:
        if text not in then:
            lines += [*wrapped(text, width()), ""]
    if task.params:
        lines += ["Options:", *(f"  {_option(option)}" for option in task.params), ""]
    before = tasks.all_needed(name)
    own, others = _settings_of(guide, tasks, name, before)
    if own:
        lines += ["Settings, with their defaults:"]
        lines += [line for setting in SETTINGS if setting.name in own for line in _setting(setting)]
        lines += [""]
    if others:
        lines += ["Settings of the tasks that run before it:"]
        for other, names in others.items():
            first, *more = wrapped(" ".join(names), width() - 25)
            lines += [f"  {other:<22} {first}", *(f"{'':25}{line}" for line in more)]
        lines += [""]
    if any(tasks.by_name[one].targets for one in (name, *before)):
        lines += [*wrapped(f"Settings of the artefact cache: {' '.join(OF_THE_CACHE)}", width()), ""]
    lines += _origins(guide, tasks, task)
    if made := list(task.targets) or (sorted(task.file_dep) if tasks.is_group(task) else []):
        lines += ["It makes:", *(f"  {path}" for path in made), ""]
    lines += [line for text in then for line in wrapped(text, width())]
    return "\n".join(lines).rstrip() + "\n"


def _origins(guide: Guide, tasks: Tasks, task: Any) -> list[str]:
    """The inputs of a task and its helpers, in words, and the other tasks that run before."""
    own = [task, *tasks.helpers(task)]
    # A directory stands for the files in it.
    found = {re.sub(r"^([^/]+/).*", r"\1", path) for one in own for path in tasks.sources(one)}
    words = sorted(found) + [YOURS[one.name] for one in own if one.name in YOURS]
    needed = {name for one in own for name in tasks.needed(one) if not name.startswith("_")}
    before = guide.order([tasks.by_name[name] for name in needed if base(name) != base(task.name)])
    lines = wrapped(f"It starts from: {', '.join(words)}", width()) if words else []
    if others := [one.name for group in before.values() for one in group]:
        lines += wrapped(f"These tasks run before it: {', '.join(others)}", width())
    return [*lines, ""] if lines else []


def _settings_of(
    guide: Guide, tasks: Tasks, name: str, before: Collection[str]
) -> tuple[set[str], dict[str, list[str]]]:
    """The settings that a task and its helpers read; and by task, the further ones that the tasks before it read."""

    def read(one: str) -> set[str]:
        return guide.read_by(tasks.by_name[one])

    helpers = [one for one in before if one.startswith("_") or base(one) == base(name)]
    own = set().union(*(read(one) for one in (name, *helpers)))
    others = {one: sorted(read(one) - own) for one in sorted(before) if one not in helpers}
    return own, {one: names for one, names in others.items() if names}


def _setting(setting: Setting) -> Iterator[str]:
    return entry(f"{setting.name}={setting.default or json.dumps('')}", f"{setting.help}. Expected: {setting.expected}")


def entry(shown: str, text: str) -> Iterator[str]:
    """The lines of one entry of a list: ``shown``, and beside or below it its description."""
    column = 31 if width() >= NARROW else 6
    lines = wrapped(text, width() - column)
    if len(shown) + 4 <= column:
        yield f"  {shown:<{column - 2}}{lines.pop(0)}"
    else:
        yield f"  {shown}"
    yield from (f"{'':{column}}{line}" for line in lines)


def wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


def width() -> int:
    """The width of the terminal, or COLUMNS; on a wide terminal, lines stay short enough to read well."""
    return max(LEAST_WIDTH, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def _option(option: Mapping[str, Any]) -> str:
    names = [*([f"-{option['short']}"] if option.get("short") else []), f"--{option['long']}"]
    value = "" if option.get("type") is bool else " WORDS"
    return f"{', '.join(names)}{value}".ljust(24) + str(option.get("help", ""))
