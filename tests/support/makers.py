# SPDX-License-Identifier: Apache-2.0
"""Functions for the tests' artefacts, and a separate run for each test of the artefact store."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sevsnp.store import cache, session
from sevsnp.store.artefact import Artefact
from sevsnp.store.session import Options
from tests.support.waiting import NET

MODULE = "tests.support.makers"

# The functions that ran in this process.
calls: list[str] = []
# Files to change once, while a function runs.
meanwhile: list[Path] = []


@contextmanager
def new_run(options: Options) -> Iterator[None]:
    """The state of a new process: settings, and no memory except the files on the disk."""

    def forget() -> None:
        session.index().close()
        session.index.cache_clear()
        cache.cache.cache_clear()

    before = list(session._options)
    forget()
    session.configure(options)
    try:
        yield
    finally:
        forget()
        session._options[:] = before


def shout(*, source: Path, output: Path, times: int = 1) -> None:
    calls.append("shout")
    output.write_bytes(source.read_bytes().upper() * times)
    while meanwhile:
        meanwhile.pop().write_bytes(b"other")


def lock_away(*, source: Path, output: Path) -> None:
    """A secret: for its owner only."""
    shout(source=source, output=output)
    output.chmod(0o600)


def lock_away_deep(*, source: Path, output: Path) -> None:
    """A tree that everybody may list, with a secret in it."""
    grow(source=source, output=output)
    (output / "deep" / "leaf").chmod(0o600)


def grow(*, source: Path, output: Path) -> None:
    """A tree with every kind of entry that a tree may have."""
    calls.append("grow")
    (output / "deep" / "empty").mkdir(parents=True)
    (output / "deep" / "leaf").write_bytes(source.read_bytes())
    (output / "run").write_bytes(b"#!/bin/sh\n")
    (output / "run").chmod(0o755)
    (output / "link").symlink_to("deep/leaf")
    (output / "large").write_bytes(source.read_bytes().ljust(1 << 20, b"."))


def shout_twice(*, source: Path, output: Path, echo: Path) -> Iterator[str]:
    """Two outputs, the first complete before the second begins; between them it waits for the file ``later``."""
    calls.append("shout_twice")
    output.write_bytes(source.read_bytes().upper())
    yield "output"
    deadline = time.monotonic() + NET
    while Path("later").exists() and time.monotonic() < deadline:
        if any(Path("cache/blobs").glob("*/*")):
            Path("later").unlink()
        time.sleep(0.01)
    echo.write_bytes(source.read_bytes())
    if Path("broken").exists():
        raise RuntimeError("half-way")


def fail(*, source: Path, output: Path) -> None:
    output.write_bytes(source.read_bytes())
    raise RuntimeError("half-way")


def listing(root: Path) -> dict[str, SimpleNamespace]:
    """``root`` and everything below it: permissions, link targets, file contents."""
    found = {}
    for path in (root, *sorted(root.rglob("*"))):
        if path.is_symlink():
            content: bytes | str | None = os.readlink(path)
            mode = 0
        else:
            content = path.read_bytes() if path.is_file() else None
            mode = path.stat().st_mode
        found[path.relative_to(root).as_posix()] = SimpleNamespace(mode=mode, content=content)
    return found


@contextmanager
def run(directory: str = "cache", **options: Any) -> Iterator[None]:
    with new_run(Options(Path(directory).absolute(), **options)):
        yield


def artefact(function: str = "shout", output: str = "build/output", **changes: Any) -> Artefact:
    params = changes.pop("params", {})
    return Artefact(
        f"{MODULE}:{function}",
        inputs={"source": [Path("source")]},
        directories=changes.pop("directories", {}),
        outputs={"output": Path(output)},
        params=params,
        given={"source": Path("source"), **params},
        trees=frozenset({"output"} if function in ("grow", "lock_away_deep") else ()),
        **changes,
    )


class Seen:
    """The result of making an artefact: ``said``, whether it was ``built``, and whether doit would make it again."""

    def __init__(self, made: Artefact) -> None:
        self.said: list[str] = []
        self.remarks: list[str] = []
        before = len(calls)
        made.make(self.said.append, self.remarks.append)
        self.built = len(calls) > before
        self.saved = made._save()
        assert self.built == (self.remarks != ["from the cache"])

    def is_current(self, made: Artefact) -> bool:
        return bool(made(SimpleNamespace(value_savers=[]), self.saved))


def hurt(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def begin() -> None:
    """Write a source in the working directory, wait until its digest can be remembered, and clear the records."""
    Path("source").write_bytes(b"text")
    time.sleep(0.03)
    calls.clear()
    meanwhile.clear()
