# SPDX-License-Identifier: Apache-2.0
"""The plain guest: its own disk, not verified. For trials, and for comparison with the measured guests."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from sevsnp.errors import UserError
from sevsnp.firmware.gate import check_launch_firmware
from sevsnp.host.run import another_guest, check_boot
from sevsnp.host.session import Told, session
from sevsnp.host.state import Run, check_free
from sevsnp.images.guest_disk import ROOT_WORDS
from sevsnp.keys.ssh_config import write_ssh_config
from sevsnp.qemu.blocks import BlockFile
from sevsnp.qemu.disk_format import DiskFormat
from sevsnp.qemu.disk_record import format_of
from sevsnp.qemu.platforms import Platform, choose, running
from sevsnp.qemu.process import (
    check_options,
    disk_device,
    emulated_arguments,
    guest_access,
    machine_arguments,
    start,
    stop,
)
from sevsnp.qemu.run_options import RunOptions
from sevsnp.qemu.snp import capabilities
from sevsnp.qemu.snp_options import snp_arguments
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.cmdline import build_cmdline
from sevsnp.vm_config.config import BANNER, File, Launch

Mode = Literal["plain", "snp", "direct"]
# The console has this text as soon as the firmware no longer clears the screen.
_KERNEL = "Linux version"


def run_plain(
    *,
    mode: Mode,
    image: Path,
    own_image: bool,
    cloud: bool,
    firmware: Path,
    kernel: Path,
    initrd: Path,
    launch: Mapping[str, Any],
    platform: str,
    options: RunOptions,
    identity: Path,
    template: Path,
    name: str,
    limit: float | None = None,
) -> None:
    """Run a disk image in the foreground until the guest ends.

    ``plain`` boots the disk's own boot loader without SEV-SNP, ``snp`` with it. ``direct`` boots ``kernel`` and
    ``initrd`` with their hashes in the launch digest, and mounts the root of create_new_vm's disk. Changes to our own
    image are discarded at the end. Changes to a user's IMAGE are kept, and so is its format at its first use.
    ``identity`` is the user's private key for the account ``user`` of our own image, and ``template`` that of the ssh
    configuration for it, which says that the guest is not attested. ``name`` is the guest's name.
    ``cloud``: our own image is that of a cloud image, after run_setup; it has no direct boot, since its root has
    another UUID, and the modules of another kernel. Raises :class:`UserError`.
    """
    if cloud and own_image and mode == "direct":
        raise UserError(
            "GUEST_FROM=cloud-image: a direct boot mounts the root of create_new_vm's Debian, not a cloud image's",
            "boot it by its own boot loader: ./doitw run_sev_snp GUEST_FROM=cloud-image",
        )
    another = another_guest("run_guest", name)
    check_free(options.state, another)
    options = check_options(options)
    made = "make one with: ./doitw create_new_vm"
    if cloud:
        made = "make one with: ./doitw run_setup"
    for path, hint in (
        (image, made if own_image else "give another one: IMAGE=FILE"),
        (kernel, "run: ./doitw unpack_kernel"),
        (firmware, "run: ./doitw _firmware"),
    ):
        if not path.is_file():
            raise UserError(f"{path}: no such file", hint)
    # Beside the directory of the guest's logs, not in it: no guest and no guest's QEMU can write there.
    form = DiskFormat.QCOW2 if own_image else format_of(image, options.state.parent / "disk-formats.json")
    ssh_config = options.state / "ssh_config"
    login = f"ssh -F {quote(str(ssh_config))} guest" if own_image else ""
    with tempfile.TemporaryDirectory(prefix="sevsnp-") as work:
        overlay = Path(work) / "changes.qcow2" if own_image else None
        options = replace(options, disks=(BlockFile("root", image, form, overlay=overlay),))
        cmdline = Path(work) / "cmdline"
        cmdline.write_text(build_cmdline(ROOT_WORDS))
        guest = plain_launch(launch, firmware, kernel, initrd, cmdline)
        if mode == "direct":
            check_launch_firmware(guest)
        asked = "emulated" if mode == "plain" else platform
        chosen = choose(asked, guest, options.qemu, options.state.parent / "platform.json")
        run = Run("plain", chosen.name, "", options.ssh_port, options.attest_port)
        with session(options, run, Told(another, login, _KERNEL)) as options:
            if own_image:
                write_ssh_config(
                    ssh_config,
                    template=template,
                    host="127.0.0.1",
                    port=options.ssh_port,
                    user="user",
                    identity=identity,
                    known_hosts=options.state / "known_hosts",
                    vouched=False,
                )
            if mode == "direct":
                with running(chosen, guest, options) as process:
                    code = process.wait(timeout=limit)
            else:
                code = _from_disk(chosen, guest, options, Path(work), limit)
            if code:
                raise UserError(f"QEMU ended with exit code {code}")
            check_boot(options)


def plain_launch(values: Mapping[str, Any], firmware: Path, kernel: Path, initrd: Path, cmdline: Path) -> Launch:
    """The launch of a plain guest; ``values`` are the settings that it reads, by name."""

    def file(path: Path) -> File:
        return File(path.resolve(), sha256_file(path))

    return Launch(
        workflow="plain",
        platform="snp",
        product=values["PRODUCT"],
        vcpus=values["CPUS"],
        vcpu_model=values["CPU_MODEL"],
        guest_policy=values["POLICY"],
        guest_features=values["GUEST_FEATURES"],
        host_data=bytes(32),
        firmware=file(firmware),
        kernel=file(kernel),
        initrd=file(initrd),
        cmdline=file(cmdline),
        disks=(),
        firmware_reason=values["FIRMWARE_REASON"],
    )


def _from_disk(chosen: Platform, guest: Launch, options: RunOptions, work: Path, limit: float | None) -> int:
    """Boot through the firmware and the disk's own boot loader, and return QEMU's exit code."""
    with started_from_disk(chosen, guest, options, work) as process:
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            raise UserError(f"the guest did not end in {limit:.0f} s") from None


@contextlib.contextmanager
def started_from_disk(
    chosen: Platform, guest: Launch, options: RunOptions, work: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """QEMU with a guest that boots through the firmware and the disk's own boot loader; it is ended with the context.

    ``work`` is a directory for QEMU's own files.
    """
    if chosen.name == "snp":
        machine = snp_arguments(guest, options.memory, *capabilities(options.qemu, work), kernel_hashes=False)
    else:
        print(f"{BANNER} ({chosen.reason}; {chosen.accelerator})", flush=True)
        machine = emulated_arguments(guest.vcpu_model, options.memory, chosen.accelerator)
    arguments = [*machine, *machine_arguments(guest.vcpus, options), "-bios", str(guest.firmware.path)]
    for disk in options.disks:
        arguments += disk_device(disk)
    access = guest_access(guest, options, work)
    arguments += options.extra
    process = start(
        options.qemu,
        arguments,
        access,
        terminal=options.terminal,
        messages=options.messages,
        inherited=options.inherited,
    )
    try:
        yield process
    finally:
        stop(process)
