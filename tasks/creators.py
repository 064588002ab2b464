# SPDX-License-Identifier: Apache-2.0
"""Wraps every function that creates tasks: reports a user's error without a traceback, and records the settings read.

It can also create the tasks with another value of a setting.
"""

import functools
import inspect
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from sevsnp.errors import UserError
from sevsnp.pipeline import run_log
from tasks.project import other_settings, settings, settings_read


def watched(create: Callable[[], Any]) -> Callable[[], Any]:
    """``create``, a function task_NAME, for doit; the settings that it reads are put into ``settings_read[NAME]``."""

    # doit asks Python for the source of each such function, to sort them. Python reads that source word by word to its
    # end, so this function is short and does not lead to ``create``; the order is then that of the names in dodo.py.
    def creating() -> Any:
        return _made(create)

    functools.update_wrapper(creating, create)
    del creating.__wrapped__  # type: ignore[attr-defined]
    return creating


def _made(create: Callable[[], Any]) -> Any:
    from doit.exceptions import InvalidDodoFile

    name = create.__name__.removeprefix("task_")
    settings()  # an error in a setting is not the task's
    with settings_read.by(name):
        try:
            made = create()
            made = list(made) if inspect.isgenerator(made) else made
        except UserError as error:
            if run_log.verbose():
                traceback.print_exc()
            raise InvalidDodoFile(f"task {name}: {error}") from None
    # doit accepts a generator, not a list.
    return (task for task in made) if isinstance(made, list) else made


def tasks_with(creators: Mapping[str, Callable[[], Any]], word: str) -> list[Any]:
    """doit's tasks as ``creators`` make them with the setting ``word`` (NAME=value). Raises InvalidDodoFile."""
    from doit.loader import load_tasks

    with other_settings(word):
        return list(load_tasks(dict(creators), allow_delayed=True))
