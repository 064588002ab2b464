# SPDX-License-Identifier: Apache-2.0
"""`status`: the built and current artefacts, the running guests, and the next commands."""

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from sevsnp.guests.local import Guest, all_guests
from sevsnp.host.run import words_of
from sevsnp.settings.resolved import PLACES
from sevsnp.settings.table import NAMES
from sevsnp.system.command import run

# The tasks with which a user builds, in the pipeline's order, and their results.
BUILT = {
    "setup_verity": "the verified root and its VM configs",
    "setup_luks": "the encrypted root and its VM configs",
    "create_new_vm": "a Debian guest with a disk of its own",
    "host_bundle": "what a host needs to run the verified guest",
    "host_bundle_luks": "the same for the encrypted guest",
    "build_tools": "the verifier's commands",
}
_WORDS = {"U": "current", "R": "to be built", "E": "cannot be built", "I": "ignored"}


def status(*, runs: Path, words: Sequence[str]) -> None:
    """Print the status for the settings ``words`` of this run.

    Raises UserError if doit cannot tell what is up to date.
    """
    from rich.console import Console
    from rich.table import Table

    letters = _letters(words)
    screen = Console()
    table = Table("what", "task", "state", title="built", title_justify="left", box=None, pad_edge=False)
    for name, what in BUILT.items():
        colour = {"U": "green", "E": "red"}.get(letters.get(name, ""), "yellow")
        table.add_row(what, name, f"[{colour}]{_WORDS.get(letters.get(name, ''), 'not known')}[/]")
    screen.print(table)
    guests = [each for each in all_guests(runs) if each.run]
    screen.print()
    if guests:
        screen.print(_guests(guests))
        for guest in guests:
            for line in guest.require().forward_lines:
                screen.print(f"{guest.name}: {line}", highlight=False, soft_wrap=True)
    else:
        screen.print("no guest runs here")
    screen.print()
    for line in _next(letters, guests):
        screen.print(f"next: {line}", highlight=False, soft_wrap=True)


def _guests(guests: Iterable[Guest]) -> object:
    from rich.table import Table

    table = Table("name", "workflow", "platform", "ssh", "evidence", "process", "since", "attested",
                  title="guests", title_justify="left", box=None, pad_edge=False)  # fmt: skip
    for guest in guests:
        found = guest.require()
        platform = f"[yellow]{found.platform}[/]" if found.platform == "emulated" else found.platform
        ports = (str(found.ssh_port), str(found.attest_port) if found.workflow != "plain" else "")
        attested = guest.attested() or ("no" if found.workflow != "plain" else "")
        table.add_row(guest.name, found.workflow, platform, *ports, str(found.pid), found.started, attested)
    return table


def _next(letters: dict[str, str], guests: list[Guest]) -> list[str]:
    lines = []
    for guest in guests:
        found = guest.require()
        if found.workflow == "plain":
            continue
        if guest.attested():
            lines.append(f"./doitw ssh NAME={guest.name}")
        else:
            lines.append(f"./doitw attest_{found.workflow}{words_of(guest.name, found.workflow, found.platform)}")
    if not guests:
        ready = [name for name in ("verity", "luks") if letters.get(f"setup_{name}") == "U"]
        lines += [f"./doitw run_sev_snp_{name}" for name in ready] or ["./doitw setup_verity"]
    return lines


def _letters(words: Sequence[str]) -> dict[str, str]:
    """doit's status letter of each task: U for up to date, R for a task that must run, E for one that cannot."""
    settings = {name: os.environ[name] for name in (*NAMES, *PLACES) if name in os.environ}
    said = run([sys.executable, "-m", "doit", "list", "--all", "--status", *words], env=settings).decode()
    rows = (line.split() for line in said.splitlines())
    return {words[1]: words[0] for words in rows if len(words) > 1 and words[0] in "UREI-"}
