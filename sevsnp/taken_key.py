"""LUKS_KEY out of this process's environment, where /proc shows it as long as the process lives, and into a pipe.

./doitw has done so before it executes anything; this is for a doit that is called directly. Loaded for every command:
standard library only.
"""

import os
import sys

from sevsnp.no_dumps import keep_from_dumps

VARIABLE = b"LUKS_KEY"
# The number of the pipe's file descriptor, for who reads the key.
DESCRIPTOR = "SEVSNP_LUKS_KEY_FD"
MAX_KEY = 4096


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
