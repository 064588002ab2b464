# SPDX-License-Identifier: Apache-2.0
"""`./doitw completion SHELL`: the script that completes the words of doitw and doit.

The script contains all names, so that a press of TAB starts no Python. It must be made anew when there are new names.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from doit.doit_cmd import DoitMain

from sevsnp.errors import UserError
from sevsnp.pipeline.help import Guide
from sevsnp.settings.table import SETTINGS
from sevsnp.system.nearest import did_you_mean
from sevsnp.system.template import find_template, text_template

SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True)
class Words:
    """The words to complete: commands and tasks with their purpose, and their options.

    ``follows`` says what comes after a command or task: "names" of settings, "shells", "any" command or task, "files",
    or "nothing"; after all others come tasks and settings.
    """

    commands: Mapping[str, str]
    tasks: Mapping[str, str]
    options: Mapping[str, Sequence[str]]
    follows: Mapping[str, str]
    settings: Mapping[str, Sequence[str]]


def read_words(guide: Guide, tasks: Sequence[Any], own: Mapping[str, str], hidden: Container[str]) -> Words:
    """The words of doit's commands except ``hidden``, of our ``own``, and of the tasks that can be called by name."""
    commands = {name: one for name, one in DoitMain().get_cmds().to_dict().items() if name not in hidden}
    called = [task for task in tasks if not (task.name.startswith("_") or (task.meta or {}).get("unlisted"))]
    listed = [task for group in guide.order(called).values() for task in group]
    return Words(
        {**{name: one.doc_purpose for name, one in sorted(commands.items())}, **own},
        {task.name: task.doc or "" for task in listed},
        {
            **{name: _options(one.cmd_options) for name, one in commands.items()},
            **{task.name: _options(task.params) for task in listed if task.params},
        },
        {
            **{name: "nothing" for name, one in commands.items() if not one.doc_usage},
            **{task.name: "files" for task in listed if task.pos_arg},
            "help": "any",
            "settings": "names",
            "completion": "shells",
        },
        {setting.name: setting.allowed for setting in SETTINGS},
    )


def _options(options: Sequence[Mapping[str, Any]]) -> list[str]:
    short = [f"-{option['short']}" for option in options if option.get("short")]
    return [*(f"--{option['long']}" for option in options if option.get("long")), *short]


def completion_script(words: Words, shells: Sequence[str]) -> str:
    """The script for one of SHELLS. Raises UserError for any other shell."""
    if len(shells) != 1 or shells[0] not in SHELLS:
        found = " ".join(shells) or "none"
        meant = did_you_mean(found, SHELLS, "./doitw completion {}")
        raise UserError(f"completion: found {found}, expected one of {', '.join(SHELLS)}", meant)
    template = text_template(find_template(f"completion.{shells[0]}.j2"))
    return template.render(words=words, shells=SHELLS, quoted=_for_zsh if shells[0] == "zsh" else _for_fish)


def _for_zsh(name: str, text: str) -> str:
    """An entry of _describe; a colon ends its name."""
    described = name.replace(":", r"\:") + ":" + text
    return "'" + described.replace("'", r"'\''") + "'"


def _for_fish(text: str) -> str:
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"
