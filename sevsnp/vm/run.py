"""Running a measured guest in the foreground: what run_sev_snp_* and a host bundle's ./run have in common."""

import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.vm.config import Launch, read_vm_config
from sevsnp.vm.fixed import check_fixed
from sevsnp.vm.platforms import choose, running
from sevsnp.vm.qemu import RunOptions, check_files, check_options
from sevsnp.vm.volume import on_copy

_NOISE = re.compile(r"warning: TCG doesn't support requested feature")


def with_disks(launch: Launch, places: Mapping[str, Path]) -> Launch:
    """The launch with its disks elsewhere (VERITY_IMAGE, VERITY_HASH_TREE), by role; the content must be the same."""
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
    platform: str,
    answers: Path,
    check: bool = True,
    limit: float | None = None,
    volume: Path | None = None,
) -> None:
    """Launch, and wait until the guest ends. Raises :class:`UserError` if QEMU fails or ``limit`` seconds pass.

    The guest writes to the disk luks.img in ``volume``; without, to a copy in ``options.state``, which stays there.
    """
    if check and launch.workflow != "luks":
        check_files(launch)
    check_options(options)
    if launch.workflow == "luks":
        options.state.mkdir(parents=True, exist_ok=True)
        launch = on_copy(launch, volume or options.state)
    chosen = choose(platform, launch, options.qemu, answers)
    if chosen.name == "snp" and launch.platform != "snp":
        raise UserError(
            "an emulated VM config cannot run on SNP hardware", "use the production one, or PLATFORM=emulated"
        )
    print(f"platform {chosen.name}: {chosen.reason}", flush=True)
    offers = "it waits for its disk key" if launch.workflow == "luks" else "evidence"
    print(f"ssh at 127.0.0.1:{options.ssh_port}, {offers} at 127.0.0.1:{options.attest_port}", flush=True)
    print(f"serial console in {options.serial_log}", flush=True)
    started = time.monotonic()
    all_of_it = f"all of it: {options.messages}"
    try:
        with running(chosen, launch, options) as process:
            code = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        raise UserError(f"the guest did not end in {limit:.0f} s") from None
    except UserError as error:
        raise UserError(f"{error.message}\n{messages(options)}".strip(), error.hint or all_of_it) from error
    if code:
        raise UserError(f"QEMU ended with exit code {code}\n{messages(options)}", all_of_it)
    print(f"the guest ended after {time.monotonic() - started:.0f} s", flush=True)


def messages(options: RunOptions) -> str:
    """The end of what QEMU said, without what every emulated EPYC provokes."""
    lines = options.messages.read_text(errors="replace").splitlines() if options.messages.exists() else []
    return "\n".join(line for line in lines if not _NOISE.search(line))[-2000:]


def run_workflow(
    *,
    directory: Path,
    workflow: str,
    vm_config: Path | None,
    disks: Mapping[str, Path],
    asked: Mapping[str, int | str],
    platform: str,
    options: RunOptions,
    volume: Path | None = None,
) -> None:
    """`run_sev_snp_WORKFLOW`: the VM config that fits the platform, its files checked, in the foreground.

    ``volume`` is the directory with the disk that the guest writes to.
    """
    answers = options.state.parent / "platform.json"
    if vm_config is None:
        # Only where the guest runs is looked at the host; attestation follows the VM config it is given.
        production = read_vm_config(config_of(directory, workflow, "snp"))
        name = platform if platform != "auto" else choose("auto", production.launch, options.qemu, answers).name
        vm_config = config_of(directory, workflow, name)
    config = read_vm_config(vm_config)
    if config.launch.workflow != workflow:
        raise UserError(f"{vm_config}: found the {config.launch.workflow} workflow, expected {workflow}")
    check_fixed(config, asked)
    print(f"VM config {vm_config}", flush=True)
    launch = with_disks(config.launch, disks)
    run_guest(launch=launch, options=options, platform=platform, answers=answers, volume=volume)
