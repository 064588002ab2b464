# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium through its debugging pipe (Chrome DevTools Protocol: JSON, a zero byte after each message)."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import ends_with_us
from tests.support.waiting import NET

_SECONDS = 60


def find_browser() -> str | None:
    """The path of a Chromium on PATH; None if there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Page:
    """An empty page of a browser; ``events`` are the browser's messages about it."""

    writer: int
    reader: int
    session: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    _rest: bytes = b""
    _number: int = 0

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command. Fails the test if the browser reports an error or does not answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def load(self, path: Path, width: int) -> None:
        """Show the file as a phone of ``width`` CSS pixels does, and wait until it is completely loaded."""
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=640, deviceScaleFactor=2, mobile=True)
        self.ask("Page.navigate", url=path.as_uri())
        while not self.named("Page.loadEventFired"):
            self._next()

    def named(self, *methods: str) -> list[dict[str, Any]]:
        """The browser's events with these names."""
        return [one["params"] for one in self.events if one.get("method") in methods]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + _SECONDS
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self.reader], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser says nothing"
            piece = os.read(self.reader, 1 << 16)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        self.events.append(json.loads(message))
        return self.events[-1]


@contextlib.contextmanager
def blank_page(browser: str, profile: Path) -> Iterator[Page]:
    """A page in a separate browser, whose files are in ``profile``."""
    (their_in, writer), (reader, their_out) = os.pipe(), os.pipe()
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe",
             f"--user-data-dir={profile}", "about:blank"]  # fmt: skip
    # The browser reads from descriptor 3 and writes to 4; sh has no descriptors of two digits.
    script = f'exec "$@" 3<&{their_in} 4>&{their_out}'
    process = subprocess.Popen(
        ends_with_us("bash", "-c", script, "bash", browser, *words),
        pass_fds=(their_in, their_out), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HOME": str(profile)},
    )  # fmt: skip
    os.close(their_in)
    os.close(their_out)
    try:
        page = Page(writer, reader)
        target = page.ask("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page.events.clear()
        yield page
    finally:
        os.close(writer)  # this ends the browser
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(NET)
        process.kill()
        process.wait()
        os.close(reader)
