# SPDX-License-Identifier: Apache-2.0
"""The one error a user sees: what is wrong, and what to do about it."""


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
