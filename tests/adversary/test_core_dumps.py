"""A disk key is in no core dump of a process that has it, however it came there; without the protection it is found."""

import ctypes
import json
import os
import pty
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import PROJECT

HOLDER = PROJECT / "tests" / "adversary" / "key_holder.py"
KEY = b"canary-5d2 \x01 of a disk key"
_PATTERN = Path("/proc/sys/kernel/core_pattern").read_text().strip()
_MOST = resource.getrlimit(resource.RLIMIT_CORE)[1]
# Where a dump goes to a file beside the process, and one may be made, it is looked into.
DUMPS = "/" not in _PATTERN and not _PATTERN.startswith("|") and _MOST != 0
WAYS = ("environment", "file", "made", "typed")


@dataclass(frozen=True)
class Crash:
    """What a process said of itself before it crashed, and the core dumps that it left."""

    said: dict[str, int]
    key: bytes
    dumps: list[bytes]


def allow_dumps() -> None:
    """As a user's ``ulimit -c unlimited``."""
    resource.setrlimit(resource.RLIMIT_CORE, (_MOST, _MOST))


def crashed(directory: Path, how: str, arm: str) -> Crash:
    """A process that has a key crashes in ``directory``/dump."""
    place = directory / "config" if how == "made" else directory / "key"
    place.mkdir(0o700) if how == "made" else place.write_bytes(KEY)
    place.chmod(0o700 if how == "made" else 0o600)
    dump = directory / "dump"
    dump.mkdir()
    terminal, theirs = pty.openpty()
    os.write(terminal, KEY.replace(b"\x01", b"") + b"\n")
    process = subprocess.Popen(
        [sys.executable, HOLDER, how, place, arm],
        cwd=dump,
        env={
            **{name: value for name, value in os.environb.items() if name != b"LUKS_KEY"},
            b"PYTHONPATH": os.fsencode(PROJECT),
            **({b"LUKS_KEY": KEY} if how == "environment" else {}),
        },
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # or getpass would ask on pytest's own terminal
        preexec_fn=allow_dumps,
    )
    try:
        output, complaint = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(terminal)
        os.close(theirs)
    assert process.returncode == -signal.SIGABRT, complaint.decode()
    (line,) = [line for line in output.splitlines() if line.startswith(b"FOUND ")]
    said = json.loads(line[len(b"FOUND ") :])
    return Crash(said, bytes.fromhex(said.pop("key")), [path.read_bytes() for path in dump.iterdir()])


@pytest.mark.parametrize("how", WAYS)
def test_no_dump_has_the_key(tmp_path: Path, how: str) -> None:
    crash = crashed(tmp_path, how, "protected")
    assert crash.said == {"dumpable": 0, "limit": 0, "limit of a child": 0}
    assert crash.dumps == []


@pytest.mark.parametrize("how", WAYS)
def test_control_without_the_protection_it_is_there(tmp_path: Path, how: str) -> None:
    crash = crashed(tmp_path, how, "unprotected")
    assert crash.said == {"dumpable": 1, "limit": _MOST, "limit of a child": _MOST}
    if DUMPS:
        assert any(crash.key in dump for dump in crash.dumps)


def test_another_process_of_the_user_cannot_read_its_memory(tmp_path: Path) -> None:
    """By ptrace(2), as gcore does. Root still may: CAP_SYS_PTRACE is above it."""
    if os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists():
        pytest.skip("no user but root")
    attach, detach = 16, 17
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for arm in ("protected", "unprotected"):
        reader, writer = os.pipe()
        again, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.set_inheritable(writer, True)
            _become_somebody()
            script = "import sys; from sevsnp.no_dumps import keep_from_dumps\n"
            script += "if sys.argv[1] == 'protected': keep_from_dumps()\n"
            script += "import os, time; os.write(int(sys.argv[2]), b'1'); time.sleep(60)"
            os.execve(sys.executable, [sys.executable, "-c", script, arm, str(writer)], {"PYTHONPATH": str(PROJECT)})
        assert os.read(reader, 1) == b"1"
        tracer = os.fork()
        if tracer == 0:
            _become_somebody()
            failed = libc.ptrace(attach, child, None, None)
            if not failed:
                os.waitpid(-1, 0x40000000)
                libc.ptrace(detach, child, None, None)
            os._exit(1 if failed else 0)
        found[arm] = os.waitstatus_to_exitcode(os.waitpid(tracer, 0)[1])
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for descriptor in (reader, writer, again, go):
            os.close(descriptor)
    assert found == {"protected": 1, "unprotected": 0}


def _become_somebody() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
