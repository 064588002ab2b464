# SPDX-License-Identifier: Apache-2.0
"""The table of all hints: those that a test provokes and follows, and the few that ask for nothing.

A test of tests/remedies takes its hints as rows with :func:`remedies`. :class:`Told` checks that each hint was really
shown, that it was followed as printed, and that the failed action then succeeds.
"""

import re
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from sevsnp.errors import UserError

Test = TypeVar("Test", bound=Callable[..., object])
Row = tuple[str, str]

# (module, text) to the test that follows the hint.
CASES: dict[Row, str] = {}

COMMAND_SECONDS = 600


def remedies(module: str, *texts: str) -> Callable[[Test], Test]:
    """The rows of a test: hints of ``module``, as in its source, with {} in place of values."""

    def take(test: Test) -> Test:
        for text in texts:
            CASES[module, text] = f"{test.__module__.rpartition('.')[2]}.py:{test.__name__}"
        test.__dict__.setdefault("rows", []).extend(texts)
        return test

    return take


@dataclass
class Told:
    """The messages shown in one test; the user is in ``cwd``, with ``variables`` exported."""

    rows: list[str]
    cwd: Path
    variables: dict[str, str]
    seen: set[str] = field(default_factory=set)

    def hint(self, action: Callable[[], object]) -> str:
        """The hint with which ``action`` fails, as it is shown: one of this test's rows, at the end of a line."""
        return self.read(failure(action))

    def read(self, said: str) -> str:
        """The hint in an output, also of a successful command: one of this test's rows, at the end of a line."""
        found = {}
        for row in self.rows:
            # After a command stand the settings with which the run was called (sevsnp/pipeline/hints.py).
            pattern = re.escape(row).replace(r"\{\}", ".*") + r"(?: [A-Z][A-Z_0-9]*=\S+)*"
            if match := re.search(rf"(?:^|: | )({pattern})$", said, re.MULTILINE):
                found[row] = match[1]
        assert found, f"none of {self.rows} is in:\n{said}"
        row = max(found, key=lambda one: (len(found[one]), len(one)))
        # One hint can be inside another: a command with which several hints end.
        self.seen |= {other for other in found if other == row or found[row].endswith(found[other])}
        return found[row]

    def doitw(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.shell(shlex.join(["./doitw", *words]))

    def shell(self, command: str) -> "subprocess.CompletedProcess[str]":
        """Run a line that a user types in a shell."""
        return subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self.cwd,
            env=self.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    def obey(self, hint: str, **values: object) -> None:
        """Run the command at the end of a hint, after its last colon. ``values`` replace its words in capitals."""
        command = hint.rpartition(": ")[2]
        for name, value in values.items():
            assert name in command, command
            command = command.replace(name, str(value))
        done = self.shell(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}"

    def mends(self, action: Callable[[], object], **values: object) -> None:
        """``action`` fails with a hint; after its command was run as printed, ``action`` succeeds."""
        self.obey(self.hint(action), **values)
        succeeds(action)

    def mended(self, action: Callable[[], object], mend: Callable[[], object]) -> None:
        """``action`` fails with a hint that asks for an edit; after ``mend`` has made it, ``action`` succeeds."""
        self.hint(action)
        mend()
        succeeds(action)

    def instead(self, action: Callable[[], object], other: Callable[[], object]) -> None:
        """``action`` fails with a hint that asks for another command; ``other`` runs that, and succeeds."""
        self.hint(action)
        succeeds(other)


def failure(action: Callable[[], object]) -> str:
    """The message shown to the user by an action that must fail: a UserError, or a process."""
    try:
        done = action()
    except UserError as error:
        return str(error)
    assert isinstance(done, subprocess.CompletedProcess), "it did not fail"
    assert done.returncode != 0, done.stdout
    return str(done.stdout)


def succeeds(action: Callable[[], object]) -> None:
    done = action()
    if isinstance(done, subprocess.CompletedProcess):
        assert done.returncode == 0, done.stdout
