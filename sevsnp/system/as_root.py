# SPDX-License-Identifier: Apache-2.0
"""Commands that only root may run: how this process becomes root, and how it asks the user first."""

import os
import sys

from sevsnp.errors import UserError
from sevsnp.system import command


def has_terminal() -> bool:
    """Whether a user can answer a question."""
    return sys.stdin is not None and sys.stdin.isatty()


def root_words(why: str, hint: str) -> list[str]:
    """The words in front of a command that make it run as root: none for root itself, else those of sudo.

    Raises :class:`UserError`, which begins with ``why``, if this user cannot become root.
    """
    if os.geteuid() == 0:
        return []
    if command.find("sudo") is None:
        raise UserError(f"{why}: sudo: command not found", hint)
    if has_terminal():
        return ["sudo"]  # sudo asks for the password itself
    try:
        command.run(["sudo", "-n", "true"], timeout=30)
    except UserError:
        raise UserError(f"{why}: sudo needs a password, and there is no terminal", hint) from None
    return ["sudo", "-n"]


def agreed(question: str, *, default: bool) -> bool:
    """Ask the user on the terminal; an empty line means ``default``."""
    print(f"{question} {'[Y/n]' if default else '[y/N]'} ", end="", flush=True)
    answer = sys.stdin.readline()
    # An empty string is the end of the input, where no user has agreed.
    return answer != "" and (answer.strip().lower() in ("y", "yes") or (default and not answer.strip()))
