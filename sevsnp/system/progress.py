# SPDX-License-Identifier: Apache-2.0
"""What a task is doing now. Library code reports it, and knows neither doit nor terminals.

Reports are shown only if a reporter has set a board, which reads the state kept here at its own pace. So a call costs
next to nothing, this module starts no thread, and any thread may call it. A thread that library code starts belongs to
no task: it reports through the :class:`Amount` that it was given.

The build's recipes include this module, so it stays small. Progress is drawn in sevsnp.system.live, which no recipe
includes.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol


class Amount:
    """The progress of one piece of work: ``done`` of ``total`` bytes (0: not known). Call it with each new count.

    ``bytes`` is false if things are counted instead of bytes.
    """

    def __init__(self, what: str, total: int = 0, *, bytes: bool = True) -> None:
        self.what, self.total, self.bytes = what, total, bytes
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count

    def at(self, done: int, total: int) -> None:
        """Set the progress; for a caller that counts by itself."""
        with self._lock:
            self._done, self.total = done, total

    @property
    def done(self) -> int:
        return self._done

    @property
    def complete(self) -> bool:
        """Whether the work is complete, even if its block goes on."""
        return 0 < self.total <= self.done


class _Growing(Amount):
    """The allocated bytes of a file that another process writes; the holes of a sparse file do not count."""

    def __init__(self, path: Path, what: str, total: int) -> None:
        super().__init__(what, total)
        self._path = path

    @property
    def done(self) -> int:
        with contextlib.suppress(OSError):
            return self._path.stat().st_blocks * 512
        return 0

    @property
    def complete(self) -> bool:
        return False  # the total is a guess; only the writer's end is the end


class _Counted(Amount):
    """Things that another process does. Each reading calls ``count`` for their number, which never decreases."""

    def __init__(self, what: str, total: int, count: Callable[[], int]) -> None:
        super().__init__(what, total, bytes=False)
        self._count = count

    @property
    def done(self) -> int:
        with contextlib.suppress(OSError):
            self._done = max(self._done, self._count())
        return self._done


class Board(Protocol):
    """The object that shows the progress: see sevsnp.system.live."""

    def step(self, task: str, text: str) -> None: ...
    def opened(self, task: str, amount: Amount) -> None: ...
    def closed(self, task: str, amount: Amount) -> None: ...
    def paused(self) -> AbstractContextManager[None]: ...


_board: Board | None = None
_task: ContextVar[str] = ContextVar("task", default="")
_remarks: dict[str, str] = {}


def show_on(board: Board | None) -> None:
    """Report to ``board`` from now on; None: to no board."""
    global _board
    _board = board


def begin(name: str) -> None:
    """From now on this thread works for the task ``name``; empty: for no task."""
    _task.set(name)


@contextmanager
def task(name: str) -> Iterator[None]:
    """Reports of this thread belong to the task ``name`` while the context lasts."""
    token = _task.set(name)
    try:
        yield
    finally:
        _task.reset(token)


def current() -> str:
    """The task that this thread works for; empty if there is none."""
    return _task.get()


def step(text: str) -> None:
    """The task's present step, in a few words. It is valid until the next step or the task's end."""
    if _board:
        _board.step(_task.get(), text)


@contextmanager
def amount(what: str, total: int = 0) -> Iterator[Amount]:
    """A piece of work of ``total`` bytes (0: not known yet). Call the yielded object with each number of bytes done."""
    with _opened(Amount(what, total)) as made:
        yield made


@contextmanager
def growing(path: Path, total: int, what: str = "writing") -> Iterator[None]:
    """The progress of a child process that writes ``path``: the allocated bytes so far, of ``total`` (0: not known)."""
    with _opened(_Growing(path, what, total)):
        yield


@contextmanager
def counted(what: str, total: int, count: Callable[[], int]) -> Iterator[None]:
    """The progress of a child process that does ``total`` things; ``count`` returns how many, OSError means none."""
    with _opened(_Counted(what, total, count)):
        yield


@contextmanager
def _opened(made: Amount) -> Iterator[Amount]:
    board, name = _board, _task.get()
    if board is None:
        yield made
        return
    board.opened(name, made)
    try:
        yield made
    finally:
        board.closed(name, made)


@contextmanager
def paused() -> Iterator[None]:
    """The terminal belongs to a prompt, or to a program that writes to it by itself, while the context lasts."""
    with _board.paused() if _board else contextlib.nullcontext():
        yield


def remark(text: str) -> None:
    """Words for the line that reports the task's end: how the result was obtained ("from the cache")."""
    _remarks[_task.get()] = text


def take_remark(name: str) -> str:
    """Take the remark on the task ``name``; empty if there is none."""
    return _remarks.pop(name, "")
