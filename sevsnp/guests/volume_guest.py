# SPDX-License-Identifier: Apache-2.0
"""`run_sev_snp_luks` and `attest_luks`: choose the volume and its files; then run the guest, or attest it."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from sevsnp.errors import UserError
from sevsnp.guests.attesting import luks
from sevsnp.host.run import another_guest, config_of, run_workflow
from sevsnp.host.state import Run, check_free, running
from sevsnp.host.volume import measured_header
from sevsnp.keys.luks_key import read_record
from sevsnp.qemu.process import check_options
from sevsnp.qemu.run_options import RunOptions
from sevsnp.vm_config.cmdline import read_cmdline
from sevsnp.vm_config.config import read_vm_config
from sevsnp.vm_config.fixed import check_fixed
from sevsnp.volumes.directory import HEADER, Source, Volume, choose, note_earlier, source_of, volumes

RUN_TASK, ATTEST = "run_sev_snp_luks", "attest_luks"


def run_volume(
    *,
    directory: Path,
    configs: Path,
    data_dir: Path,
    config_dir: Path,
    volume: str,
    earlier: Path,
    vm_config: Path | None,
    asked: Mapping[str, int | str],
    platform: str,
    options: RunOptions,
    name: str,
) -> None:
    """Run a guest on the chosen volume; what it writes stays in the volume's own directory.

    A missing volume directory is made from ``directory`` and ``configs``, the directories of setup_luks's own files. An
    existing one is updated from them if they belong to this volume and have changed. ``earlier`` is the disk that an
    earlier release wrote to. Raises :class:`UserError`, also if another guest uses the volume.
    """
    check_free(options.state, another_guest(RUN_TASK, name))
    source = source_of(directory, configs, vm_config)
    chosen = choose(data_dir, source, volume, RUN_TASK)
    if vm_config:
        _check_same(vm_config, chosen, source)
    if not chosen.exists:
        check_fixed(read_vm_config(config_of(source.configs, "luks", "snp")), asked)
        check_options(options)
        _check_first(chosen, source, config_dir, earlier)
        print(f"making {chosen.path}, which keeps what the guest writes", flush=True)
        chosen.make(source)
        for other in volumes(data_dir):
            if other != chosen:
                print(f"another volume, which is not booted now: ./doitw {RUN_TASK} VOLUME={other.uuid}", flush=True)
    with chosen.locked():
        if source.uuid == chosen.uuid and source.directory.resolve() != chosen.path.resolve():
            _bring_up_to_date(chosen, source)
        run_workflow(
            directory=chosen.path,
            workflow="luks",
            vm_config=vm_config,
            disks={},
            asked=asked,
            platform=platform,
            options=options,
            name=name,
            volume=chosen.path,
        )


def attest_volume(
    *,
    directory: Path,
    configs: Path,
    data_dir: Path,
    volume: str,
    vm_config: Path | None,
    platform: str,
    name: str,
    runs: Path,
    **more: Any,
) -> None:
    """Like :func:`sevsnp.guests.attesting.luks`, which documents the other parameters, for the chosen volume.

    The VM config is setup_luks's. The one in the volume's directory is used in three cases: the volume was given by
    name; setup_luks has made another volume since; a guest runs from that directory, unless setup_luks has since
    changed only the acceptance, not the launch.
    """
    source = source_of(directory, configs, vm_config)
    volume = volume or ("" if vm_config else _running_volume(data_dir, running(runs / name)))
    chosen = choose(data_dir, source, volume, ATTEST)
    if chosen.exists and (volume or source.uuid != chosen.uuid or not source.whole or _runs(chosen, source, platform)):
        source = chosen.source
    config = vm_config or config_of(source.configs, "luks", platform)
    print(f"volume {chosen.uuid}, VM config {config}", flush=True)
    again = f"./doitw {ATTEST}" + (f" VOLUME={volume}" if volume else "")
    luks(name=name, runs=runs, vm_config=config, header=source.directory / HEADER, again=again, **more)


def _running_volume(data_dir: Path, run: Run | None) -> str:
    """The volume of a guest that runs on this machine, if it is not the one that build/luks describes."""
    where = Path(run.vm_config).resolve().parent if run else Path()
    return where.name if where in [each.path.resolve() for each in volumes(data_dir)] else ""


def _runs(chosen: Volume, source: Source, platform: str) -> bool:
    """Whether a guest runs from the volume's directory with a launch that only the VM config there describes."""
    if not chosen.in_use:
        return False
    if source.digest() == chosen.taken():
        return True
    launched, made = (read_vm_config(config_of(place, "luks", platform)) for place in (chosen.path, source.configs))
    return launched.require_reference().launch_digest != made.require_reference().launch_digest


def _check_same(vm_config: Path, chosen: Volume, source: Source) -> None:
    header = (chosen.path if chosen.exists else source.directory) / HEADER
    _, measured = measured_header(read_cmdline(read_vm_config(vm_config).launch.cmdline.path))
    if hashlib.sha256(header.read_bytes()).hexdigest() != measured:
        raise UserError(
            f"{vm_config}: measures the header of another volume than {chosen.uuid}",
            "give its volume with VOLUME=…, or leave VM_CONFIG out",
        )


def _check_first(chosen: Volume, source: Source, config_dir: Path, earlier: Path) -> None:
    """Before a fresh copy is booted: refuse it, or warn, if a guest has written to an earlier copy."""
    note = note_earlier(earlier, chosen.path.parents[1])
    if chosen.uuid in note:
        raise UserError(f"{earlier}: the disk of this volume, written under an earlier release",
                        f"go on with it: ./doitw adopt_luks IMAGE={quote(str(earlier))}")  # fmt: skip
    if note:
        print(note, flush=True)
    generation = 0
    # A user who only runs a guest here may have no record of it.
    with contextlib.suppress(UserError):
        generation = read_record(config_dir, source.uuid).generation
    if generation:
        print(
            f"note: volume {chosen.uuid} was booted {generation} times from another copy of its disk, and "
            f"{ATTEST} refuses an older one; go on with that copy: ./doitw adopt_luks IMAGE=… — "
            "or, if it is lost, make a new volume: ./doitw forget _luks_image, then ./doitw setup_luks",
            flush=True,
        )


def _bring_up_to_date(chosen: Volume, source: Source) -> None:
    if not source.whole or source.digest() == chosen.taken():
        return
    try:
        if chosen.refresh(source, taken=source.digest()):
            print(f"volume {chosen.uuid}: boots with the new files of {source.configs}", flush=True)
    except UserError as error:
        print(f"volume {chosen.uuid}: boots as before, because {source.configs} is not up to date: {error}", flush=True)
