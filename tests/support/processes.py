# SPDX-License-Identifier: Apache-2.0
"""Ends the tests' own long-running processes (runs of doit, servers, guests) with the test run, however that ends."""

import shutil
from pathlib import Path

# A prefix for commands that a test of root runs as another user; Python may be in a directory that only root may read.
AS_NOBODY: tuple[str, ...] = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
AS_NOBODY += ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


def ends_with_us(*argv: str | Path) -> list[str]:
    """``argv`` for subprocess, extended: the process gets SIGTERM when its parent is gone, even by SIGKILL.

    A doit then ends in order, with all its children. setpriv replaces itself by the command.
    """
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    assert setpriv, "setpriv: no such program (apt-get install util-linux)"
    return [setpriv, "--pdeathsig", "TERM", *map(str, argv)]
