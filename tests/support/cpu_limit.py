# SPDX-License-Identifier: Apache-2.0
"""A limit of processor time for work on untrusted bytes. Time on the clock depends on the machine's other work."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TooMuchWork(BaseException):
    """The work took more processor time than its limit. A BaseException, because parsers catch Exception."""


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`TooMuchWork` in the block as soon as this process has used ``seconds`` of processor time in it.

    Only for the main thread. Regular expressions and other long work of the interpreter are interrupted too.
    """

    def expired(number: int, frame: FrameType | None) -> None:
        raise TooMuchWork(f"more than {seconds} s of processor time")

    before = signal.signal(signal.SIGPROF, expired)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
