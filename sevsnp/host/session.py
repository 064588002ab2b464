# SPDX-License-Identifier: Apache-2.0
"""A running guest in its state directory: one at a time, with a console; the user is told where it answers."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.host.console import read_console
from sevsnp.host.state import CONSOLE, Run, held
from sevsnp.qemu.run_options import RunOptions
from sevsnp.system.alongside import alongside
from sevsnp.system.files import short_name

# A warning that every emulated EPYC causes.
_NOISE = "warning: TCG doesn't support requested feature"
_SECONDS = 0.2


@dataclass(frozen=True)
class Told:
    """The messages for a guest's user: ``hint`` says how to run another guest, ``next`` is the next command.

    The firmware clears the screen, so they are printed again when the console has the line ``after``.
    """

    hint: str
    next: str
    after: str


@contextlib.contextmanager
def session(options: RunOptions, run: Run, told: Told) -> Iterator[RunOptions]:
    """Hold the guest's state directory while the guest runs; yields the options to start it with.

    Raises :class:`UserError` if another guest runs there. An error of QEMU begins with QEMU's own messages.
    """
    run = replace(run, console=not options.terminal, forwards=options.forwards)
    lines = [
        f"ssh at 127.0.0.1:{run.ssh_port}, evidence at 127.0.0.1:{run.attest_port}"
        if run.workflow != "plain"
        else f"ssh at 127.0.0.1:{run.ssh_port}",
        *run.forward_lines,
        f"serial console in {options.serial_log}",
        *([f"next, in a second terminal: {told.next}"] if told.next else []),
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(options.state, run, told.hint))
        options.serial_log.unlink(missing_ok=True)  # an earlier guest's, which the user would take for this one's
        if not options.terminal:
            options = replace(options, console=stack.enter_context(_console(options.state)).fileno())
        print("\n".join(lines), flush=True)
        if options.terminal and sys.stdout.isatty():
            stack.enter_context(_repeated(lines, options.serial_log, told.after))
        try:
            yield options
        except UserError as error:
            raise UserError(
                f"{_said(options)}{error.message}".strip(), error.hint or f"see the whole log: {options.messages}"
            ) from error


def _said(options: RunOptions) -> str:
    """The end of QEMU's messages without known noise, the last line first."""
    lines = [line for line in read_console(options.messages).splitlines() if line.strip() and _NOISE not in line]
    return "".join(f"QEMU: {line[:500]}\n" for line in reversed(lines[-5:]))


@contextlib.contextmanager
def _console(directory: Path) -> Iterator[socket.socket]:
    """A socket in ``directory`` at which QEMU offers the serial console to this user."""
    place = directory / CONSOLE
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, short_name(directory) as short:
        mask = os.umask(0o177)
        try:
            listener.bind(str(short / CONSOLE))
        finally:
            os.umask(mask)
        listener.listen(1)
        try:
            yield listener
        finally:
            place.unlink(missing_ok=True)


@contextlib.contextmanager
def _repeated(lines: Sequence[str], log: Path, after: str) -> Iterator[None]:
    def watch(ended: threading.Event) -> None:
        while not ended.wait(_SECONDS):
            if after in read_console(log):
                sys.stdout.write("".join(f"\r\n\033[1m{line}\033[0m" for line in lines) + "\r\n")
                sys.stdout.flush()
                return

    with alongside(watch):
        yield
