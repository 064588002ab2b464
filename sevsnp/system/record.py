# SPDX-License-Identifier: Apache-2.0
"""Reports the external commands of this process to a recorder.

There is no recorder unless the pipeline's reporter sets one (sevsnp.pipeline.run_log); a call costs next to nothing
then. The build's recipes and host bundles include this module, so it stays small and prints nothing.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sevsnp.system import progress


@dataclass(frozen=True, eq=False)
class Command:
    """A command that was started: ``words`` as they are executed, in ``cwd``, for ``task`` (empty: for no task).

    ``env`` are its variables beside those that every command gets. ``began`` is in seconds since 1970, ``clock``
    monotonic.
    """

    words: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    task: str = field(default_factory=progress.current)
    began: float = field(default_factory=time.time)
    clock: float = field(default_factory=time.monotonic)

    def keep(self, error: bytes, output: bytes = b"") -> Path | None:
        """Keep the command's whole output, before :meth:`ended`. Returns the file, or None if there is no recorder."""
        return _recorder.keep(self, error, output) if _recorder else None

    def ended(self, code: int | None) -> None:
        """The command ended with exit code ``code``; None: it could not be started, or it goes on without us."""
        if _recorder:
            _recorder.ended(self, code)


class Recorder(Protocol):
    """The object that keeps the record; any thread may call it. Its errors are not the command's failure."""

    def started(self, command: Command) -> None: ...
    def keep(self, command: Command, error: bytes, output: bytes) -> Path | None: ...
    def ended(self, command: Command, code: int | None) -> None: ...


_recorder: Recorder | None = None


def tell(recorder: Recorder | None) -> None:
    """Report to ``recorder`` from now on; None: to no recorder."""
    global _recorder
    _recorder = recorder


def starting(words: Sequence[str], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Command:
    """Report a command. Call it right before the command is started."""
    command = Command(words, cwd or Path.cwd(), env or {})
    if _recorder:
        _recorder.started(command)
    return command
