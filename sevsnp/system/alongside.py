# SPDX-License-Identifier: Apache-2.0
"""Work in a thread beside other work; it ends with that work."""

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def alongside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let ``work`` run in a thread of its own. At the end its event is set, and the caller waits for the thread."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
