# SPDX-License-Identifier: Apache-2.0
"""The external commands of this process, told to whoever keeps a record of them.

Nobody is told unless a recorder is set, as the pipeline's reporter does (sevsnp.pipeline.run_log); a call costs next to
nothing then. The build's recipes and host bundles reach this module, so it stays small and says nothing by itself.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sevsnp.system import progress


@dataclass(frozen=True, eq=False)
class Command:
    """A command that was started: ``words`` as they are executed, in ``cwd``, for ``task`` (empty: for none).

    ``env`` is what it gets beside what every command gets. ``began`` is in seconds since 1970, ``clock`` monotonic.
    """

    words: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    task: str = field(default_factory=progress.current)
    began: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)

    def keep(self, error: bytes, output: bytes = b"") -> Path | None:
        """Have all that it said kept, before :meth:`ended`; in which file, or None where nobody keeps it."""
        return _recorder.keep(self, error, output) if _recorder else None

    def ended(self, code: int | None) -> None:
        """It ended with the exit code ``code``; None where it could not be started, or goes on without us."""
        if _recorder:
            _recorder.ended(self, code)


class Recorder(Protocol):
    """Who keeps the record; called from any thread. What goes wrong with it is not the command's failure."""

    def started(self, command: Command) -> None: ...
    def keep(self, command: Command, error: bytes, output: bytes) -> Path | None: ...
    def ended(self, command: Command, code: int | None) -> None: ...


_recorder: Recorder | None = None


def tell(recorder: Recorder | None) -> None:
    """Tell ``recorder`` from now on; None tells nobody."""
    global _recorder
    _recorder = recorder


def starting(words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Command:
    """To be called right before a command is started."""
    command = Command(words, cwd or Path.cwd(), env or {})
    if _recorder:
        _recorder.started(command)
    return command
