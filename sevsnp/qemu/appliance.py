# SPDX-License-Identifier: Apache-2.0
"""Runs one job in the appliance: a VM on QEMU's own firmware, with our kernel and initramfs and no network.

The appliance does what the host's kernel should not do: opening device-mapper volumes and foreign file systems needs
root, and a foreign file system may attack the kernel that mounts it. A successful attack ends with the VM.
"""

import contextlib
import json
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sevsnp.errors import UserError
from sevsnp.qemu.blocks import BlockFile
from sevsnp.qemu.confine import Access
from sevsnp.qemu.disk_format import DiskFormat
from sevsnp.qemu.platforms import accelerator
from sevsnp.qemu.process import escaped, start, stop
from sevsnp.system import progress
from sevsnp.system.command import temporary_directory
from sevsnp.system.files import disks as full_disks
from sevsnp.system.text import printable

PORT_NAME = "org.openend2e.appliance"
Format = Literal["raw", "qcow2", "vmdk", "vhdx", "vpc"]
MEMORY = 1 << 30
# The time limit of a job that does not read or write a whole large disk.
JOB_SECONDS = 1800.0
_CPUS = 2
# QEMU 10.0 sometimes aborts while the machine starts: another processor uses a memory map that was just replaced
# (iotlb_to_section). A job that has not begun has changed nothing, so the appliance is started again.
_STARTS = 3
_TAIL = 2000
_NEWLINE = "\n"
_LINE = 1 << 20
_ENDING = 30.0
# By default, QEMU would stop the machine on a full disk and wait until there is room.
_REPORT = "werror=report,rerror=report"


@dataclass(frozen=True)
class ApplianceDisk:
    """A disk of the appliance: ``role`` is its serial number; ``format`` is given, never detected by QEMU.

    With ``overlay``, a file that is made for it, changes go there and the disk stays as it is.
    """

    role: str
    path: Path
    format: Format = "raw"
    read_only: bool = False
    overlay: Path | None = None

    @property
    def block(self) -> BlockFile:
        # No flush of the host's disk: if the host fails, the half-written file does not have its final name yet.
        return BlockFile(self.role, self.path, DiskFormat(self.format), self.read_only, self.overlay, flush=False)


@dataclass(frozen=True)
class Appliance:
    """The appliance's files. ``probe_cache`` is the file that remembers whether KVM boots here."""

    qemu: Path
    kernel: Path
    initrd: Path
    probe_cache: Path


def run_job(
    appliance: Appliance,
    name: str,
    arguments: Mapping[str, Any],
    *,
    disks: Sequence[ApplianceDisk],
    secret: bytes = b"",
    seconds: float = JOB_SECONDS,
    memory: int = MEMORY,
) -> dict[str, Any]:
    """Do the job initramfs/appliance/NAME.py and return its result.

    ``arguments`` is JSON. ``secret`` goes the same way, over a socket that no other process has, and nowhere else.
    Raises UserError with the job's message, or with the end of the console if the job gives none; also after
    ``seconds``.
    """
    for path in (appliance.kernel, appliance.initrd, *(disk.path for disk in disks)):
        if not path.is_file():
            raise UserError(f"{path}: no such file, needed for the appliance")
    job = json.dumps({"name": name, "arguments": arguments, "secret": len(secret)}).encode()
    sent = len(job).to_bytes(4, "big") + job + secret
    for starts_left in reversed(range(_STARTS)):
        with temporary_directory("sevsnp-") as work:
            end = _run_once(appliance, name, sent, disks, work, seconds, memory)
            if end.answer is None and not end.begun and end.code == -signal.SIGABRT and starts_left:
                continue
            if end.code != 0 or end.answer is None or "error" in end.answer:
                _check_room([disk.path for disk in disks if not disk.read_only])
            if end.answer is None:
                raise UserError(f"the appliance ended in its job {name}\n{_said(work)}")
            if "error" in end.answer:
                raise UserError(f"the appliance's job {name}: {printable(end.answer['error'], _NEWLINE)}")
            if end.code:
                raise UserError(f"the appliance's QEMU ended with exit code {end.code}\n{_said(work)}")
            return dict(end.answer["result"])
    raise AssertionError("unreachable")


@dataclass
class _End:
    """How far one start of the appliance came: its answer, if any, and QEMU's exit code."""

    begun: bool = False
    answer: dict[str, Any] | None = None
    code: int | None = None


def _run_once(
    appliance: Appliance,
    name: str,
    sent: bytes,
    disks: Sequence[ApplianceDisk],
    work: Path,
    seconds: float,
    memory: int,
) -> _End:
    end = _End()
    port, its_end = socket.socketpair()
    with port:
        with its_end:
            process = start(
                appliance.qemu,
                _arguments(appliance, disks, its_end.fileno(), work / "console", memory),
                _access(appliance, disks, work),
                terminal=False,
                messages=work / "qemu.log",
                inherited=(its_end.fileno(),),
            )
        try:
            _talk(port, sent, seconds, end)
            process.wait(_ENDING)
        except (OSError, subprocess.TimeoutExpired, _ApplianceFailed) as error:
            raise UserError(f"the appliance's job {name}: {error or type(error).__name__}\n{_said(work)}") from None
        finally:
            stop(process)
    end.code = process.returncode
    return end


class _ApplianceFailed(Exception):
    """A limit was reached, or an answer is malformed."""


def _arguments(
    appliance: Appliance, disks: Sequence[ApplianceDisk], port: int, console: Path, memory: int
) -> list[str]:
    kind = accelerator(appliance.kernel, appliance.qemu, appliance.probe_cache)
    arguments = [
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        *("-display", "none"),
        *("-machine", "q35,smm=off,vmport=off"),
        *("-accel", f"{kind},thread=multi" if kind == "tcg" else kind),
        *("-cpu", "max"),
        *("-smp", str(_CPUS)),
        *("-m", f"{memory >> 20}M"),
        *("-kernel", str(appliance.kernel)),
        *("-initrd", str(appliance.initrd)),
        # no_timer_check: on a busy machine a virtual CPU does not run often enough for the kernel's test of its timer.
        *("-append", "console=ttyS0 loglevel=4 panic=-1 mitigations=off no_timer_check"),
        *("-chardev", f"file,id=console,path={escaped(console)}"),
        *("-serial", "chardev:console"),
        *("-device", "virtio-serial-pci,disable-legacy=on"),
        *("-chardev", f"socket,id=port,fd={port}"),
        *("-device", f"virtserialport,chardev=port,name={PORT_NAME}"),
    ]
    for disk in disks:
        arguments += _disk(disk)
    return arguments


def _access(appliance: Appliance, disks: Sequence[ApplianceDisk], work: Path) -> Access:
    """Access to the appliance's files and its disks; no network."""
    blocks = [disk.block for disk in disks]
    files = [appliance.kernel, appliance.initrd, *(path for block in blocks for path in block.only_read)]
    return Access(
        read=tuple(map(str, files)),
        write=tuple(str(path) for block in blocks for path in block.written),
        scratch=(str(work),),
    )


def _disk(disk: ApplianceDisk) -> list[str]:
    """A virtio disk. QEMU opens no other file than the named one for it."""
    return [
        *disk.block.arguments(),
        *("-device", f"virtio-blk-pci,drive={disk.role},serial={disk.role},disable-legacy=on,{_REPORT}"),
    ]


def _talk(port: socket.socket, sent: bytes, seconds: float, end: _End) -> None:
    """Send the job and its secret and follow it until the appliance answers or ends."""
    deadline = time.monotonic() + seconds
    with progress.amount("starting the appliance") as amount:
        port.settimeout(seconds)
        # When QEMU ends, for whatever reason, the port is closed.
        with contextlib.suppress(ConnectionError):
            port.sendall(sent)
            for line in _lines(port, deadline, seconds):
                said = _parse(line)
                end.begun = True
                if "result" in said or "error" in said:
                    end.answer = said
                    return
                if "done" in said:
                    amount.at(said["done"], said["total"])
                if "step" in said:
                    amount.what = printable(said["step"])[:60]


def fields(answer: Mapping[str, Any], whose: str, kinds: Mapping[str, type]) -> list[Any]:
    """The named fields of an answer, in this order; ``whose`` disk was in the appliance.

    An appliance that has mounted a disk deserves no more trust than the disk: raises UserError unless each field is
    there and has its type.
    """
    found = [answer.get(name) for name in kinds]
    if any(type(value) is not kind for value, kind in zip(found, kinds.values(), strict=True)):
        raise UserError(f"{whose}: the appliance gave an invalid answer")
    return found


def _parse(line: bytes) -> dict[str, Any]:
    """A message of the appliance, if well formed: a mounted file system may have taken over the appliance's kernel."""
    try:
        said = json.loads(line)
        if not isinstance(said, dict):
            raise ValueError("no object")
        for name, kind in (("result", dict), ("error", str), ("step", str), ("done", int), ("total", int)):
            if name in said and not isinstance(said[name], kind):
                raise ValueError(name)
        if "done" in said and "total" not in said:
            raise ValueError("total")
        return said
    except (ValueError, TypeError, RecursionError):
        raise _ApplianceFailed("an invalid answer") from None


def _lines(port: socket.socket, deadline: float, seconds: float) -> Iterator[bytes]:
    buffer = b""
    while True:
        port.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            piece = port.recv(1 << 16)
        except TimeoutError:
            raise _ApplianceFailed(f"no end after {seconds:.0f} s") from None
        if not piece:
            return
        buffer += piece
        *whole, buffer = buffer.split(b"\n")
        yield from whole
        if len(buffer) > _LINE:
            raise _ApplianceFailed("a line without end")


def _check_room(paths: Sequence[Path]) -> None:
    """Raises UserError if a disk of the appliance is on a full disk of this machine."""
    full = [str(place) for place, is_full in full_disks(paths).items() if is_full]
    if full:
        raise UserError(f"{' or '.join(full)}: cannot be written: the disk is full", f"see: df -h {shlex.join(full)}")


def _said(work: Path) -> str:
    """The end of its console's and QEMU's output."""
    texts = []
    for name in ("console", "qemu.log"):
        with contextlib.suppress(OSError):
            texts.append((work / name).read_bytes()[-_TAIL:].decode(errors="replace").replace("\r\n", "\n").strip())
    return printable(_NEWLINE.join(filter(None, texts)), _NEWLINE)
