# SPDX-License-Identifier: Apache-2.0
"""The command-line parser and the error handling that the commands in build/bin share."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from sevsnp.errors import UserError
from sevsnp.system.text import printable

USAGE = 64


class Parser(argparse.ArgumentParser):
    """A parser that exits with 64 for a wrong command line: argparse's own 2 means here that evidence was refused."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_formatter, add_help=False, **options)
        # The help does not list --help, because the user has just typed it.
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)

    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def guarded(work: Callable[[], int], output: object = "output", json: bool = False) -> int:
    """Run a command; print a user's error on standard error. ``output`` names the file that the command writes.

    With ``json``, standard output gets the error, too: a document with ``error``, ``remedy`` and no ``checks``.
    """
    try:
        return work()
    except UserError as error:
        show_error(error)
        if json:
            from json import dumps

            print(dumps({"error": error.message, "remedy": error.hint, "checks": []}, indent=2))
    except OSError as error:  # a file to be written: the result has been printed before
        print(printable(f"{error.filename or output}: {error.strerror}"), file=sys.stderr)
    return USAGE


def show_error(error: UserError) -> None:
    """Print a user's error on standard error; parts of it may come from evidence or from another foreign file."""
    print(printable(str(error), keep="\n"), file=sys.stderr)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """A help formatter as wide as the terminal. argparse itself would import shutil and all its archive modules."""
    columns = os.environ.get("COLUMNS", "")
    try:
        width = int(columns) if columns.isdecimal() else os.get_terminal_size().columns
    except OSError:  # there is no terminal
        width = 80
    return argparse.HelpFormatter(prog, width=max(width, 40) - 2)
