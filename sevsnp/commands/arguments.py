# SPDX-License-Identifier: Apache-2.0
"""How the commands in build/bin read their command lines."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from sevsnp.errors import UserError

USAGE = 64


class Parser(argparse.ArgumentParser):
    """Exits with 64 for a wrong command line: argparse's own 2 says here that evidence was refused."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_formatter, add_help=False, **options)
        # No line of the help for what has just been typed.
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)

    def error(self, message: str) -> Any:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def guarded(work: Callable[[], int], output: object = "output") -> int:
    """Run a command; what the user gave wrongly is one line on standard error. ``output`` is what it writes to."""
    try:
        return work()
    except UserError as error:
        print(error, file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"{error.filename or output}: {error.strerror}", file=sys.stderr)
        return USAGE


def _formatter(prog: str) -> argparse.HelpFormatter:
    """As wide as the terminal; to find that out argparse would import shutil, and with it all kinds of archives."""
    columns = os.environ.get("COLUMNS", "")
    try:
        width = int(columns) if columns.isdecimal() else os.get_terminal_size().columns
    except OSError:  # no terminal
        width = 80
    return argparse.HelpFormatter(prog, width=max(width, 40) - 2)
