# SPDX-License-Identifier: Apache-2.0
"""What a task is doing now, said by library code that knows neither doit nor terminals.

Nobody looks unless a reporter has set up a board; then the board reads, at its own pace, what is kept here. So a call
costs next to nothing, nothing here starts a thread, and all of it may be called from any thread. A thread that library
code starts belongs to no task of its own: what it reports goes through the :class:`Amount` that it was given.

The build's recipes reach this module, so it stays small: how progress is drawn is in sevsnp.system.live, which none
reaches.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Protocol


class Amount:
    """Bytes of one piece of work: ``done`` of ``total`` (0: not known). Call it with how many more are done.

    ``bytes`` is false where it is things that are counted.
    """

    def __init__(self, what: str, total: int = 0, *, bytes: bool = True) -> None:
        self.what, self.total, self.bytes = what, total, bytes
        self._done = 0
        self._lock = threading.Lock()

    def __call__(self, count: int) -> None:
        with self._lock:
            self._done += count

    def at(self, done: int, total: int) -> None:
        """Say where the work stands, for who counts for himself."""
        with self._lock:
            self._done, self.total = done, total

    @property
    def done(self) -> int:
        return self._done

    @property
    def complete(self) -> bool:
        """All done, although the block that it belongs to goes on."""
        return 0 < self.total <= self.done


class _Growing(Amount):
    """The allocated bytes of a file that somebody else writes: of a sparse one, what is really there."""

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
        return False  # the total is a guess; the writer's end is the end


class _Counted(Amount):
    """Things that somebody else does, and ``count`` counts whenever somebody looks; never fewer than before."""

    def __init__(self, what: str, total: int, count: Callable[[], int]) -> None:
        super().__init__(what, total, bytes=False)
        self._count = count

    @property
    def done(self) -> int:
        with contextlib.suppress(OSError):
            self._done = max(self._done, self._count())
        return self._done


class Board(Protocol):
    """Who shows it: see sevsnp.system.live."""

    def step(self, task: str, text: str) -> None: ...
    def opened(self, task: str, amount: Amount) -> None: ...
    def closed(self, task: str, amount: Amount) -> None: ...
    def paused(self) -> AbstractContextManager[None]: ...


_board: Board | None = None
_task: ContextVar[str] = ContextVar("task", default="")
_remarks: dict[str, str] = {}


def show_on(board: Board | None) -> None:
    """Tell ``board`` from now on; None tells nobody."""
    global _board
    _board = board


def begin(name: str) -> None:
    """From here on this thread works for the task ``name``; empty: for none."""
    _task.set(name)


@contextmanager
def task(name: str) -> Iterator[None]:
    """What is said inside, in this thread, is said of the task ``name``."""
    token = _task.set(name)
    try:
        yield
    finally:
        _task.reset(token)


def current() -> str:
    """The task that this thread works for; empty where there is none."""
    return _task.get()


def step(text: str) -> None:
    """What the task does now, in a few words; until the next step or the task's end."""
    if _board:
        _board.step(_task.get(), text)


@contextmanager
def amount(what: str, total: int = 0) -> Iterator[Amount]:
    """A piece of work of ``total`` bytes (0: not known yet); call what it gives with each number of bytes done."""
    with _opened(Amount(what, total)) as made:
        yield made


@contextmanager
def growing(path: Path, total: int, what: str = "writing") -> Iterator[None]:
    """While a child process writes ``path``: how much of ``total`` bytes (0: not known) its blocks take so far."""
    with _opened(_Growing(path, what, total)):
        yield


@contextmanager
def counted(what: str, total: int, count: Callable[[], int]) -> Iterator[None]:
    """While a child process does ``total`` things of which ``count`` says how many are done; OSError counts as none."""
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
    """The terminal is somebody else's: a prompt's, or that of a program which writes to it by itself."""
    with _board.paused() if _board else contextlib.nullcontext():
        yield


def remark(text: str) -> None:
    """Words for the line that says that the task is done: how it came to that ("from the cache")."""
    _remarks[_task.get()] = text


def take_remark(name: str) -> str:
    """The remark on the task ``name``, once; empty where there is none."""
    return _remarks.pop(name, "")
