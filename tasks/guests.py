"""The guests that run on this machine: what runs, its logs, its console, a login, its end."""

from typing import Any

from tasks.graph import Task, command
from tasks.project import RUN, settings


def _of_guest(function: str, **arguments: Any) -> Task:
    return command(f"sevsnp.guests:{function}", runs=RUN, name=settings().text("NAME"), **arguments)


def task_status() -> Task:
    """Say what is built and current, which guests run, and what comes next"""
    return command("sevsnp.status:status", runs=RUN)


def task_logs() -> Task:
    """Show the end of a guest's console and of what QEMU said [NAME]"""
    return _of_guest("logs")


def task_console() -> Task:
    """Open the serial console of a guest started with DETACH=yes [NAME]"""
    return _of_guest("console")


def task_ssh() -> Task:
    """Log in to an attested guest; -c COMMAND runs one there [NAME]"""
    option = {"name": "command", "short": "c", "long": "command", "default": "", "help": "what to run in the guest"}
    return {**_of_guest("login"), "params": [option]}


def task_stop() -> Task:
    """End a guest: it powers off where it was attested, else QEMU is ended [NAME]"""
    return _of_guest("stop")
