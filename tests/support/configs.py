# SPDX-License-Identifier: Apache-2.0
"""VM configs of guests that are changed on purpose: complete and consistent, with the changed guest's launch digest."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sevsnp.measurement.launch_digest import launch_digest_of
from sevsnp.release.launch import with_acpi
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import File, VmConfig, render_vm_config
from tests.support.replacing import replaced_once


def file(path: Path) -> File:
    return File(path, sha256_file(path))


def honest(config: VmConfig, directory: Path, **changes: Any) -> VmConfig:
    """``config`` with ``changes`` to its launch, written into ``directory``, which is created."""
    directory.mkdir(parents=True, exist_ok=True)
    launch = replace(config.launch, **changes)
    reference = replace(config.require_reference(), launch_digest=launch_digest_of(launch))
    if launch.kernel != config.launch.kernel:
        reference = replace(reference, stage=None, acpi="acpi=off" not in launch.cmdline.path.read_text().split())
    made = VmConfig(directory / "vm-config.toml", launch, reference)
    made.source.write_text(render_vm_config(made))
    return made


def without_stage(build: Path, config: VmConfig, directory: Path, *, acpi: bool, **changes: Any) -> VmConfig:
    """``config`` as ACPI=on makes it (``acpi``), with the host's tables, or as ACPI=off does; and with ``changes``."""
    launch = replace(config.launch, **changes)
    directory.mkdir(parents=True, exist_ok=True)
    cmdline = directory / "cmdline.without-stage"
    cmdline.write_text(with_acpi(launch.cmdline.path.read_text(), acpi))
    return honest(config, directory, **{**changes, "kernel": file(build / "kernel/vmlinuz"), "cmdline": file(cmdline)})


def other_words(config: VmConfig, directory: Path, words: Mapping[str, str]) -> File:
    """The command line with words replaced (old text to new), as a file in ``directory``, which is created."""
    line = config.launch.cmdline.path.read_text()
    for old, new in words.items():
        line = replaced_once(line, old, new)
    directory.mkdir(parents=True, exist_ok=True)
    cmdline = directory / "cmdline"
    cmdline.write_text(line)
    return file(cmdline)
