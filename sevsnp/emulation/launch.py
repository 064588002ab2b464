# SPDX-License-Identifier: Apache-2.0
"""Launch a guest on the platform `emulated`: the same firmware, kernel, initramfs, command line and disks, without SNP.

On SNP hardware QEMU puts the table of kernel, initrd and command-line hashes into guest memory. Here QEMU's loader
device does it, and the real AmdSev firmware enforces the hashes in the same way. The guest is started paused, and its
launch digest is computed from the memory with which it really starts. EMULATED – NOT CONFIDENTIAL.
"""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sevsnp.emulation.measure import measure
from sevsnp.emulation.psp import EmulatedPsp
from sevsnp.emulation.service import PspService
from sevsnp.measurement.launch_digest import KernelHashes
from sevsnp.measurement.ovmf import Ovmf
from sevsnp.qemu.process import (
    common_arguments,
    emulated_arguments,
    escaped,
    guest_access,
    start,
    stop,
)
from sevsnp.qemu.qmp import Qmp
from sevsnp.qemu.run_options import RunOptions
from sevsnp.system.files import short_name
from sevsnp.vm_config.config import Launch

PORT_NAME = "org.openend2e.psp"
_PAGE = 4096


@contextlib.contextmanager
def running(
    launch: Launch, options: RunOptions, accelerator: str = "tcg", hashes: KernelHashes | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Start the guest and yield its QEMU process; the process ends with the context.

    For an emulated VM config, ``options.state`` gets the secure processor's root certificate (``ark.pem``) and the
    launch digest (``launch-digest.emulated.txt``). A production VM config starts too, but its guest has no evidence.
    An ID block for another guest than the one in memory ends the launch with :class:`UserError`, as on hardware.
    ``hashes`` replaces the table that QEMU would make: this simulates a host that lies about the files it loads.
    """
    with tempfile.TemporaryDirectory(prefix="sevsnp-") as name, short_name(Path(name)) as sockets:
        work = Path(name)
        firmware = Ovmf.read(launch.firmware.path)
        table = work / "table"
        table.write_bytes((hashes or KernelHashes.of(launch)).table())
        arguments = [
            *emulated_arguments(launch.vcpu_model, options.memory, accelerator),
            *("-device", f"loader,file={escaped(table)},addr={firmware.hash_table_address:#x},force-raw=on"),
            *common_arguments(launch, options, sockets / "qmp"),
            "-S",
        ]
        if launch.platform == "emulated":
            arguments += [
                *("-device", "virtio-serial-pci,disable-legacy=on,iommu_platform=on"),
                *("-chardev", f"socket,id=psp,path={sockets / 'psp'},server=on,wait=off"),
                *("-device", f"virtserialport,chardev=psp,name={PORT_NAME}"),
            ]
        process = start(
            options.qemu,
            arguments,
            guest_access(launch, options, work),
            terminal=options.terminal,
            messages=options.messages,
            sockets=sockets,
            inherited=options.inherited,
        )
        try:
            with contextlib.ExitStack() as stack:
                with Qmp(sockets / "qmp", alive=lambda: process.poll() is None) as qmp:
                    if launch.platform == "emulated":
                        digest = _measure(qmp, launch, work, firmware)
                        identity = EmulatedPsp.finish_launch(launch, digest)
                        psp = EmulatedPsp.create(options.state, launch.product)
                        (options.state / "launch-digest.emulated.txt").write_text(digest.hex() + "\n")
                        stack.enter_context(PspService(psp, launch, digest, sockets / "psp", identity))
                    qmp.command("cont")
                yield process
        finally:
            stop(process)


def _measure(qmp: Qmp, launch: Launch, work: Path, firmware: Ovmf) -> bytes:
    """The launch digest of the guest's memory before its first instruction."""
    regions = (("firmware", firmware.address, firmware.size), ("page", firmware.hash_page_address, _PAGE))
    for name, address, length in regions:
        qmp.command("pmemsave", val=address, size=length, filename=str(work / name))
    cpus = qmp.command("query-cpus-fast")
    return measure(
        (work / "firmware").read_bytes(),
        (work / "page").read_bytes(),
        vcpus=len(cpus),
        vcpu_model=launch.vcpu_model,
        guest_features=launch.guest_features,
    )
