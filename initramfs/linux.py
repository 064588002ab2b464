"""The few system calls that init needs and Python does not wrap (x86-64 Linux)."""

import ctypes
import errno
import os

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_MOVE = 0x2000

_RB_AUTOBOOT = 0x01234567
_RB_POWER_OFF = 0x4321FEDC
_FINIT_MODULE = 313


class Stop(Exception):
    """Why init does not go on."""


_libc = ctypes.CDLL("libc.so.6", use_errno=True)


def reason(error: BaseException) -> str:
    """An error in words; what was not foreseen with its kind."""
    return str(error) if isinstance(error, Stop) else f"{type(error).__name__}: {error}"


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); the target directory is made if absent."""
    os.makedirs(target, exist_ok=True)
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount {kind or source} on {target}")


def load_module(path: str) -> None:
    """finit_module(2) with no parameters; a module that is there already, or has no device here, is fine."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        failed = _libc.syscall(_FINIT_MODULE, descriptor, b"", 0) != 0
        if failed and ctypes.get_errno() not in (errno.EEXIST, errno.ENODEV):
            _check(-1, f"load {path}")
    finally:
        os.close(descriptor)


def module_paths() -> "list[str]":
    """The modules of the initramfs, in the order in which the build resolved their dependencies."""
    directory = "/usr/lib/sevsnp/modules"
    paths: list[str] = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".list"):
            with open(f"{directory}/{name}", encoding="ascii") as stream:
                paths += stream.read().split()
    return paths


def switch_root(newroot: str) -> None:
    """Make ``newroot`` the root and execute its init; what the kernel gave ours as argv and environment ends here."""
    os.chdir(newroot)
    mount(".", "/", flags=MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
    os.execve("/sbin/init", ["/sbin/init"], {"PATH": path, "TERM": "linux"})


def stop(acpi: bool) -> None:
    """End the machine, now. Without ACPI there is no way to power off, so it reboots and QEMU runs with -no-reboot."""
    os.sync()
    if acpi:
        _libc.reboot(_RB_POWER_OFF)
    _libc.reboot(_RB_AUTOBOOT)


def run(*argv: str) -> str:
    """Run a program of the initramfs in an empty environment and return what it printed; Stop if it fails."""
    reader, writer = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1)]
    process = os.posix_spawn(argv[0], argv, {"PATH": "/usr/sbin:/usr/bin"}, file_actions=actions)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        output = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code != 0:
        raise Stop(f"{argv[0]}: exit code {code}")
    return output.decode(errors="replace")
