# SPDX-License-Identifier: Apache-2.0
"""`./doitw settings`: every setting with its present value; `./doitw settings NAME`: one, and what it rebuilds.

No list says which tasks a setting rebuilds. Instead, the tasks are created again with another value of it; the tasks
whose inputs then differ are rebuilt by a change of the setting.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from doit.exceptions import InvalidDodoFile

from sevsnp.errors import UserError
from sevsnp.pipeline.help import OF_THE_CACHE, Guide, entry, width, wrapped
from sevsnp.pipeline.run_log import redacted
from sevsnp.pipeline.tasks import Tasks
from sevsnp.settings.resolved import CONFIG_FILE, Settings, command_line_words, nearest_setting, resolve
from sevsnp.settings.table import GROUPS, NAMES, SECRETS, SETTINGS, Setting
from sevsnp.store.artefact import Artefact

_HEAD = (
    "Settings: NAME=value on the command line, the environment, config.yaml; in this order. In [ ]: where a value "
    "comes from that is not the default.",
    "One of them, and what a change of it rebuilds: ./doitw settings NAME",
)
# For every kind of setting, one of these texts is valid and differs from its present value.
_PROBES = (
    CONFIG_FILE,
    "1",
    "2",
    "0x20000",
    "0x30001",
    "snp:1",
    "any",
    "off",
    "17M",
    "18M",
    "300M",
    "1" * 32,
    "2" * 32,
    "192.0.2.1",
)
_MOST_PATHS = 4


def settings_page(guide: Guide, tasks: Tasks, names: Sequence[str]) -> str:
    """The text for the words after `settings`. Raises UserError for a word that is not a setting."""
    present = resolve(command_line_words(sys.argv[1:]), os.environ, Path(CONFIG_FILE))
    if not names:
        return _table(present)
    return "\n".join(_page(guide, tasks, present, name) for name in names)


def _table(present: Settings) -> str:
    lines = [*(line for text in _HEAD for line in wrapped(text, width())), ""]
    for title, settings in GROUPS:
        lines += wrapped(title, width())
        for setting in settings:
            source = "" if present.is_default(setting.name) else f"[{_source(present, setting)}] "
            lines += entry(f"{setting.name}={_shown(present.texts[setting.name])}", f"{source}{setting.help}")
        lines += [""]
    return "\n".join(lines)


def _page(guide: Guide, tasks: Tasks, present: Settings, name: str) -> str:
    if name.upper() in SECRETS:
        return "\n".join(wrapped(f"{name.upper()}: {SECRETS[name.upper()]}", width())) + "\n"
    setting = next((one for one in SETTINGS if one.key == name.lower()), None)
    if setting is None:
        raise UserError(f"{name}: no such setting", nearest_setting(name, NAMES, "./doitw settings {}"))
    title = next(title for title, settings in GROUPS if setting in settings)
    lines = [f"{setting.name}={_shown(present.texts[setting.name])}", *wrapped(setting.help, width()), ""]
    lines += _row("expected", setting.expected)
    lines += _row("default", _said(setting.default))
    lines += _row("present value", f"{_said(present.texts[setting.name])}, from {_source(present, setting)}")
    lines += _row("config.yaml", f"{setting.key}: {_shown(setting.default)}")
    lines += _row("group", title)
    if setting.name in OF_THE_CACHE:
        lines += _row("read by", "every task that builds")
    elif readers := _readers(guide, tasks, setting.name):
        lines += _row("read by", ", ".join(readers))
    lines += ["", *_rebuilt(guide, tasks, present, setting)]
    return "\n".join(lines) + "\n"


def _row(title: str, text: str) -> Iterator[str]:
    first, *more = wrapped(text, width() - 17) or [""]
    yield f"  {title:<13}  {first}"
    yield from (f"{'':17}{line}" for line in more)


def _source(present: Settings, setting: Setting) -> str:
    return present.sources[setting.name].removeprefix("the ")


def _said(text: str) -> str:
    return _shown(text) if text else "empty"


def _shown(text: str) -> str:
    """A value as a user would write it; a login in an address is not shown."""
    return redacted(text) or json.dumps("")


def _readers(guide: Guide, tasks: Tasks, name: str) -> list[str]:
    """The tasks that a user calls and that read a setting, either directly or through their helpers."""
    public = [
        task
        for task in tasks.by_name.values()
        if not (task.name.startswith("_") or task.subtask_of or (task.meta or {}).get("unlisted"))
    ]
    return [
        task.name
        for group in guide.order(public).values()
        for task in group
        if any(name in guide.read_by(one) for one in (task, *tasks.helpers(task)))
    ]


def _rebuilt(guide: Guide, tasks: Tasks, present: Settings, setting: Setting) -> list[str]:
    try:
        decided = decided_by(guide, tasks, present, setting)
    except InvalidDodoFile as error:
        return wrapped(f"Cannot tell what a change of it rebuilds: {error}", width())
    if not decided:
        return ["With the present other settings, a change of it rebuilds nothing."]
    lines = ["A change of it rebuilds:"]
    lines += [f"  {path}" for name in sorted(decided) for path in _shortened(tasks.by_name[name].targets)]
    if later := sorted(tasks.by_name[name].targets[0] for name in tasks.made_after(decided)):
        text = f"and, if their content changes, what is made from them: {', '.join(later)}"
        lines += wrapped(text, width())
    return lines


def _shortened(paths: Sequence[str]) -> list[str]:
    more = len(paths) - _MOST_PATHS
    return [*paths[:_MOST_PATHS], f"and {more} more"] if more > 1 else list(paths)


def decided_by(guide: Guide, tasks: Tasks, present: Settings, setting: Setting) -> set[str]:
    """The tasks whose inputs change with another value of ``setting``, while the other settings stay as they are.

    Settings that only say how a task works (a mirror, a cache) are not inputs. Raises InvalidDodoFile if the tasks
    refuse every other value.
    """
    now = {name: _made_from(task) for name, task in tasks.by_name.items() if task.targets}
    found: set[str] = set()
    refusal: InvalidDodoFile | None = None
    for text in _others(setting, present):
        try:
            then = {task.name: _made_from(task) for task in guide.tasks_with(f"{setting.name}={text}") if task.targets}
        except InvalidDodoFile as error:
            refusal = error
            continue
        found |= {name for name in then if then[name] != now.get(name)}
        if not setting.allowed:
            return found
        refusal = None
    if refusal:
        raise refusal
    return found


def _others(setting: Setting, present: Settings) -> Iterator[str]:
    """Texts that give the setting another value: all if there are few, else some."""
    for text in setting.allowed or _PROBES:
        try:
            if setting.parse(text) != present.values[setting.name]:
                yield text
        except ValueError:
            continue


def _made_from(task: Any) -> list[Any]:
    """Everything that a task declares as its inputs, except the content of the files."""
    found: list[Any] = [sorted(task.file_dep), task.targets]
    for item, arguments, options in task.uptodate:
        if isinstance(item, Artefact):
            found.append((item.function, item.inputs, item.directories, item.outputs, item.params, item.programs))
        else:
            found.append((arguments, options))
    return found
