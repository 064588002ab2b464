# SPDX-License-Identifier: Apache-2.0
"""The guests that run on this machine: status, logs, console, login, stop."""

from typing import Any

from tasks.graph import Task, command
from tasks.project import RUN, given_words, settings


def _of_guest(function: str, **arguments: Any) -> Task:
    return command(f"sevsnp.guests.local:{function}", runs=RUN, name=settings().text("NAME"), **arguments)


def task_status() -> Task:
    """Say what is built and current, which guests run, and what comes next

    For each guest that runs on this machine: its name, workflow, platform and ports, the process that ends with it,
    since when it runs, and when it was attested.

    Next: the command that it prints last.
    """
    return command("sevsnp.guests.status:status", runs=RUN, words=given_words())


def task_logs() -> Task:
    """Show the end of a guest's console and of what QEMU said [NAME]

    Shows the last lines of the logs in build/run, without anything that would move the terminal's cursor. Without NAME:
    those of every guest that has any.

    Next: ./doitw console, or ./doitw ssh for a guest that was attested.
    """
    return _of_guest("logs")


def task_console() -> Task:
    """Open the serial console of a guest started with DETACH=yes [NAME]

    Shows the console on this terminal and sends it what is typed. Ctrl-] leaves it; the guest runs on.

    Next: ./doitw stop ends the guest.
    """
    return _of_guest("console")


def task_ssh() -> Task:
    """Log in to an attested or plain guest; -c COMMAND runs one there [NAME]

    Uses the ssh configuration that the attestation of this guest has written, which takes no host key but the one that
    the evidence vouches for. For the plain guest of run_guest, for which nothing vouches, it says so.

    Next: ./doitw stop ends the guest.
    """
    option = {
        "name": "command",
        "short": "c",
        "long": "command",
        "default": "",
        "help": "what to run in the guest; with a = in it: --command='A=1 env'",
    }
    return {**_of_guest("login"), "params": [option]}


def task_stop() -> Task:
    """End a guest: it powers off where it was attested, else QEMU is ended [NAME]

    An attested guest is asked by ssh to power itself off. QEMU is ended where that cannot be or does not help: for the
    guest that is a power cut.

    Next: ./doitw status
    """
    return _of_guest("stop")
