# SPDX-License-Identifier: Apache-2.0
"""The one error a user sees: what is wrong, and what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What to do about a file that is not whole.
AGAIN = "download or copy it again, and compare its digest with its author's"


class UserError(Exception):
    """Something the user can mend.

    ``message`` names the file or field, what was found and what was expected; ``hint`` is the command or edit that
    mends it. It is shown without a traceback.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


@contextmanager
def called(path: Path, name: str) -> Iterator[None]:
    """Errors about the temporary file ``path`` speak of ``name``, what the user gave and it was made from."""
    try:
        yield
    except UserError as error:
        hint = "" if str(path) in error.hint else error.hint  # a file that is gone cannot be repaired
        raise UserError(error.message.replace(str(path), name), hint) from error
