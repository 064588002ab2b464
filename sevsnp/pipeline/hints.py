# SPDX-License-Identifier: Apache-2.0
"""The commands in an error's hint, with the settings of this run: pasted, they continue the same work."""

import itertools
import re
from collections.abc import Mapping
from shlex import quote
from typing import Any

from sevsnp.pipeline.help import Guide
from sevsnp.pipeline.tasks import Tasks
from sevsnp.system.logins import without_login

# Words after ./doitw: names of tasks, settings, and perhaps prose. The punctuation of a sentence belongs to no value.
_WORD = r"[\w:]+(?:=(?:'[^']*'|[^\s'])*(?<![;,.)]))?"
_COMMAND = re.compile(rf"\./doitw((?: {_WORD})+)")
# Settings for how a run is shown, not for what it does.
_LEFT_OUT = {"DETACH", "VERBOSE"}


def with_settings(text: str, given: Mapping[str, str], guide: Guide, tasks: Mapping[str, Any]) -> str:
    """``text`` with the settings ``given`` on the command line (name to value) in each ./doitw command.

    A command gets those that its tasks or the tasks before them read and that it does not name itself. A login in an
    address is left out. ``tasks`` are doit's, by name.
    """
    if not given:
        return text
    graph = Tasks(tasks.values())

    def completed(found: re.Match[str]) -> str:
        words = re.findall(_WORD, found[1])
        command = list(itertools.takewhile(lambda word: word in tasks or "=" in word, words))
        named = {word.partition("=")[0] for word in command}
        called = named & tasks.keys()
        read = set().union(*(guide.read_by(tasks[one]) for name in called for one in (name, *graph.all_needed(name))))
        missing = [name for name in given if name in read - named - _LEFT_OUT]
        added = [f"{name}={quote(without_login(given[name]))}" for name in missing]
        return " ".join(["./doitw", *command, *added, *words[len(command) :]])

    return _COMMAND.sub(completed, text)
