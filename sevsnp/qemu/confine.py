# SPDX-License-Identifier: Apache-2.0
"""The program that becomes QEMU: it gives up all rights that QEMU does not need, and then executes QEMU.

QEMU reads untrusted data: disk images, and requests of a guest to its devices. An attacker who takes over QEMU can
open only the files that QEMU was given. QEMU cannot leave a core dump with guest memory or a key in it, and it dies
with the process that started it. Standard library only: a host bundle has it too, and starts it with -I -S -B.

Landlock's numbers and structures are those of linux/landlock.h.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _RULE_PATH, _RULE_PORT = 1, 1, 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
_MAKE_REGULAR, _MAKE_SOCKET, _TRUNCATE, _IOCTL_DEVICE = 1 << 8, 1 << 9, 1 << 14, 1 << 15
# The rights that a kernel knows, by its Landlock version. A kernel cannot be asked to forbid a right it does not know.
_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_BIND, _CONNECT = 1, 2
_NET_FROM, _SCOPES_FROM = 4, 6
_SCOPES = 3  # no access to abstract UNIX sockets and processes outside
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000

_READ = _READ_FILE | _READ_DIR
_PROGRAM = _READ | _EXECUTE
_WRITE = _READ_FILE | _WRITE_FILE | _TRUNCATE
_SCRATCH = _WRITE | _READ_DIR | _REMOVE_FILE | _MAKE_REGULAR | _MAKE_SOCKET
# The parts of the system that any program needs, and the kernel files that QEMU needs. None belongs to a user.
_SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/alternatives"),
)
_FACTS = (
    *("/etc/localtime", "/etc/resolv.conf", "/run/systemd/resolve", "/sys/devices/system", "/sys/kernel/mm"),
    *("/sys/module/kvm", "/sys/module/kvm_amd", "/proc/cpuinfo", "/proc/meminfo", "/proc/filesystems", "/proc/sys/vm"),
    *("/proc/self/status", "/dev/zero", "/dev/random", "/dev/urandom"),
)
_DEVICES = ("/dev/null", "/dev/kvm", "/dev/sev")
# A QEMU outside the system directories has its libraries and firmware in these directories, beside its own directory.
_BESIDE = ("bin", "lib", "lib64", "libexec", "share", "usr")
_BESIDE_AT_HOME = ("lib/qemu", "lib64/qemu", "libexec/qemu", "share/qemu")


class Access(NamedTuple):
    """What QEMU may open beside its own files: files to ``read`` and to ``write``, and ``scratch`` directories in
    which it makes files and sockets. All of them exist.

    ``listen`` are the TCP ports at which it may listen; ``reach`` says whether it may connect to others. With neither
    it gets no network at all. ``everything`` is for QEMU options of the user, because the files that they need are
    unknown.
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    listen: tuple[int, ...] = ()
    reach: bool = False
    everything: bool = False


def wrapped(argv: list[str], access: Access) -> list[str]:
    """The command line that starts ``argv``, an absolute path and its arguments, confined as this process's child."""
    return [sys.executable, "-I", "-S", "-B", __file__, str(os.getpid()), json.dumps(access._asdict()), *argv]


def landlock_version() -> int:
    """The version of the kernel's Landlock; 0 if it is missing or switched off."""
    try:
        return max(0, _system_call(_CREATE_RULESET, None, 0, _VERSION))
    except OSError:
        return 0


def main(argv: list[str]) -> None:
    """Confine this process and execute ``argv[2:]``; ``argv[:2]`` are the parent's process id and the access."""
    parent, access, program = int(argv[0]), Access(**json.loads(argv[1])), argv[2:]
    # One byte, not zero: the kernel writes no file for so little. With zero it would still hand a dump to a pipe.
    _, most = resource.getrlimit(resource.RLIMIT_CORE)
    least = 1 if most == resource.RLIM_INFINITY else min(1, most)
    resource.setrlimit(resource.RLIMIT_CORE, (least, least))
    # A dump that goes to a socket ignores the limit; with this setting it contains no memory.
    with contextlib.suppress(OSError), Path("/proc/self/coredump_filter").open("w") as stream:
        stream.write("0")
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if not access.everything:
        if not access.listen and not access.reach:
            _leave_network()
        _landlock(access, program[0])
    _filter(connections=access.everything or access.reach)
    # Last, because a change of credentials resets it. The parent may have died before.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that starts QEMU is gone")
    os.execv(program[0], program)  # noqa: S606


def _leave_network() -> None:
    """Enter a network namespace without any interface, if this user may make one; Landlock covers only TCP."""
    ctypes.CDLL(None).unshare(_NEW_NET if os.geteuid() == 0 else _NEW_USER | _NEW_NET)


def _filter(*, connections: bool) -> None:
    """A seccomp filter for calls that Landlock does not cover and QEMU's own sandbox allows.

    It forbids typing into the user's terminal. Without ``connections`` it forbids connect(2), io_uring, which can do
    the same, and all sockets but streams of UNIX or TCP, on which QEMU listens: Landlock lets a process connect to any
    UNIX socket, such as the user's session bus and agents, and send by UDP and MPTCP.
    """
    if os.uname().machine != "x86_64":
        return
    # BPF: LD|W|ABS, JMP|JEQ|K, JMP|JGE|K, ALU|AND|K, RET|K
    load, equal, least, mask, give = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, deny, kill = 0x7FFF0000, 0x00050000 | errno.EACCES, 0x80000000
    # Fields of seccomp_data: the system call, its interface, and the low halves of its arguments.
    number, interface, second, third = 0, 4, 24, 32
    ioctl, socket, connect, io_uring_setup = 16, 41, 42, 425
    tiocsti, tioclinux, stream, tcp = 0x5412, 0x541C, 1, 6
    program = [
        (load, 0, 0, interface),
        (equal, 1, 0, 0xC000003E),  # AUDIT_ARCH_X86_64
        (give, 0, 0, kill),
        (load, 0, 0, number),
        (least, 0, 1, 0x40000000),  # the numbers of x32
        (give, 0, 0, kill),
        (equal, 0, 4, ioctl),
        (load, 0, 0, second),
        (equal, 1, 0, tiocsti),
        (equal, 0, 1, tioclinux),
        (give, 0, 0, deny),
        (load, 0, 0, number),
    ]
    if not connections:
        program += [
            (equal, 1, 0, connect),
            (equal, 0, 1, io_uring_setup),
            (give, 0, 0, deny),
            (equal, 0, 7, socket),
            (load, 0, 0, second),
            (mask, 0, 0, 0xF),
            (equal, 0, 3, stream),
            (load, 0, 0, third),
            (equal, 2, 0, 0),
            (equal, 1, 0, tcp),
            (give, 0, 0, deny),
        ]
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *one) for one in program))
    filters = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    _prctl(_PR_SET_SECCOMP, 2, filters)


def _landlock(access: Access, program: str) -> None:
    version = landlock_version()
    if not version:
        return
    known = _RIGHTS[max(least for least in _RIGHTS if least <= version)]
    ports = _BIND | (0 if access.reach else _CONNECT) if version >= _NET_FROM else 0
    scopes = _SCOPES if version >= _SCOPES_FROM else 0
    size = 24 if version >= _SCOPES_FROM else 16 if version >= _NET_FROM else 8
    attributes = b"".join(part.to_bytes(8, sys.byteorder) for part in (known, ports, scopes))[:size]
    ruleset = _system_call(_CREATE_RULESET, attributes, size, 0)
    for paths, rights in (
        (_SYSTEM, _PROGRAM),
        (_own_files(program), _PROGRAM),
        (_FACTS, _READ),
        (_DEVICES, _WRITE | _IOCTL_DEVICE),
        (access.read, _READ_FILE),
        (access.write, _WRITE),
        (access.scratch, _SCRATCH),
    ):
        for path in paths:
            _allow(ruleset, path, rights & known)
    for port in access.listen if ports else ():
        rule = _BIND.to_bytes(8, sys.byteorder) + port.to_bytes(8, sys.byteorder)
        _system_call(_ADD_RULE, ruleset, _RULE_PORT, rule, 0)
    _system_call(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _own_files(program: str) -> Iterator[str]:
    real = Path(program).resolve()
    yield from (program, str(real))
    if real.parent.name in ("bin", "sbin"):
        # In ~/bin and ~/.local/bin the neighbouring directories hold the user's own files.
        home = real.parents[1] in (Path.home(), Path.home() / ".local")
        yield from (str(real.parents[1] / name) for name in (_BESIDE_AT_HOME if home else _BESIDE))


def _allow(ruleset: int, path: str, rights: int) -> None:
    """Allow ``rights`` on a file, or on everything below a directory; does nothing if the path does not exist."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = rights.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder)
        _system_call(_ADD_RULE, ruleset, _RULE_PATH, rule, 0)
    finally:
        os.close(descriptor)


def _system_call(number: int, *arguments: bytes | int | None) -> int:
    words = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def _prctl(option: int, value: int, more: "ctypes.Array[ctypes.c_char] | int" = 0) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), more, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main(sys.argv[1:])
