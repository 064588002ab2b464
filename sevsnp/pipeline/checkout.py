# SPDX-License-Identifier: Apache-2.0
"""The lock of a checkout: only one run at a time checks and makes artefacts in it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sevsnp.system.files import cannot_write
from sevsnp.system.locks import locked

Say = Callable[[str], None]


class Checkout:
    """The lock of a checkout: only one run at a time checks and makes artefacts in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._held: AbstractContextManager[None] | None = None
        self._makers = 0

    def acquire(self, say: Say) -> None:
        """Wait for the lock. Raises UserError if its file cannot be made."""
        with self._guard:
            if self._held is None:
                held = locked(self._path, waiting=lambda: say("waiting for another run that builds in this checkout"))
                try:
                    held.__enter__()
                except OSError as error:
                    raise cannot_write(self._path, error) from None
                self._held = held

    @contextmanager
    def making(self, say: Say) -> Iterator[None]:
        """Hold the lock while something is made."""
        self.acquire(say)
        with self._guard:
            self._makers += 1
        try:
            yield
        finally:
            with self._guard:
                self._makers -= 1

    def release(self) -> None:
        """Let other runs build, unless this run is making something: a guest that runs for hours must not stop them."""
        with self._guard:
            if self._held is not None and not self._makers:
                self._held.__exit__(None, None, None)
                self._held = None
