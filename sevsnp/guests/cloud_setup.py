# SPDX-License-Identifier: Apache-2.0
"""`run_setup`: the one boot of a cloud image with its seed, until cloud-init has done its work.

Afterwards cloud-init is switched off in the guest: it would take orders from whatever disk or service the host offers.
"""

import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from sevsnp.errors import UserError
from sevsnp.guests.local import sshd_answers
from sevsnp.host.console import boot_stage, printable_lines, read_console
from sevsnp.host.plain import plain_launch, started_from_disk
from sevsnp.host.run import another_guest
from sevsnp.host.session import Told, session
from sevsnp.host.state import Run, check_free
from sevsnp.images.cloud_guest import USER
from sevsnp.images.guest_disk import ROOT_WORDS
from sevsnp.keys.ssh_config import write_ssh_config
from sevsnp.qemu.blocks import BlockFile
from sevsnp.qemu.disk_format import DiskFormat
from sevsnp.qemu.platforms import choose
from sevsnp.qemu.process import check_options
from sevsnp.qemu.run_options import RunOptions
from sevsnp.system import progress
from sevsnp.system.command import run
from sevsnp.system.copying import copy_file
from sevsnp.system.files import scratch_directory
from sevsnp.vm_config.cmdline import build_cmdline

# Under QEMU's own emulation, some images take ten minutes.
_SECONDS = 1800.0
_END_SECONDS = 300.0
_TRY_SECONDS = 60.0
# cloud-init status: 0 done, 2 done with recoverable errors, 1 failed (cloud-init's documentation, "CLI commands").
_CODE = "exit code of cloud-init: "
_DONE = {"0": "done", "2": "done, with warnings"}
_STATUS = f"cloud-init status --wait --long; echo '{_CODE}'$?"
_END = "sudo touch /etc/cloud/cloud-init.disabled && sudo systemctl poweroff"


def run_setup(
    *,
    disk: Path,
    seed: Path,
    output: Path,
    firmware: Path,
    kernel: Path,
    initrd: Path,
    launch: Mapping[str, Any],
    options: RunOptions,
    identity: Path,
    template: Path,
    name: str,
    limit: float = _SECONDS,
) -> None:
    """Boot a copy of ``disk`` with ``seed``, wait until cloud-init is done, and keep the copy as ``output``.

    The guest's network reaches nothing but this machine's ssh. ``launch`` are the settings of a plain launch,
    ``identity`` the user's private key, ``limit`` seconds for cloud-init. Raises UserError if cloud-init fails or does
    not end in time; ``output`` then stays as it was.
    """
    another = another_guest("run_setup", name)
    check_free(options.state, another)
    for path in (disk, seed):
        if not path.is_file():
            raise UserError(
                f"{path}: no such file", "make it with: ./doitw create_new_vm GUEST_FROM=cloud-image CLOUD_IMAGE=FILE"
            )
    options = check_options(replace(options, restricted=True, terminal=False))
    config = options.state / "ssh_config"
    with scratch_directory(output) as scratch, tempfile.TemporaryDirectory(prefix="sevsnp-") as work:
        copy = scratch / output.name
        copy_file(disk, copy, 0o644)
        disks = (
            BlockFile("root", copy, DiskFormat.QCOW2),
            BlockFile("seed", seed, DiskFormat.RAW, read_only=True),
        )
        cmdline = Path(work) / "cmdline"
        cmdline.write_text(build_cmdline(ROOT_WORDS))
        guest = plain_launch(launch, firmware, kernel, initrd, cmdline)
        chosen = choose("emulated", guest, options.qemu, options.state.parent / "platform.json")
        noted = Run("plain", chosen.name, "", options.ssh_port, options.attest_port)
        with session(replace(options, disks=disks), noted, Told(another, "", "")) as started:
            write_ssh_config(
                config,
                template=template,
                host="127.0.0.1",
                port=options.ssh_port,
                user=USER,
                identity=identity,
                known_hosts=options.state / "known_hosts",
                vouched=False,
            )
            with started_from_disk(chosen, guest, started, Path(work)) as process:
                status = _set_up(process, config, options, limit)
        copy.replace(output)
    print(f"cloud-init is {status}; {output} is the guest's disk, in which cloud-init is switched off")
    print("next: ./doitw run_guest GUEST_FROM=cloud-image DETACH=yes")
    print(f"or, for a guest that can be verified: ./doitw setup_verity IMAGE={quote(str(output))}")


def _set_up(process: "subprocess.Popen[bytes]", config: Path, options: RunOptions, limit: float) -> str:
    """Wait for cloud-init, have the guest power off, and return how cloud-init ended."""
    deadline = time.monotonic() + limit
    log = options.serial_log

    def wait(what: str) -> None:
        if process.poll() is not None:
            raise _failed(f"the guest ended before cloud-init was done (QEMU's exit code {process.returncode})", log)
        if time.monotonic() > deadline:
            raise _failed(f"cloud-init was not done in {limit:.0f} s: {what}", log)
        progress.step(f"{boot_stage(read_console(log))}; {what}")
        time.sleep(1)

    while not sshd_answers("127.0.0.1", options.ssh_port):
        wait("waiting for sshd")
    said = None
    while said is None:
        said = _asked(config, _STATUS, max(_TRY_SECONDS, deadline - time.monotonic()))
        if said is None:
            # cloud-init makes new host keys, in some images after sshd has started with others.
            (options.state / "known_hosts").unlink(missing_ok=True)
            wait(f"sshd does not let {USER} in yet")
    code = said.rpartition(_CODE)[2].strip()
    if code not in _DONE:
        raise _failed(f"cloud-init failed:\n{said}", log)
    progress.step("the guest powers off")
    # The connection may end before ssh has the exit code.
    _asked(config, _END, _TRY_SECONDS)
    try:
        ended = process.wait(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        raise _failed(f"the guest did not power off in {_END_SECONDS:.0f} s", log) from None
    if ended:
        raise _failed(f"QEMU ended with exit code {ended}", log)
    return _DONE[code]


def _asked(config: Path, command: str, seconds: float) -> str | None:
    """What ``command`` prints in the guest; None if it did not run to its end."""
    alive = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=30")
    try:
        said = run(["ssh", "-F", config, *alive, "guest", command], timeout=seconds)
    except UserError:
        return None
    return "\n".join(printable_lines(said.decode(errors="replace")[-3000:]))


def _failed(what: str, log: Path) -> UserError:
    lines = [line for line in printable_lines(read_console(log)) if line.strip()]
    return UserError("\n".join([what, *lines[-8:]]), f"its console: {log}")
