# SPDX-License-Identifier: Apache-2.0
"""A disk key in this process: out of the environment, and into no core dump.

LUKS_KEY is moved into a pipe, because /proc shows the environment as long as the process lives; ./doitw has done so
before it executes anything, this is for a doit that is called directly. Loaded for every command: standard library
only, and ctypes only where there is a key.
"""

import contextlib
import os
import resource
import sys
from pathlib import Path

# linux/prctl.h
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
VARIABLE = b"LUKS_KEY"
# The number of the pipe's file descriptor, for who reads the key.
DESCRIPTOR = "SEVSNP_LUKS_KEY_FD"
MAX_KEY = 4096


def keep_from_dumps() -> None:
    """No core dump of this process from now on, and none of what it starts that is written to a file.

    A crash would write the key into a file, and into every backup of it. Two things, because neither is enough:
    programs started from here inherit RLIMIT_CORE (a QEMU that is handed the key), which a dump that goes to a program
    (core_pattern with a pipe) does not heed; and PR_SET_DUMPABLE, which ends with the next execve(2), prevents both,
    and ptrace(2) and /proc/PID/mem for all but root. Raises OSError.
    """
    # It is inherited like the limit, which a dump that goes to a socket does not heed.
    with contextlib.suppress(OSError), Path("/proc/self/coredump_filter").open("w") as stream:
        stream.write("0")
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def take_over() -> None:
    """Begin this very process anew without the variable; return where there is none.

    The pipe's end is for this process: nothing that it starts inherits it. With a key, no dump is made of it.
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
            del os.environ[DESCRIPTOR]  # of a process further up, which kept it to itself
