# SPDX-License-Identifier: Apache-2.0
"""A machine that is watched until its firmware has ended, with a host's additions.

Each offer of the host prints its own mark when it runs, so one start of the machine tries many offers at once. The
firmware has ended when the kernel prints its first words, when the firmware reports that there is nothing to start, or
when the vCPU loops at one place.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sevsnp.e2e.guest import free_port
from sevsnp.firmware.known import OURS_FROM_SOURCE
from sevsnp.measurement.launch_digest import KernelHashes
from sevsnp.measurement.ovmf import Ovmf
from sevsnp.qemu.confine import Access
from sevsnp.qemu.process import emulated_arguments, escaped, machine_arguments, start, stop
from sevsnp.qemu.run_options import RunOptions
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.cmdline import read_cmdline
from sevsnp.vm_config.config import Launch, VmConfig
from tests.conftest import Built
from tests.support.configs import file, honest
from tests.support.gdb_remote import Gdb
from tests.support.hands import Hands, LoopWatch, hands_on, sockets
from tests.support.harness import BOOT_SECONDS, Guest

# The kernel's first words, and the firmware's last ones.
KERNEL = "EFI stub"
PANIC = "Kernel panic"  # the only such words of a kernel without an initrd
NOTHING = "No bootable option was found"
DEAD_LOOP = "dead loop"
MEMORY = 512 << 20
# Bytes. With so little memory the kernel cannot unpack itself, and returns to the firmware.
LITTLE = 160 << 20

# The files of the launch that QEMU is given; the table of hashes is the genuine one in any case.
FILES = ("kernel", "initrd", "cmdline")

# AmdSev's work area, whose first byte is the guest's type (1: AMD SEV) for all code after the reset vector
# (OvmfPkg/AmdSev: 0xB000 bytes behind the start of its memory at 8 MiB). Without SEV the byte is 0.
_WORK_AREA = 0x80B000
_SEV = b"\1"
# From the first driver on, the firmware runs in the machine's memory above this; before, in its image below 4 GiB.
_DRIVERS = (16 << 20, 0xE0000000)
# The firmware then gives cards no aperture above 4 GiB.
NO_APERTURE = ("-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string=0")


def stock_firmware(built: Built) -> Path:
    """The pinned build from which ours is made, unchanged."""
    return built.build / "snp-release/usr/share/ovmf/OVMF.amdsev.fd"


def ordinary_firmware(built: Built) -> Path:
    """The build for machines that boot from disks and networks; it checks no hashes."""
    return built.build / "snp-release/usr/share/ovmf/OVMF.fd"


def our_firmware(built: Built) -> Path:
    """The firmware of the built guest; with pytest's --firmware=source the one from source."""
    return built.config("emulated").launch.firmware.path


def from_source(built: Built) -> bool:
    return sha256_file(our_firmware(built)) == OURS_FROM_SOURCE


def end_with_a_file(built: Built) -> str:
    """How our firmware ends if the host adds a file beside the kernel, and the kernel is the genuine one.

    The one from Debian's build passes the file over. The one from source stops.
    """
    return DEAD_LOOP if from_source(built) else KERNEL


def with_firmware(config: VmConfig, firmware: Path, directory: Path) -> VmConfig:
    """The VM config with another firmware and the launch digest for it, in ``directory``."""
    return honest(config, directory, firmware=file(firmware))


@dataclass(frozen=True)
class NoHashes(KernelHashes):
    """No table: the memory content if QEMU puts no table there."""

    def table(self) -> bytes:
        return bytes(len(super().table()))


def added_file(name: str, path: Path) -> tuple[str, ...]:
    """QEMU's options for one more file of fw_cfg."""
    return ("-fw_cfg", f"name={name},file={escaped(path)}")


@dataclass(frozen=True)
class Watched:
    """A machine whose firmware runs."""

    guest: Guest
    hands: Hands

    def wait_done(self, seconds: float = BOOT_SECONDS) -> str:
        """How the firmware ended: KERNEL, NOTHING or DEAD_LOOP."""
        deadline = time.monotonic() + seconds
        watch = LoopWatch(self.hands, self.guest.process.pid)
        while time.monotonic() < deadline:
            log = self.guest.log()
            for text, end in ((KERNEL, KERNEL), (PANIC, KERNEL), (NOTHING, NOTHING)):
                if text in log:
                    return end
            assert self.guest.process.poll() is None, f"QEMU ended: {self.guest.options.messages.read_text()}"
            if watch.is_looping():
                return DEAD_LOOP
            time.sleep(0.05)
        raise AssertionError(f"the firmware is not done in {seconds:.0f} s:\n{self.guest.log()[-3000:]}")


def counted(arguments: list[str]) -> list[str]:
    """QEMU's ``arguments`` with a guest clock that counts the guest's instructions, 8 ns each.

    The firmware gives each device a time limit. A clock that follows this machine's would let the limit pass while the
    machine is busy with other work, and the firmware would not start that device. Such a guest takes 1.5 times the
    processor time.
    """
    return [one.replace("thread=multi", "thread=single") for one in arguments] + ["-icount", "shift=3,sleep=off"]


@contextlib.contextmanager
def watched(
    built: Built,
    firmware: Path,
    state: Path,
    extra: tuple[str, ...] = (),
    *,
    files: tuple[str, ...] = FILES,
    launch: Launch | None = None,
    hashes: KernelHashes | None = None,
    guest_type_sev: bool = False,
    memory: int = MEMORY,
    clock_counts: bool = False,
) -> Iterator[Watched]:
    """Start the verity guest's machine, or that of ``launch``, with ``firmware`` and the host's options ``extra``.

    ``files`` are the files of the launch that QEMU is given; ``hashes`` replaces the genuine table; ``guest_type_sev``
    makes the firmware's drivers believe that they run under SEV; ``memory`` is in bytes; ``clock_counts`` is for tests
    that expect every disk to be found (see ``counted``).
    """
    state.mkdir(parents=True, exist_ok=True)
    launch = launch or built.config("emulated").launch
    machine = emulated_arguments(launch.vcpu_model, memory, "tcg")
    options = RunOptions(
        qemu=built.qemu, memory=memory, ssh_port=free_port(), attest_port=free_port(), state=state, restricted=True
    )
    with sockets() as where:
        arguments = [
            *(counted(machine) if clock_counts else machine),
            *_table(firmware, hashes or KernelHashes.of(launch), state),
            *machine_arguments(launch.vcpus, options),
            *("-bios", str(firmware)),
            *_files(launch, files),
            *where.arguments,
            *extra,
        ]
        if guest_type_sev:
            arguments += ["-S", "-gdb", f"unix:{where.directory}/gdb,server=on,wait=off"]
        process = start(options.qemu, arguments, Access(everything=True), terminal=False, messages=options.messages)
        try:
            with contextlib.ExitStack() as stack:
                hands = stack.enter_context(hands_on(where))
                if guest_type_sev:
                    debugger = stack.enter_context(Gdb(where.directory / "gdb"))
                    debugger.run_until_access(_WORK_AREA, *_DRIVERS)
                    debugger.write(_WORK_AREA, _SEV)
                    debugger.go_on()
                yield Watched(Guest(process, options), hands)
        finally:
            stop(process)


def _table(firmware: Path, hashes: KernelHashes, state: Path) -> tuple[str, ...]:
    """Put the table of hashes into memory, if the firmware has a place for it."""
    address = Ovmf.read(firmware).hash_table_address
    if not address:
        return ()
    table = state / "table"
    table.write_bytes(hashes.table())
    return ("-device", f"loader,file={escaped(table)},addr={address:#x},force-raw=on")


def _files(launch: Launch, files: tuple[str, ...]) -> list[str]:
    said = {
        "kernel": ("-kernel", str(launch.kernel.path)),
        "initrd": ("-initrd", str(launch.initrd.path)),
        "cmdline": ("-append", read_cmdline(launch.cmdline.path)),
    }
    return [word for name in files for word in said[name]]
