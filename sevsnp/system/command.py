# SPDX-License-Identifier: Apache-2.0
"""External commands: an argument list, an environment built from scratch, a time limit, and an end with this process.

All external commands are started here, with two exceptions: QEMU, because a host bundle has only the standard library
(sevsnp.qemu.process), and what outlives this process: a detached guest (sevsnp.guests.detach) or build
(sevsnp.builds.detached). When this process ends, its commands end too, however it ends: after SIGKILL the guardian ends
them (sevsnp.system.guardian).
"""

import atexit
import contextlib
import errno
import functools
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from sevsnp.errors import UserError
from sevsnp.system import progress, record
from sevsnp.system.command_failed import CommandFailed, check_room, shown
from sevsnp.system.files import disks

if TYPE_CHECKING:
    from plumbum.machines.local import LocalMachine

# A command that hangs must not hang the build. A caller whose command takes longer sets a longer time-out.
DEFAULT_TIMEOUT = 600.0
# Seconds. mmdebstrap needs them to remove a tree whose files belong to a subordinate user: no other process can.
GRACE = 5.0

_KEPT = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "APT_CONFIG")
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")

# The guardian process, which ends the commands if this process is killed (sevsnp.system.guardian).
_guardian: list["subprocess.Popen[bytes]"] = []
_starting = threading.Lock()
# Directories that are removed when this process ends.
_temporaries = contextlib.ExitStack()
atexit.register(_temporaries.close)

# Commands that run now. A signal handler can end them, whichever thread waits for them.
_running: set["subprocess.Popen[bytes]"] = set()


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: only what it needs, in the C locale and UTC, so that its output does not vary."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = kept.get("PATH", "/usr/bin:/bin").split(":")
    # mkfs, blkid and similar programs are in sbin, which is not in an ordinary Debian user's PATH.
    kept["PATH"] = ":".join([*path, *(folder for folder in _SBIN if folder not in path)])
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(extra or {})}


def find(name: str | Path) -> Path | None:
    """The program that :func:`run` would start for ``name``, as an absolute path; None if there is none."""
    found = shutil.which(name, path=environment()["PATH"])
    return Path(found).absolute() if found else None


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    feed: Callable[[IO[bytes]], object] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    hint: str = "",
    secret: bool = False,
) -> bytes:
    """Run ``argv`` to its end and return its output; ``feed`` writes its input while it runs.

    The child leads its own process group. The whole group is ended after a time-out, or if this process is interrupted.
    Raises :class:`CommandFailed` for an exit code other than 0; :class:`UserError` for a time-out, a full disk, or a
    command that cannot be started. The output of a failed command is shown and kept, unless it is ``secret``.
    """
    words = [str(word) for word in argv]
    with (
        _feeder(feed) as fed,
        _started(
            words,
            hint,
            env=environment({"TMPDIR": _private_temporary(), **(env or {})}),
            extra=env,
            cwd=cwd,
            stdin=fed.theirs if fed else subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as (process, told),
    ):
        if fed:
            fed.start()
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired as late:
            kept = None if secret else told.keep(late.stderr or b"", late.output or b"")
            raise UserError(f"no end after {timeout:.0f} s: {shown(words, kept)}", hint) from None
        kept = told.keep(err, out) if process.returncode and not secret else None
    if fed:
        fed.finish()
    if process.returncode:
        check_room(words, environment(env).get("TMPDIR", tempfile.gettempdir()), err, kept)
        raise CommandFailed(words, process.returncode, err, hint, output=b"" if secret else out, kept=kept)
    return out


@contextlib.contextmanager
def _feeder(feed: Callable[[IO[bytes]], object] | None) -> Iterator["_Feeder | None"]:
    if feed is None:
        yield None
        return
    # Not a pipe: a full pipe wakes its writer for each page that is read, a socket only when half of it is free.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield _Feeder(ours, theirs, feed)


class _Feeder:
    """Writes a child's input from a thread; :meth:`finish` raises the thread's errors."""

    def __init__(self, ours: socket.socket, theirs: socket.socket, feed: Callable[[IO[bytes]], object]) -> None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # only for speed: fewer turns
        self._ours = ours
        self.theirs = theirs
        self._feed = feed
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start writing. Call it when the child has its end of the socket."""
        self.theirs.close()
        self._thread = threading.Thread(target=self._work, args=(os.fdopen(self._ours.detach(), "wb"),), daemon=True)
        self._thread.start()

    def _work(self, stream: IO[bytes]) -> None:
        try:
            with stream:
                self._feed(stream)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the child has ended; its own error says why
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        self._thread.join()
        if self._error:
            raise self._error


@contextlib.contextmanager
def spawned(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    timeout: float | None = None,
    hint: str = "",
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start ``argv`` and give its process, which runs beside this one until the context ends.

    The process leads a session of its own. It and all its children are ended with the context unless the caller has
    waited for its end, after ``timeout`` seconds, and with this process, however this process ends: first SIGTERM, then
    SIGKILL after :data:`GRACE` seconds. Its files in TMPDIR are removed when this process ends. Raises
    :class:`UserError` if it cannot be started, and after the time-out.
    """
    words = [str(word) for word in argv]
    variables = environment({**(env or {}), "TMPDIR": _private_temporary()})
    with _started(
        words, hint, env=variables, extra=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr,
        start_new_session=True,
    ) as (process, _):  # fmt: skip
        late = threading.Event()

        def end() -> None:
            if process.returncode is None:
                late.set()
                _end_groups([process.pid])

        timer = threading.Timer(timeout or 0.0, end)
        timer.daemon = True
        if timeout is not None:
            timer.start()
        try:
            yield process
        except Exception:
            if not late.is_set():
                raise
        finally:
            timer.cancel()
        if late.is_set():
            raise UserError(f"no end after {timeout:.0f} s: {shown(words)}", hint) from None


def run_attached(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    hint: str = "",
) -> int:
    """Run ``argv`` on this terminal, with its input and output, and return its exit code.

    For commands that talk to the user (sudo asks for a password) or show their progress. The command stays in our
    process group, because only the terminal's foreground group may read from the terminal and receives Ctrl-C. If this
    process ends first, it interrupts the command. We cannot end a process that sudo started for root.
    """
    words = [str(word) for word in argv]
    terminal = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            stream.flush()  # our earlier output must come before the child's
    variables = environment({**terminal, **(env or {})})
    with progress.paused(), _started(words, hint, env=variables, extra=env, cwd=cwd) as (process, _):
        try:
            return process.wait()
        except BaseException as error:
            # sudo's child belongs to root: we may not signal it, but the terminal's Ctrl-C reaches it.
            with contextlib.suppress(subprocess.TimeoutExpired, PermissionError):
                # An interrupted test run shuts down the guests that it started. After Ctrl-C the terminal has already
                # sent it SIGINT; a second one would stop it from doing so.
                if not isinstance(error, KeyboardInterrupt):
                    process.send_signal(signal.SIGINT)
                process.wait(GRACE)
            with contextlib.suppress(PermissionError):
                process.kill()
            raise


def end_all() -> None:
    """End every running command and its children; for the handler of a signal that ends this process."""
    # Only signals: the interrupted code may hold the lock under which Popen.wait() reaps.
    _end_groups([process.pid for process in list(_running)])


@contextlib.contextmanager
def _started(
    words: Sequence[str],
    hint: str,
    *,
    env: Mapping[str, str],
    extra: Mapping[str, str] | None,
    cwd: Path | None,
    stdin: int | socket.socket | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    start_new_session: bool = False,
) -> Iterator[tuple["subprocess.Popen[bytes]", record.Command]]:
    program = shutil.which(words[0], path=env["PATH"])
    if program is None:
        if "/" in words[0] and Path(words[0]).is_file():
            raise UserError(f"{words[0]}: not executable", hint)
        raise UserError(f"{words[0]}: command not found", hint or "run: ./doitw install_dependencies")
    _guard("")  # before the child starts: this process may be killed while the guardian starts
    # Absolute: a relative path would be searched for under cwd.
    program = str(Path(program).absolute())
    told = record.starting([program, *words[1:]], cwd, extra)
    try:
        started = _bare()[program].popen(
            words[1:],
            env=dict(env),
            cwd=str(cwd or Path.cwd()),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=start_new_session,
        )
        # plumbum returns a text-mode Popen type for the started process; nothing here asks for text.
        process = cast("subprocess.Popen[bytes]", started)
    except BaseException as error:
        told.ended(None)
        if not isinstance(error, OSError):
            raise
        raise UserError(f"{error.filename or words[0]}: {error.strerror}, in: {shown(words)}", hint) from error
    # A process group of its own, or a single process in our group.
    guarded = str(process.pid) if start_new_session else f"={process.pid}"
    try:
        if start_new_session:
            _running.add(process)
        _guard(f"+{guarded}")
        yield process, told
    finally:
        if start_new_session:
            if process.returncode is None:  # also if it has ended: it may have left children
                _end_groups([process.pid])
                process.wait()
            _running.discard(process)
        _guard(f"-{guarded}")
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        told.ended(process.poll())


@contextlib.contextmanager
def temporary_directory(prefix: str) -> Iterator[Path]:
    """A directory in TMPDIR that is removed with its content, even if this process is killed."""
    try:
        path = Path(tempfile.mkdtemp(prefix=prefix)).absolute()
    except OSError as error:
        raise _no_room(error, Path(tempfile.gettempdir())) from None
    _guard(f"+{path}")
    try:
        yield path
    except OSError as error:
        raise _no_room(error, path) from None
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _guard(f"-{path}")


def _no_room(error: OSError, place: Path) -> Exception:
    """The exception to raise for ``error``: a UserError if the disk of the temporary directory ``place`` is full."""
    full = [str(disk) for disk, is_full in disks([place]).items() if is_full]
    if error.errno != errno.ENOSPC or not full:
        return error
    hint = f"set TMPDIR to a directory on another disk, or see: df -h {shlex.quote(full[0])}"
    return UserError(f"{full[0]}: cannot be written: {error.strerror}", hint)


@functools.cache
def _bare() -> "LocalMachine":
    from plumbum.machines.local import LocalMachine  # its import takes a tenth of the time of a doit run without work

    machine = LocalMachine()
    machine.env.clear()  # plumbum would add its variables to those of the command
    return machine


def keep_temporaries() -> None:
    """From now on, remove all files that this process makes with tempfile when it ends, even if it is killed.

    For code that a host bundle also contains, because :func:`temporary_directory` is not there.
    """
    tempfile.tempdir = _private_temporary()


@functools.cache
def _private_temporary() -> str:
    """The TMPDIR of commands. dpkg-deb, for example, leaves its files there when it is ended."""
    return _temporaries.enter_context(temporary_directory("sevsnp.")).as_posix()


def _guard(line: str) -> None:
    with _starting:
        if not _guardian or _guardian[0].poll() is not None:
            # -S -I: the guardian starts in milliseconds and imports nothing of this project.
            program = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guardian.py")), str(GRACE)]
            _guardian[:] = [
                subprocess.Popen(
                    program,
                    cwd="/",
                    env=environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            ]
        stream = _guardian[0].stdin
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.write(f"{line}\n".encode())
            stream.flush()


def _end_groups(leaders: Sequence[int]) -> None:
    """Send SIGTERM to the process groups that ``leaders`` lead, then SIGKILL to the remaining ones."""
    _signal_groups(leaders, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    while time.monotonic() < deadline and not all(map(_ended, leaders)):
        time.sleep(0.02)
    _signal_groups(leaders, signal.SIGKILL)


def _signal_groups(leaders: Sequence[int], number: signal.Signals) -> None:
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, number)


def _ended(pid: int) -> bool:
    try:
        # WNOWAIT leaves the leader a zombie: no other process can get its number, which is the group's, meanwhile.
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
