# SPDX-License-Identifier: Apache-2.0
"""The few system calls that init needs and Python does not provide (x86-64 Linux), and other basic steps of init."""

import ctypes
import errno
import os
import time

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_MOVE = 0x2000

_PR_SET_DUMPABLE = 4
_RB_AUTOBOOT = 0x01234567
_RB_POWER_OFF = 0x4321FEDC
_DELETE_MODULE = 176
_FINIT_MODULE = 313
_COMPRESSED_FILE = 4  # linux/module.h: MODULE_INIT_COMPRESSED_FILE


class Stop(Exception):
    """init cannot continue; the message says why."""


_libc = ctypes.CDLL("libc.so.6", use_errno=True)


def reason(error: BaseException) -> str:
    """The text of an error; for an unexpected error it includes the error's type."""
    return str(error) if isinstance(error, Stop) else f"{type(error).__name__}: {error}"


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2); the target directory is made if absent. The target may also be a file."""
    if not os.path.exists(target):
        os.makedirs(target)
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None
    )
    _check(result, f"mount {kind or source} on {target}")


def unmount(target: str) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), 0), f"unmount {target}")


def keep_from_dumps() -> None:
    """Prevent core dumps of this process until it executes another program. Its children make no core dumps anyway.

    PID 1 starts with RLIMIT_CORE 0 (INIT_RLIMITS), and the children inherit it.
    """
    _check(_libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0), "prctl(PR_SET_DUMPABLE)")


def load_module(path: str) -> None:
    """finit_module(2) without parameters. A module that is already loaded, or has no device here, is no error.

    The kernel unpacks a compressed module itself, if it supports the compression.
    """
    flags = 0 if path.endswith(".ko") else _COMPRESSED_FILE
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        failed = _libc.syscall(_FINIT_MODULE, descriptor, b"", flags) != 0
        if failed and ctypes.get_errno() not in (errno.EEXIST, errno.ENODEV):
            _check(-1, f"load {path}")
    finally:
        os.close(descriptor)


def unload_module(name: str) -> None:
    """delete_module(2) without waiting: a module that is in use is an error."""
    _check(_libc.syscall(_DELETE_MODULE, name.encode(), os.O_NONBLOCK), f"unload {name}")


def module_paths(*lists: str) -> "list[str]":
    """The modules of these lists of the initramfs, in load order; without a name, the modules of all lists."""
    directory = "/usr/lib/sevsnp/modules"
    paths: dict[str, None] = {}
    for name in lists or sorted(name[: -len(".list")] for name in os.listdir(directory) if name.endswith(".list")):
        with open(f"{directory}/{name}.list", encoding="ascii") as stream:
            paths.update(dict.fromkeys(stream.read().split()))
    return list(paths)


def read(path: str) -> str:
    """The text of a small kernel file."""
    with open(path, encoding="ascii", errors="replace") as stream:
        return stream.read()


def find_disks(*roles: str, seconds: float = 30.0) -> "list[str]":
    """The device of each role, by virtio serial number. The serial only selects a disk; a digest verifies it later."""
    deadline = time.monotonic() + seconds
    while True:
        found: dict[str, list[str]] = {role: [] for role in roles}
        for name in sorted(os.listdir("/sys/block")):
            if name.startswith("vd"):
                serial = read(f"/sys/block/{name}/serial").strip()
                if serial in found:
                    found[serial].append(f"/dev/{name}")
        for role, devices in found.items():
            if len(devices) > 1:
                raise Stop(f"found {len(devices)} disks with the serial {role}, expected one")
        if all(found.values()):
            return [found[role][0] for role in roles]
        if time.monotonic() > deadline:
            missing = ", ".join(role for role in roles if not found[role])
            raise Stop(f"no disk with the serial {missing}")
        time.sleep(0.05)


def device_number(path: str) -> str:
    """The number of a block device in the form of the kernel's tables (major:minor)."""
    number = os.stat(path).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def switch_root(newroot: str) -> None:
    """Make ``newroot`` the root and execute its init, with neither our argv nor our environment from the kernel."""
    os.chdir(newroot)
    mount(".", "/", flags=MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
    os.execve("/sbin/init", ["/sbin/init"], {"PATH": path, "TERM": "linux"})


def stop(acpi: bool) -> None:
    """End the machine now. Without ACPI it cannot power off, so it reboots; QEMU runs with -no-reboot and then ends."""
    os.sync()
    if acpi:
        _libc.reboot(_RB_POWER_OFF)
    _libc.reboot(_RB_AUTOBOOT)


def run(*argv: str, secret: "bytes | bytearray" = b"") -> str:
    """Run a program of the initramfs with a minimal environment and return its output. Raises Stop if it fails.

    The program's input is ``secret`` (at most 4096 bytes).
    """
    # There is no udev here: without DM_DISABLE_UDEV libdevmapper would wait for udev.
    environment = {"PATH": "/usr/sbin:/usr/bin", "DM_DISABLE_UDEV": "1"}
    reader, writer = os.pipe()
    source, feed = os.pipe()
    os.write(feed, secret)  # a pipe can hold this much before the program reads it
    os.close(feed)
    actions = [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, source, 0)]
    process = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    os.close(writer)
    os.close(source)
    with os.fdopen(reader, "rb") as stream:
        output = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code != 0:
        raise Stop(f"{argv[0]}: exit code {code}")
    return output.decode(errors="replace")
