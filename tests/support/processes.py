# SPDX-License-Identifier: Apache-2.0
"""The tests' own long-running processes (runs of doit, servers, guests) end with the test run, however that ends."""

import shutil
from pathlib import Path

# Before a command that root's test runs as another user; Python may be where only root may read.
AS_NOBODY: tuple[str, ...] = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
AS_NOBODY += ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")


def ends_with_us(*argv: str | Path) -> list[str]:
    """``argv``, to be given to subprocess: it gets SIGTERM when the process that starts it is gone, even by SIGKILL.

    A doit ends in order then, and all that it started with it. setpriv is gone once it has said so to the kernel.
    """
    setpriv = shutil.which("setpriv", path="/usr/bin:/bin")
    assert setpriv, "setpriv: no such program (apt-get install util-linux)"
    return [setpriv, "--pdeathsig", "TERM", *map(str, argv)]
