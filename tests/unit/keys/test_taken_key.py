# SPDX-License-Identifier: Apache-2.0
"""A disk key in the environment of a doit that is called directly: removed from /proc before any process is started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.evidence import ROOT

DODO = """
import os
if os.environ.get("TAKES", "1") == "1":
    from sevsnp.keys.taken_key import take_over
    take_over()

def show():
    import json, subprocess, sys
    number = int(os.environ.get("SEVSNP_LUKS_KEY_FD", "-1"))
    child = "import os, sys; print(os.path.exists(f'/proc/self/fd/{sys.argv[1]}'), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", child, str(number)], stderr=subprocess.PIPE, text=True)
    # Other processes of a user's, and a user's own, may not look into one that has a key.
    import ctypes
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
    shown = {name: b"canary" in open(f"/proc/self/{name}", "rb").read() for name in ("environ", "cmdline")}
    shown["child"] = done.stderr.strip()
    shown["key"] = None if number < 0 else os.read(number, 10000).decode("latin-1")
    shown["end"] = None if number < 0 else os.read(number, 1).decode()
    shown["argv"] = sys.argv[1:]
    print("FOUND " + json.dumps(shown))

def task_show():
    return {"actions": [show], "verbosity": 2}
"""


def doit(directory: Path, *words: str, **variables: str | bytes) -> "subprocess.CompletedProcess[bytes]":
    (directory / "dodo.py").write_text(DODO)
    extra = {name.encode(): os.fsencode(value) for name, value in variables.items()}
    return subprocess.run(
        [sys.executable, "-m", "doit", "show", *words],
        cwd=directory,
        env={**os.environb, b"PYTHONPATH": os.fsencode(ROOT), **extra},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )


def shown(directory: Path, *words: str, **variables: str | bytes) -> dict[str, object]:
    done = doit(directory, *words, **variables)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(b"FOUND ")]
    found: dict[str, object] = json.loads(line[len(b"FOUND ") :])
    return found


# pytest has a test's id in the environment.
KEYS = {"plain": b"canary", "shell": b"canary \t\n$x'\"\\", "bytes": b"\xff\xfecanary", "long": b"canary" + b"k" * 4090}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_the_key_is_only_in_a_pipe(tmp_path: Path, key: bytes) -> None:
    assert shown(tmp_path, "A=b c", LUKS_KEY=key) == {
        "environ": False, "cmdline": False, "child": "False", "key": key.decode("latin-1"), "end": "",
        "argv": ["show", "A=b c"],
    }  # fmt: skip


def test_control_without_the_removal_the_key_is_in_proc(tmp_path: Path) -> None:
    """Control: the environment of the process still has the key."""
    assert shown(tmp_path, LUKS_KEY="canary", TAKES="0")["environ"] is True


def test_without_a_key_the_environment_is_unchanged(tmp_path: Path) -> None:
    assert shown(tmp_path)["key"] is None
    # The number of a pipe that is somebody else's, further up, is forgotten.
    assert shown(tmp_path, SEVSNP_LUKS_KEY_FD="77")["key"] is None


@pytest.mark.parametrize("key", [b"", b"k" * 4097])
def test_a_key_of_an_impossible_length_is_refused(tmp_path: Path, key: bytes) -> None:
    done = doit(tmp_path, LUKS_KEY=key)
    assert done.returncode != 0
    assert f"LUKS_KEY: found {len(key)} bytes, expected 1 to 4096".encode() in done.stderr
    assert b"kkkk" not in done.stdout + done.stderr and b"Traceback" not in done.stderr


def test_dodo_py_takes_the_key_over_before_it_imports_other_modules() -> None:
    lines = (ROOT / "dodo.py").read_text().splitlines()
    statements = [line for line in lines if line and not line.startswith(("#", '"', " "))]
    assert statements[:3] == ["import os", "from sevsnp.keys.taken_key import take_over", "take_over()"]
