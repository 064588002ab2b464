# SPDX-License-Identifier: Apache-2.0
"""Run both workflows unattended, with host and owner separate as on two machines, and record what each step proved."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sevsnp.e2e.guest import Attempt
from sevsnp.e2e.luks import run_luks
from sevsnp.e2e.stages import Stages
from sevsnp.e2e.verity import run_verity
from sevsnp.errors import UserError
from sevsnp.host.run import config_of
from sevsnp.pipeline.reporter import remarks, timings
from sevsnp.qemu.platforms import choose
from sevsnp.system.command import run, temporary_directory
from sevsnp.system.files import write_atomic
from sevsnp.vm_config.config import VmConfig, read_vm_config


def check_no_data(config: VmConfig) -> None:
    """Refuse a verified guest with a data disk: an emulated guest would get the key of the user's data."""
    if config.launch.written:
        raise UserError(
            f"{config.source}: its guest has a data disk, whose key is for attest_verity alone",
            "run it for a guest without one: ./doitw e2e DATA_SIZE=0",
        )


def e2e(
    *,
    bundle: Path,
    luks_bundle: Path,
    directory: Path,
    luks_directory: Path,
    qemu: Path,
    platform: str,
    memory: int,
    probe_cache: Path,
    identity: Path,
    user: str,
    template: Path,
    output: Path,
    results: Path,
    luks: Mapping[str, Any],
) -> None:
    """Run both workflows end to end and write what the runs have shown to ``results`` (JSON).

    The host side runs in a directory that holds only a bundle. ``output`` gets a directory for each workflow, with its
    logs, evidence and verdict. ``luks`` has the further parameters of :func:`sevsnp.e2e.luks.run_luks`.
    """
    # A failed run must not leave the results of an earlier successful run.
    results.unlink(missing_ok=True)
    check_no_data(read_vm_config(config_of(directory, "verity", "snp")))
    stages = Stages()
    for name, seconds in timings.items():
        stages.add(name, seconds, remarks.get(name, "built"))
    name = choose(platform, read_vm_config(config_of(directory, "verity", "snp")).launch, qemu, probe_cache).name
    workflows: dict[str, dict[str, Any]] = {}
    for workflow, source, configs in (("luks", luks_bundle, luks_directory), ("verity", bundle, directory)):
        there = output / workflow
        shutil.rmtree(there, ignore_errors=True)
        with temporary_directory("sevsnp-host-") as host:
            copy = host / "bundle"
            with stages.stage(f"{workflow}: hand the bundle to the host") as shown:
                run(["cp", "-r", "--reflink=auto", "--sparse=always", "--", source, copy])
                shown.append("no key and no policy in it")
            config_path = config_of(configs, workflow, name)
            attempt = Attempt(stages, copy, config_path, qemu, name, memory, identity, user, template, there)
            try:
                workflows[workflow] = run_verity(attempt) if workflow == "verity" else run_luks(attempt, **luks)
            except UserError as error:
                raise UserError(f"{error.message}\nlogs and evidence: {there}", error.hint) from error
    taken = {stage: round(seconds, 3) for stage, seconds, _ in stages.rows}
    document = {"platform": name, "workflows": workflows, "timings": taken}
    write_atomic(results, json.dumps(document, indent=2) + "\n")
    stages.table(f"end to end, platform {name}" + (" (EMULATED – NOT CONFIDENTIAL)" if name == "emulated" else ""))
