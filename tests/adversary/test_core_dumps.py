# SPDX-License-Identifier: Apache-2.0
"""No core dump has the disk key, however the process got it. Control: without the protection the dump has it."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT

HOLDER = PROJECT / "tests" / "support" / "key_holder.py"
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
    """As a user's ``ulimit -c unlimited``; a test before may have taken the memory out of this process's dumps."""
    Path("/proc/self/coredump_filter").write_text("0x33")
    resource.setrlimit(resource.RLIMIT_CORE, (_MOST, _MOST))


def crashed(directory: Path, how: str, arm: str) -> Crash:
    """A process that has a key crashes in ``directory``/dump."""
    place = directory / "config" if how == "made" else directory / "key"
    place.mkdir(0o700) if how == "made" else place.write_bytes(KEY)
    place.chmod(0o700 if how == "made" else 0o600)
    dump = directory / "dump"
    dump.mkdir()
    terminal, theirs = pty.openpty()
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
        bufsize=0,
    )
    try:
        if how == "typed":
            assert process.stderr and process.stderr.read(len(b"disk key: ")) == b"disk key: "
            os.write(terminal, b"canary-5d2 typed\n")  # what was typed before it asked is thrown away
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
def test_control_without_the_protection_a_core_dump_has_the_key(tmp_path: Path, how: str) -> None:
    crash = crashed(tmp_path, how, "unprotected")
    assert crash.said == {"dumpable": 1, "limit": _MOST, "limit of a child": _MOST}
    if DUMPS:
        assert any(crash.key in dump for dump in crash.dumps)


# What a user's other processes run as, where the tests run as root, which may read everybody's memory.
NOBODY = 65534
TARGET = """
import ctypes, sys, time
namespace = {}
exec(sys.argv[1], namespace)
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(2**64 - 1), 0, 0, 0)  # PR_SET_PTRACER_ANY: where Yama is, it agrees
if sys.argv[2] == "protected":
    namespace["keep_from_dumps"]()
print("ready", flush=True)
time.sleep(300)
"""
TRACER = "import ctypes, sys; sys.exit(ctypes.CDLL(None).ptrace(16, int(sys.argv[1]), None, None) != 0)"


@pytest.mark.parametrize(("arm", "code"), [("protected", 1), ("unprotected", 0)])
def test_another_process_of_the_user_cannot_read_its_memory(arm: str, code: int) -> None:
    """With ptrace(2), as gcore does. Control: the unprotected process."""
    someone: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    words = ["/usr/bin/python3", "-I", "-S", "-c"]
    source = (PROJECT / "sevsnp" / "keys" / "taken_key.py").read_text()
    with subprocess.Popen([*words, TARGET, source, arm], cwd="/", stdout=subprocess.PIPE, **someone) as target:
        try:
            assert target.stdout and target.stdout.readline() == b"ready\n"
            tracer = subprocess.run([*words, TRACER, str(target.pid)], cwd="/", timeout=60, check=False, **someone)
            assert tracer.returncode == code
        finally:
            target.kill()
