# SPDX-License-Identifier: Apache-2.0
"""The platform `snp`: QEMU with KVM and sev-snp-guest on a host that has AMD SEV-SNP."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.qemu.confine import Access
from sevsnp.qemu.process import guest_access, start, stop
from sevsnp.qemu.qmp import Qmp
from sevsnp.qemu.run_options import RunOptions
from sevsnp.qemu.snp_options import snp_command
from sevsnp.system.files import short_name
from sevsnp.vm_config.config import Launch

# Two values that QEMU must be given although the processor has them; used if QEMU cannot report them.
_CBITPOS, _REDUCED_PHYS_BITS = 51, 1


@contextlib.contextmanager
def running(launch: Launch, options: RunOptions) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the guest and give its QEMU process, which has ended when the context ends."""
    if launch.platform != "snp":
        raise UserError(
            "this VM config is for the emulated platform: its guest answers with emulated evidence",
            "on SNP hardware use the production VM config, or PLATFORM=emulated",
        )
    with tempfile.TemporaryDirectory(prefix="sevsnp-") as work, short_name(Path(work)) as sockets:
        cbitpos, reduced = capabilities(options.qemu, Path(work))
        process = start(
            options.qemu,
            snp_command(launch, options, sockets / "qmp", cbitpos, reduced),
            guest_access(launch, options, Path(work)),
            terminal=options.terminal,
            messages=options.messages,
            sockets=sockets,
            inherited=options.inherited,
        )
        try:
            yield process
        finally:
            stop(process)


def capabilities(qemu: Path, work: Path) -> tuple[int, int]:
    """The C-bit's position and the physical address bits that encryption takes, as QEMU reads them from this host."""
    with short_name(work) as sockets:
        arguments = [
            *("-machine", "none,accel=kvm"),
            "-nodefaults",
            *("-display", "none"),
            *("-qmp", f"unix:{sockets / 'probe'},server=on,wait=off"),
        ]
        access = Access(scratch=(str(work),))
        process = start(qemu, arguments, access, terminal=False, messages=work / "probe.log", sockets=sockets)
        try:
            with Qmp(sockets / "probe", timeout=10) as qmp:
                found = qmp.command("query-sev-capabilities")
            return int(found["cbitpos"]), int(found["reduced-phys-bits"])
        except (UserError, KeyError):
            return _CBITPOS, _REDUCED_PHYS_BITS
        finally:
            stop(process)
