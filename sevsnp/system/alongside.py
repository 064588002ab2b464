# SPDX-License-Identifier: Apache-2.0
"""Work that goes on in a thread beside other work, and ends with it."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def alongside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let ``work`` run in a thread of its own; at the end its event is set, and it is waited for."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
