"""A process that has a disk key leaves no core dump, and no other process of its user may read its memory.

A crash would write the key into a file, for as long as the file is kept and into every backup of it. Loaded for every
command: standard library only, and ctypes only where there is a key.
"""

import resource

# linux/prctl.h
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4


def keep_from_dumps() -> None:
    """No core dump of this process from now on, and none of what it starts that is written to a file.

    Two things, because neither is enough: programs started from here inherit RLIMIT_CORE (a QEMU that is handed the
    key), which a dump that goes to a program (core_pattern with a pipe) does not heed; and PR_SET_DUMPABLE, which ends
    with the next execve(2), prevents both, and ptrace(2) and /proc/PID/mem for all but root. Raises OSError.
    """
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, most))
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
