# SPDX-License-Identifier: Apache-2.0
"""Protect a disk key in this process: move it out of the environment, and prevent core dumps.

LUKS_KEY is moved into a pipe, because /proc shows the environment as long as the process lives. ./doitw does this
before it executes any program; this module does it for a doit that the user calls directly. Every command loads this
module, so it uses only the standard library, and ctypes only if there is a key.
"""

import contextlib
import os
import resource
import sys
from pathlib import Path

# linux/prctl.h
PR_SET_DUMPABLE = 4
VARIABLE = b"LUKS_KEY"
# The variable with the number of the pipe's file descriptor, for the code that reads the key.
DESCRIPTOR = "SEVSNP_LUKS_KEY_FD"
MAX_KEY = 4096


def keep_from_dumps() -> None:
    """Prevent core dumps of this process, and core dump files of the programs that it starts.

    A crash would write the key into a file, and into every backup of that file. Two settings are needed:

    - RLIMIT_CORE: programs started from here inherit it, such as a QEMU that gets the key. A dump into a program
      (core_pattern with a pipe) ignores this limit.
    - PR_SET_DUMPABLE: it prevents both kinds of dumps, and ptrace(2) and /proc/PID/mem for all users but root. It ends
      with the next execve(2).

    Raises OSError.
    """
    # Child processes inherit this filter like the limit. A dump into a socket ignores the limit, but not the filter.
    with contextlib.suppress(OSError), Path("/proc/self/coredump_filter").open("w") as stream:
        stream.write("0")
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def take_over() -> None:
    """Execute this process again without the variable LUKS_KEY; return if the variable is not set.

    Only this process has the pipe's end: programs that it starts do not inherit it. If there is a key, no core dump is
    made of this process.
    """
    key = os.environb.pop(VARIABLE, None)
    if key is not None or DESCRIPTOR in os.environ:
        keep_from_dumps()
    if key is None:
        _keep_to_ourselves(os.environ.get(DESCRIPTOR, ""))
        return
    if not 0 < len(key) <= MAX_KEY:
        sys.exit(f"LUKS_KEY: found {len(key)} bytes, expected 1 to {MAX_KEY}")
    reader, writer = os.pipe()
    os.write(writer, key)  # a pipe holds that much
    os.close(writer)
    os.set_inheritable(reader, True)
    os.environ[DESCRIPTOR] = str(reader)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted


def _keep_to_ourselves(descriptor: str) -> None:
    if descriptor.isascii() and descriptor.isdigit() and len(descriptor) < 10:
        try:
            os.set_inheritable(int(descriptor), False)
        except OSError:
            del os.environ[DESCRIPTOR]  # from an ancestor process, which did not pass the descriptor on
