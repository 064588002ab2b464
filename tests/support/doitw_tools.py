# SPDX-License-Identifier: Apache-2.0
"""A small project with a doitw of its own, and the programs on its PATH."""

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
MOST = resource.getrlimit(resource.RLIMIT_CORE)[1]


def allow_dumps() -> None:
    """The same as a user's ``ulimit -c unlimited``."""
    resource.setrlimit(resource.RLIMIT_CORE, (MOST, MOST))


class Tools:
    """A PATH of one directory with the programs that doitw needs, and stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("sh", "dirname", "readlink", "sha256sum", "cat", "mkdir", "rm", "mv", "flock", "env", "id"):
            found = shutil.which(name, path=os.defpath)
            assert found
            (folder / name).symlink_to(found)

    def add(self, name: str, text: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        (self.folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (self.folder / name).chmod(0o755)

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": str(self.folder)}


DODO = """
from doit import get_var

def task_hello():
    \"\"\"Say hello.\"\"\"
    return {"actions": [f"echo hello {get_var('NAME', 'you')}"], "verbosity": 2}

def task_key():
    '''Show where a disk key is.'''
    def show():
        import json, os, resource
        number = int(os.environ.get("SEVSNP_LUKS_KEY_FD", "-1"))
        found = {"key": None if number < 0 else os.read(number, 10000).decode("latin-1")}
        found["dumps"] = resource.getrlimit(resource.RLIMIT_CORE)[0]
        pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
        for name in ("environ", "cmdline"):
            found[name] = 0
            for pid in pids:
                try:
                    found[name] += b"canary-7c1" in open(f"/proc/{pid}/{name}", "rb").read()
                except OSError:
                    continue
        print(json.dumps(found))
    return {"actions": [show], "verbosity": 2}

def task_test():
    \"\"\"Say whether the test group is there.\"\"\"
    def look():
        import importlib.util
        print("test group:", bool(importlib.util.find_spec("iniconfig")))
    return {"actions": [look], "verbosity": 2, "pos_arg": "words", "params": [], "uptodate": [False]}

def task_setup_hello():
    \"\"\"Say hello, and set up what that needs.\"\"\"
    return {"actions": ["echo hello set up"], "verbosity": 2}

def task_fail():
    \"\"\"Fail.\"\"\"
    return {"actions": ["exit 7"]}

DOIT_CONFIG = {"default_tasks": ["hello"]}
"""


def small_lock(name: str = "doit", lock: str = "requirements.lock") -> str:
    """A single package of the project's own lock: its venv takes only seconds."""
    found = re.search(rf"^{name}==.*?(?<!\\)$", (PROJECT / lock).read_text(), re.MULTILINE | re.DOTALL)
    assert found
    return found[0] + "\n"


def doitw(
    *words: str, program: Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *words],
        cwd=cwd or program.parent,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=allow_dumps,
    )


def make_project(folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy2(PROJECT / "doitw", folder)
    (folder / "dodo.py").write_text(DODO)
    (folder / "requirements.lock").write_text(small_lock())
    (folder / "requirements-test.lock").write_text(small_lock("iniconfig", "requirements-test.lock"))
    return folder / "doitw"


def greeting(text: str) -> str:
    """The output of the task, without doit's line about the task."""
    return text.splitlines()[-1]


def made_venv(program: Path) -> bool:
    """Run doitw, which must succeed; return whether it made .venv anew."""
    done = doitw(program=program)
    assert done.returncode == 0, done.stderr
    assert greeting(done.stdout) == "hello you"
    if done.stderr:
        assert done.stderr.startswith("doitw: making .venv from requirements.lock with Python 3.")
        size, unasked = done.stderr.splitlines()
        assert size.endswith(": about 100 MB in this directory, half a minute")
        assert unasked == "doitw: going on without a question: there is no terminal"
    return bool(done.stderr)
