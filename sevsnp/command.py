"""Every external command goes through here: an argument list, an environment built from scratch, a time limit."""

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from plumbum import CommandNotFound, local

from sevsnp.errors import UserError

# A command that hangs must not hang the build; what legitimately takes longer says so.
DEFAULT_TIMEOUT = 600.0

_KEPT = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "APT_CONFIG")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: only what it needs, in the C locale and UTC, so that its output never varies."""
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    path = kept.get("PATH", "/usr/bin:/bin")
    # mkfs, blkid and their like live in sbin, which an ordinary Debian user's PATH leaves out.
    kept["PATH"] = f"{path}:/usr/local/sbin:/usr/sbin:/sbin"
    return {**kept, "LC_ALL": "C.UTF-8", "TZ": "UTC", **(extra or {})}


def run(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    hint: str = "",
) -> bytes:
    """Run ``argv`` to its end and return what it printed.

    The child leads its own process group, and the whole group is killed on a time-out or when this process is
    interrupted. Raises :class:`UserError` with the pasteable command and the end of its standard error.
    """
    words = [str(word) for word in argv]
    shown = shlex.join(words)
    try:
        command = local[words[0]]
    except CommandNotFound as error:
        raise UserError(f"{words[0]}: command not found", hint or "run: ./doitw install_dependencies") from error
    process = command.popen(
        words[1:],
        env=environment(env),
        cwd=cwd,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except BaseException as error:
        _kill_group(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise UserError(f"no end after {timeout:.0f} s: {shown}", hint) from error
        raise
    if process.returncode:
        tail = err.decode(errors="replace").strip()[-2000:]
        raise UserError(f"exit code {process.returncode} from: {shown}\n{tail}", hint)
    return bytes(out)


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
