# SPDX-License-Identifier: Apache-2.0
"""Runs a measured guest in the foreground: the common part of run_sev_snp_* and a host bundle's ./run."""

import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.host.console import SWITCHING, WAITING, boot_failure, read_console
from sevsnp.host.session import Told, session
from sevsnp.host.state import Run, check_free
from sevsnp.host.volume import on_copy
from sevsnp.qemu.platforms import Platform, choose, running
from sevsnp.qemu.process import check_files, check_options
from sevsnp.qemu.run_options import RunOptions
from sevsnp.vm_config.config import Launch, read_vm_config
from sevsnp.vm_config.fixed import check_fixed


def with_disks(launch: Launch, places: Mapping[str, Path]) -> Launch:
    """The launch with other paths for its disks (VERITY_IMAGE, VERITY_HASH_TREE), by role; same content required."""
    disks = tuple(disk._replace(path=places.get(disk.role, disk.path).resolve()) for disk in launch.disks)
    return replace(launch, disks=disks)


def config_of(directory: Path, workflow: str, platform: str) -> Path:
    """The VM config of a workflow for a platform, in the directory that its setup task writes."""
    suffix = ".emulated.toml" if platform == "emulated" else ".toml"
    return directory / f"vm-config-{workflow}{suffix}"


def run_guest(
    *,
    launch: Launch,
    options: RunOptions,
    platform: str | Platform,
    probe_cache: Path,
    told: Told,
    source: Path,
    check: bool = True,
    limit: float | None = None,
    volume: Path | None = None,
) -> None:
    """Launch, and wait until the guest ends. Raises :class:`UserError` if QEMU fails or ``limit`` seconds pass.

    ``platform`` is a setting's value, or a platform chosen before, whose reason is then printed. ``source`` is the VM
    config of ``launch``. A guest that writes to a disk does so in ``volume``, a directory; without ``volume``, to a
    copy in ``options.state``, which stays there.
    """
    check_free(options.state, told.hint)
    if check and not launch.written:
        check_files(launch)
    options = check_options(options)
    chosen = platform if isinstance(platform, Platform) else choose(platform, launch, options.qemu, probe_cache)
    if chosen.name == "snp" and launch.platform != "snp":
        raise UserError(
            "an emulated VM config cannot run on SNP hardware", "use the production one, or PLATFORM=emulated"
        )
    print(f"platform {chosen.name}: {chosen.reason}", flush=True)
    run = Run(launch.workflow, chosen.name, str(source), options.ssh_port, options.attest_port)
    started = time.monotonic()
    with session(options, run, told) as options:
        if launch.written:
            launch = on_copy(launch, volume or options.state)
        try:
            with running(chosen, launch, options) as process:
                code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            raise UserError(f"the guest did not end in {limit:.0f} s") from None
        if code:
            raise UserError(f"QEMU ended with exit code {code}")
        check_boot(options)
    print(f"the guest ended after {time.monotonic() - started:.0f} s", flush=True)


def check_boot(options: RunOptions) -> None:
    """Raises :class:`UserError` with the line if the guest that has ended did so in its boot, or with a kernel panic.

    QEMU's exit code does not show it: the guest has ended itself.
    """
    if line := boot_failure(read_console(options.serial_log)):
        raise UserError(f"the guest failed: {line}", f"see the console log: {options.serial_log}")


def another_guest(task: str, name: str) -> str:
    """A hint how to run a second guest beside the guest ``name``, which ``task`` started."""
    return f"run another one: ./doitw {task} NAME=second; or end this one: ./doitw stop NAME={name}"


def words_of(name: str, workflow: str, platform: str) -> str:
    """The settings that name a guest in an attest command, each with a space before it."""
    named = "" if name == workflow else f" NAME={name}"
    return named + (" PLATFORM=emulated" if platform == "emulated" else "")


def told_of(launch: Launch, words: str, *, hint: str) -> Told:
    """The messages for the user of a measured guest.

    ``words`` are the settings of the attest command, and ``hint`` says how to run another guest.
    """
    return Told(hint, f"./doitw attest_{launch.workflow}{words}", WAITING if launch.written else SWITCHING)


def chosen_config(directory: Path, workflow: str, platform: str, options: RunOptions) -> Path:
    """The VM config of a workflow for the platform on which the guest will run."""
    # The host is examined only where the guest runs; attestation uses the VM config that it is given.
    production = read_vm_config(config_of(directory, workflow, "snp"))
    if platform == "auto":
        platform = choose("auto", production.launch, options.qemu, options.state.parent / "platform.json").name
    return config_of(directory, workflow, platform)


def run_workflow(
    *,
    directory: Path,
    workflow: str,
    vm_config: Path | None,
    disks: Mapping[str, Path],
    asked: Mapping[str, int | str],
    platform: str,
    options: RunOptions,
    name: str,
    volume: Path | None = None,
) -> None:
    """`run_sev_snp_WORKFLOW`: choose the VM config for the platform, check its files, run the guest in the foreground.

    ``name`` is the guest's name and that of its state directory; ``volume`` is the directory with the disk that it
    writes to.
    """
    probe_cache = options.state.parent / "platform.json"
    vm_config = vm_config or chosen_config(directory, workflow, platform, options)
    config = read_vm_config(vm_config)
    if config.launch.workflow != workflow:
        raise UserError(f"{vm_config}: found the {config.launch.workflow} workflow, expected {workflow}")
    check_fixed(config, asked)
    print(f"VM config {vm_config}", flush=True)
    launch = with_disks(config.launch, disks)
    words = words_of(name, workflow, launch.platform)
    told = told_of(launch, words, hint=another_guest(f"run_sev_snp_{workflow}", name))
    run_guest(
        launch=launch,
        options=options,
        platform=platform,
        probe_cache=probe_cache,
        told=told,
        source=vm_config,
        volume=volume,
    )
