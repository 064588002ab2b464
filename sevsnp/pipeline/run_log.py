# SPDX-License-Identifier: Apache-2.0
"""build/log: records of the last runs, a JSON line for each task and command; with VERBOSE=1 also commands to paste.

The log helps to find errors, so an error in it stops no run: if it cannot be written, there is no log.
"""

import contextlib
import json
import os
import re
import shlex
import string
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sevsnp.settings.table import SECRETS
from sevsnp.system.logins import without_logins
from sevsnp.system.record import Command

DIRECTORY = Path("build") / "log"
RUNS = 10
# Bytes kept of what a failed command wrote to one stream; its end has the reason.
_MOST = 16 << 20
_RUN = re.compile(r"(\d{8}-\d{9}-\d+)\.(?:jsonl|\d+\.txt)")
_PLAIN = f"{string.ascii_letters}{string.digits} -_./=,:+%".encode()
_SECRET = re.compile(rf"\b({'|'.join(SECRETS)})=\S+")

_verbose = False


def configure(*, verbose: bool) -> None:
    """Set whether commands are printed, and tracebacks with errors."""
    global _verbose
    _verbose = verbose


def verbose() -> bool:
    return _verbose


class RunLog:
    """The record of a run: a :class:`sevsnp.system.record.Recorder`. The first line creates its file.

    ``words`` are those of the run, ``running`` the names of the tasks that run now; ``show`` prints whole lines.
    """

    def __init__(self, words: Sequence[str], running: Collection[str], show: Callable[[str], None]) -> None:
        self._running, self._show = running, show
        now = time.time()
        self._name = f"{_clock(now, '%Y%m%d-%H%M%S%f')[:-3]}-{os.getpid()}"
        self._first: dict[str, Any] | None = {"event": "run", "words": _words(words), "started": _utc(now)}
        self._descriptor = -1
        self._kept: dict[Command, Path] = {}
        self._count = 0
        # Reentrant: a signal handler interrupts the main thread anywhere.
        self._lock = threading.RLock()

    def task(self, name: str, outcome: str, since: tuple[float, float], **more: str) -> None:
        """A task ended, or was up to date. It began at ``since``: seconds since 1970, and the monotonic clock.

        ``more`` are further fields, such as the error of a failed task.
        """
        began, clock = since
        texts = {what: redacted(text) for what, text in more.items()}
        self._write({"event": "task", "task": name, "outcome": outcome, **_times(began, clock), **texts})

    def started(self, command: Command) -> None:
        if _verbose:
            self._show(f"  {_line(command)}\n")

    def keep(self, command: Command, error: bytes, output: bytes) -> Path | None:
        with self._lock, contextlib.suppress(OSError):
            if not self._open():
                return None
            self._count += 1
            path = DIRECTORY / f"{self._name}.{self._count}.txt"
            streams = (("standard error", error), ("standard output", output))
            text = "".join(f"\n{title}:\n{_said(said)}\n" for title, said in streams if said)
            try:
                with os.fdopen(_new(path), "wb") as stream:
                    stream.write(f"{_line(command)}\n{text}".encode(errors="surrogateescape"))
            except OSError:
                path.unlink(missing_ok=True)  # an incomplete file only takes room on a full disk
                raise
            self._kept[command] = path
            return path
        return None

    def ended(self, command: Command, code: int | None) -> None:
        times = _times(command.began, command.clock)
        # A thread that library code has started does not know its task.
        task = command.task or (next(iter(self._running), "") if len(self._running) == 1 else "")
        if _verbose:
            end = "no exit code" if code is None else f"exit code {code}"
            name = shell_word(Path(command.words[0]).name)
            self._show(f"  # {end} after {times['seconds']:.1f} s: {name}{task and f' ({task})'}\n")
        what = {"argv": _words(command.words), "cwd": str(command.cwd.absolute()), "task": task}
        entry = {"event": "command", **what, **times, "code": code}
        kept = self._kept.pop(command, None)
        self._write({**entry, **({"output": str(kept)} if kept else {})})

    def close(self) -> None:
        """Write nothing more."""
        with self._lock, contextlib.suppress(OSError):
            self._first = None
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, entry: Mapping[str, Any]) -> None:
        with self._lock:
            try:
                if self._open():
                    self._put(entry)
            except OSError:
                self.close()  # lines after an incomplete line would not be readable

    def _open(self) -> bool:
        """Whether there is a file. The first call that has something to write creates it."""
        if self._first is not None:
            first, self._first = self._first, None
            DIRECTORY.parent.mkdir(exist_ok=True)
            DIRECTORY.mkdir(mode=0o700, exist_ok=True)
            _prune()
            self._descriptor = _new(DIRECTORY / f"{self._name}.jsonl")
            self._put(first)
        return self._descriptor >= 0

    def _put(self, entry: Mapping[str, Any]) -> None:
        # A file name need not be UTF-8; the escape for such a byte is also valid JSON.
        line = f"{json.dumps(entry, ensure_ascii=False)}\n".encode(errors="backslashreplace")
        if os.write(self._descriptor, line) != len(line):
            raise OSError("the disk is full")


def _prune() -> None:
    """Remove the oldest runs, so that there is room for one more."""
    files: dict[str, list[Path]] = {}
    for path in DIRECTORY.iterdir():
        if match := _RUN.fullmatch(path.name):
            files.setdefault(match[1], []).append(path)
    for run in sorted(files)[: 1 - RUNS]:
        for path in files[run]:
            with contextlib.suppress(OSError):
                path.unlink()


def _new(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def redacted(text: str) -> str:
    """``text`` without logins in addresses, and without the values of SECRETS."""
    for name in SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "…")
    return without_logins(_SECRET.sub(r"\1=…", text))


def _words(words: Sequence[str]) -> list[str]:
    return [f"{word.partition('=')[0]}=…" if word.startswith(_NAMED) else redacted(word) for word in words]


_NAMED = tuple(f"{name}=" for name in SECRETS)


def _line(command: Command) -> str:
    """A command as a shell accepts it, in the directory of this run."""
    more = {name: text for name, text in command.env.items() if os.environ.get(name) != text}
    variables = [f"{name}={'…' if name in SECRETS else shell_word(redacted(text))}" for name, text in more.items()]
    there = command.cwd.absolute()
    place = f"cd {shell_word(str(there))} && " if there != Path.cwd() else ""
    return place + " ".join([*variables, *map(shell_word, _words(command.words))])


def shell_word(word: str) -> str:
    """A word as a shell accepts it; bytes that are not printable or not UTF-8 are escaped for bash and zsh."""
    if all(character.isprintable() or character in "\n\t" for character in word):
        return shlex.quote(word)
    escaped = (chr(byte) if byte in _PLAIN else rf"\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(escaped)}'"


def _said(said: bytes) -> str:
    cut = f"(the last {_MOST} bytes of {len(said)})\n" if len(said) > _MOST else ""
    return cut + redacted(said[-_MOST:].decode(errors="surrogateescape")).rstrip("\n")


def _times(began: float, clock: float) -> dict[str, Any]:
    return {"started": _utc(began), "seconds": round(time.monotonic() - clock, 3)}


def _utc(seconds: float) -> str:
    return f"{_clock(seconds, '%Y-%m-%dT%H:%M:%S.%f')[:-3]}Z"


def _clock(seconds: float, form: str) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(form)
