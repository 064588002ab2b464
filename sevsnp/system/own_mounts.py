# SPDX-License-Identifier: Apache-2.0
"""Run a program, as root, with mounts of its own: no other process sees them, and they end with the program.

`unshare --mount` does this only if / is a mount point. In a chroot it is not: the propagation of the mount that holds
the chroot's directory must be changed, and that mount has no name inside. Therefore the namespace's own root is taken
for a moment.

This is a program of its own, because it changes / for the whole process: python3 -I -S own_mounts.py PROGRAM [WORD]...
"""

import ctypes
import os
import sys

_NEW_NAMESPACE = 0x20000  # CLONE_NEWNS
_PRIVATE = 0x40000 | 0x4000  # MS_PRIVATE | MS_REC


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def separate() -> None:
    """Give this process a mount namespace whose mounts no other process sees. Raises OSError; needs CAP_SYS_ADMIN."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(_NEW_NAMESPACE))
    # Opened after the new namespace exists, so that both are in it.
    root, here = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in ("/", "."))
    process = os.pidfd_open(os.getpid())
    # A process that joins a mount namespace, even its own, gets the namespace's root as /. That is always a mount
    # point.
    _check(libc.setns(process, _NEW_NAMESPACE))
    _check(libc.mount(b"none", b"/", None, _PRIVATE, None))
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(here)
    for descriptor in (root, here, process):
        os.close(descriptor)


if __name__ == "__main__":
    try:
        separate()
    except OSError as error:
        sys.exit(f"no mount namespace: {error.strerror}; expected root's right to make one (CAP_SYS_ADMIN)")
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 (that is what it is for)
