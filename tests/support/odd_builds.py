# SPDX-License-Identifier: Apache-2.0
"""Runs a build in an environment that differs in everything which must not change its result."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from sevsnp.system.files import remove_tree
from tests.conftest import BUILD_SECONDS, PROJECT
from tests.pipeline.test_reproducible import USER, as_another_user


def made_oddly(code: str, *directories: Path) -> bytes:
    """The file that the Python program ``code`` makes; its arguments are that file, and copies of ``directories``.

    It runs in another directory, if possible as another user without rights, with another umask, time zone and locale,
    and with variables that would change what a compiler does. It must leave nothing in the temporary directory.
    """
    base = Path(tempfile.mkdtemp(prefix="a second, longer directory name "))
    base.chmod(0o755)
    try:
        for name in ("home", "tmp"):
            (base / name).mkdir()
        for place in directories:
            shutil.copytree(place, base / place.name)
        shutil.copytree(PROJECT / "sevsnp", base / "library/sevsnp")
        prefix = as_another_user(base, base / "home") if os.geteuid() == 0 else []
        for path in (base, *base.rglob("*")) if prefix else ():
            if path.parent != base / "etc":
                os.lchown(path, USER, USER)
        output = base / "made"
        done = subprocess.run(
            [*prefix, sys.executable, "-c", code, *map(str, (output, *(base / place.name for place in directories)))],
            cwd=base,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(base / "home"),
                "TMPDIR": str(base / "tmp"),
                "TZ": "Pacific/Kiritimati",
                "LC_ALL": "tr_TR.UTF-8",
                "PYTHONPATH": str(base / "library"),
                "SOURCE_DATE_EPOCH": "86400",
                "CFLAGS": "-O0",
                "GCC_BIN": "/nowhere/",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            umask=0o077,
            timeout=2 * BUILD_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:]
        assert list((base / "tmp").iterdir()) == []
        return output.read_bytes()
    finally:
        remove_tree(base)
