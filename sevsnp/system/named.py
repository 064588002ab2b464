# SPDX-License-Identifier: Apache-2.0
"""Functions by name: a task names its function, and the function's module is loaded when the task runs."""

import importlib
from collections.abc import Callable
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system.nearest import did_you_mean


def load_named(function: str) -> Callable[..., Any]:
    """The function that ``module:function`` names. Raises UserError if there is no such module or function."""
    module, _, name = function.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, but lacks an import
        raise UserError(
            f"{function}: there is no module {error.name}", "correct the name in the task, in tasks/"
        ) from None
    found = getattr(loaded, name, None)
    if not callable(found):
        wrong = f"{function}: {module} has no function {name!r}"
        raise UserError(wrong, did_you_mean(name, vars(loaded)) or "correct the name in the task, in tasks/")
    return found  # type: ignore[no-any-return]
