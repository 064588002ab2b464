# SPDX-License-Identifier: Apache-2.0
"""A user's terminal: a command on its own pseudo-terminal, its output, the input, and the terminal's closing."""

import contextlib
import os
import pty
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import Built
from tests.support.processes import ends_with_us
from tests.support.waiting import NET, wait_until


class Terminal:
    """doit in the copy ``built`` on a terminal of its own."""

    def __init__(self, built: Built, *words: str) -> None:
        self._master, slave = pty.openpty()
        self._shown = bytearray()
        self._closed = threading.Event()
        try:
            self.process = subprocess.Popen(
                ends_with_us("setsid", "--ctty", sys.executable, "-m", "doit", *words),
                cwd=built.project,
                env={**os.environ, "CONFIG_DIR": str(built.config_dir), "TERM": "xterm", "COLUMNS": "120"},
                stdin=slave,
                stdout=slave,
                stderr=slave,
            )
        finally:
            os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            # The line hangs up only when no thread reads from it any more, so it must not be closed during a read.
            while not self._closed.is_set():
                ready, _, _ = select.select([self._master], [], [], 0.1)
                if ready and not (data := os.read(self._master, 65536)):
                    break
                if ready:
                    self._shown += data

    @property
    def shown(self) -> str:
        return self._shown.decode(errors="replace")

    def wait_for(self, text: str, net: float = NET) -> str:
        """The output as soon as it contains ``text``."""

        def there() -> bool:
            ended = self.process.poll() is not None
            found = text in self.shown
            assert found or not ended, f"it ended before {text!r}:\n{self.shown[-3000:]}"
            return found

        wait_until(there, what=lambda: self.shown[-3000:], net=net)
        return self.shown

    def type(self, text: bytes) -> None:
        os.write(self._master, text)

    def close(self) -> None:
        """Close the terminal as its window would: the line hangs up."""
        if not self._closed.is_set():
            self._closed.set()
            self._reader.join()
            os.close(self._master)


@contextlib.contextmanager
def terminal(built: Built, *words: str) -> Iterator[Terminal]:
    """A terminal that is closed at the end; the process in it is ended."""
    one = Terminal(built, *words)
    try:
        yield one
    finally:
        one.close()
        try:
            one.process.wait(NET)
        finally:
            one.process.kill()


def left_behind(directory: Path) -> list[str]:
    """The command lines of processes that mention ``directory`` or a path in it."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (each / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(directory) in words and int(each.name) != os.getpid():
                found.append(words)
    return found
