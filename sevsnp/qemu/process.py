# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line, one option and its value a line, and its process, which must not outlive this one."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.firmware.gate import check_launch_firmware
from sevsnp.qemu.blocks import BlockFile
from sevsnp.qemu.confine import Access, landlock_version, wrapped
from sevsnp.qemu.ports import check_ports, forwarded
from sevsnp.qemu.run_options import RunOptions
from sevsnp.system import record
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.cmdline import read_cmdline
from sevsnp.vm_config.config import WRITTEN, Disk, File, Launch, making

# sev-snp-guest came with 9.1; emulated guests are built for and tested with 10.
OLDEST = {"snp": (9, 1), "emulated": (10, 0)}
# For every QEMU: only the system calls that it needs, and no guest memory in a core dump.
_ALWAYS = (
    *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
    *("-machine", "dump-guest-core=off"),
)
# Whether this process has already reported that the kernel cannot confine QEMU.
_warned: list[bool] = []
# The processes that were started here and not yet stopped, with the files of QEMU's messages.
_told: dict["subprocess.Popen[bytes]", tuple[record.Command, Path]] = {}


_QEMU = "in a checkout the pinned one is made with: ./doitw packages; a host bundle takes: ./run --qemu FILE"


def check_files(launch: Launch, *, disks: bool = True) -> None:
    """Refuse, by name, files that are missing or differ from the VM config; disks too unless ``disks`` is false."""
    files: list[tuple[str, File | Disk]] = [
        ("firmware", launch.firmware),
        ("kernel", launch.kernel),
        ("initrd", launch.initrd),
        ("cmdline", launch.cmdline),
        *((name, file) for name, file in (("id_block", launch.id_block), ("id_auth", launch.id_auth)) if file),
        *((disk.role, disk) for disk in launch.disks if disks),
    ]
    check_launch_firmware(launch)
    for name, file in files:
        hint = f"make it again with: {making(file.path, launch.workflow)}"
        if not file.path.is_file():
            raise UserError(f"{file.path}: no such file ({name} of the VM config)", hint)
        size = file.path.stat().st_size
        if isinstance(file, Disk) and size != file.size:
            raise UserError(f"{file.path}: found {size} bytes, the VM config says {file.size}", hint)
        found = sha256_file(file.path)
        if found != file.sha256:
            raise UserError(f"{file.path}: found SHA-256 {found}, the VM config says {file.sha256} ({name})", hint)


def check_options(options: RunOptions) -> RunOptions:
    """Refuse ports that :func:`check_ports` refuses, and more memory than this machine has.

    Returns the options to launch with.
    """
    options = check_ports(options)
    total = _host_memory()
    if options.memory > total:
        raise UserError(f"MEMORY={options.memory >> 20}M: this machine has {total >> 20}M", "take less: MEMORY=2G")
    return options


def _host_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise UserError("/proc/meminfo: no MemTotal")


def escaped(path: Path) -> str:
    """A path inside a QEMU option, in which a comma ends the value."""
    return str(path).replace(",", ",,")


def common_arguments(launch: Launch, options: RunOptions, qmp_socket: Path) -> list[str]:
    """The arguments of a measured guest that do not depend on the platform: files, disks, network card, serial port."""
    arguments = [
        *machine_arguments(launch.vcpus, options),
        *("-qmp", f"unix:{escaped(qmp_socket)},server=on,wait=off"),
        *("-bios", str(launch.firmware.path)),
        *("-kernel", str(launch.kernel.path)),
        *("-initrd", str(launch.initrd.path)),
        *("-append", read_cmdline(launch.cmdline.path)),
    ]
    for disk in (*launch_disks(launch), *options.disks):
        arguments += disk_device(disk)
    return [*arguments, *options.extra]


def launch_disks(launch: Launch) -> tuple[BlockFile, ...]:
    """The disks of a measured guest: raw, whatever their content is."""
    return tuple(BlockFile(disk.role, disk.path, read_only=disk.role not in WRITTEN) for disk in launch.disks)


def machine_arguments(vcpus: int, options: RunOptions) -> list[str]:
    """The arguments of every guest: one network card, one serial port, and none of QEMU's default devices."""
    forwards = ",".join(f"hostfwd=tcp:127.0.0.1:{port}-:{inside}" for port, inside in forwarded(options))
    console = "stdio,id=serial,signal=on,mux=off" if options.terminal else "null,id=serial"
    if options.console is not None:
        console = f"socket,id=serial,fd={options.console},server=on,wait=off"
    return [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        *("-display", "none"),
        *("-smp", str(vcpus)),
        *("-chardev", f"{console},logfile={escaped(options.serial_log)},logappend=off"),
        *("-serial", "chardev:serial"),
        *("-netdev", f"user,id=net,restrict={'on' if options.restricted else 'off'},{forwards}"),
        *("-device", "virtio-net-pci,netdev=net,romfile=,disable-legacy=on,iommu_platform=on"),
    ]


def disk_device(disk: BlockFile) -> list[str]:
    """A virtio disk with the image's role as its serial number."""
    device = f"virtio-blk-pci,drive={disk.role},serial={disk.role},disable-legacy=on,iommu_platform=on"
    return [*disk.arguments(), "-device", device]


def guest_access(launch: Launch, options: RunOptions, work: Path) -> Access:
    """What the QEMU of a guest may open: the guest's files and disks, its console's log, and the directory ``work``.

    The log is made here, so that QEMU needs no right to make files in the state directory.
    """
    options.serial_log.touch()
    disks = (*launch_disks(launch), *options.disks)
    files = (launch.firmware.path, launch.kernel.path, launch.initrd.path)
    return Access(
        read=_names((*files, *(path for disk in disks for path in disk.only_read))),
        write=_names((options.serial_log, *(path for disk in disks for path in disk.written))),
        scratch=_names((work,)),
        listen=tuple(port for port, _ in forwarded(options)),
        reach=not options.restricted,
        everything=bool(options.extra),
    )


def _names(paths: Iterable[Path]) -> tuple[str, ...]:
    return tuple(str(path) for path in paths)


def emulated_arguments(vcpu_model: str, memory: int, accelerator: str) -> list[str]:
    """The machine without SEV-SNP, on KVM or on QEMU's own emulation (tcg)."""
    return [
        *("-machine", "q35,smm=off,vmport=off"),
        *("-accel", f"{accelerator},thread=multi" if accelerator == "tcg" else accelerator),
        *("-cpu", vcpu_model),
        *("-m", f"{memory >> 20}M"),
    ]


def environment() -> dict[str, str]:
    """The part of our environment that QEMU gets: locations, nothing that may be a secret."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "TERM") if name in os.environ}
    return {**kept, "LC_ALL": "C.UTF-8"}


def check_version(qemu: Path, platform: str) -> None:
    """Refuse a QEMU that is missing, is not QEMU, or is too old for ``platform`` (snp or emulated)."""
    hint = _QEMU
    words = [str(qemu), "--version"]
    if not shutil.which(str(qemu)):
        raise UserError(f"{qemu}: no such program", hint)
    told = record.starting(words)
    try:
        done = subprocess.run(words, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        told.ended(None)
        raise UserError(f"{qemu} --version: {error}", hint) from error
    told.ended(done.returncode)
    match = re.match(rb"QEMU emulator version (\d+)\.(\d+)", done.stdout)
    if not match:
        raise UserError(f"{qemu} --version: found {done.stdout[:60]!r}, expected QEMU emulator version …", hint)
    if (int(match[1]), int(match[2])) < OLDEST[platform]:
        least = "{}.{}".format(*OLDEST[platform])
        raise UserError(f"{qemu}: found version {int(match[1])}.{int(match[2])}, expected {least} or newer", hint)


def start(
    qemu: Path, arguments: list[str], access: Access, *, terminal: bool, messages: Path,
    sockets: Path | None = None, inherited: tuple[int, ...] = (),
) -> "subprocess.Popen[bytes]":  # fmt: skip
    """Start QEMU confined to ``access``, so that it dies with this process, whatever kills this process.

    The calling thread must live as long as QEMU: the kernel treats the thread's end as the process's. QEMU's messages
    go to the file ``messages``; ``sockets`` is a directory's :func:`short_name` that ``arguments`` use, and
    ``inherited`` are file descriptors of this process that they name.
    """
    program = shutil.which(str(qemu))
    if not program:
        raise UserError(f"{qemu}: no such program", _QEMU)
    _warn_unconfined()
    words = [*arguments, *_ALWAYS]
    # Only QEMU's own words: the confining program works only as this process's child.
    told = record.starting([str(Path(program).absolute()), *words])
    if sockets:
        # A confined process may not use another process's descriptors: it gets its own, with its own name for the
        # directory.
        words = [word.replace(f"{sockets}/", f"/proc/self/fd/{sockets.name}/") for word in words]
    with messages.open("wb") as log:
        process = subprocess.Popen(
            wrapped([str(Path(program).absolute()), *words], access),
            env=environment(),
            stdin=None if terminal else subprocess.DEVNULL,
            stdout=None if terminal else log,
            stderr=log,
            pass_fds=(*inherited, *((int(sockets.name),) if sockets else ())),
        )
    _told[process] = (told, messages)
    return process


def _warn_unconfined() -> None:
    if not _warned and not landlock_version():
        _warned.append(True)
        print("warning: this kernel has no Landlock: QEMU may open all files that you may", file=sys.stderr, flush=True)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End QEMU if it is still running."""
    failed = bool(process.poll())
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    if process in _told:
        told, messages = _told.pop(process)
        if failed:
            with contextlib.suppress(OSError):
                told.keep(messages.read_bytes())
        told.ended(process.returncode)
