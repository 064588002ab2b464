# SPDX-License-Identifier: Apache-2.0
"""What is around every function that makes tasks: a user's error without a traceback, and which settings it reads.

And what they make with another value of one.
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
    """``create``, a function task_NAME, for doit; the settings that it reads are in ``settings_read[NAME]`` then."""

    # doit asks Python for the source of each such function, to have them in its order. It is read word for word up to
    # its end, so this one is short and does not lead on to ``create``; then the order is that of the names in dodo.py.
    def creating() -> Any:
        return _made(create)

    functools.update_wrapper(creating, create)
    del creating.__wrapped__  # type: ignore[attr-defined]
    return creating


def _made(create: Callable[[], Any]) -> Any:
    from doit.exceptions import InvalidDodoFile

    name = create.__name__.removeprefix("task_")
    settings()  # what is wrong with one is no task's fault
    with settings_read.by(name):
        try:
            made = create()
            made = list(made) if inspect.isgenerator(made) else made
        except UserError as error:
            if run_log.verbose():
                traceback.print_exc()
            raise InvalidDodoFile(f"task {name}: {error}") from None
    # doit takes a generator, and no list.
    return (task for task in made) if isinstance(made, list) else made


def tasks_with(creators: Mapping[str, Callable[[], Any]], word: str) -> list[Any]:
    """doit's tasks as ``creators`` make them with the setting ``word`` (NAME=value). Raises InvalidDodoFile."""
    from doit.loader import load_tasks

    with other_settings(word):
        return list(load_tasks(dict(creators), allow_delayed=True))
