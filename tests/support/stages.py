# SPDX-License-Identifier: Apache-2.0
"""VM configs of guests that the stage starts, made by the setup task in a copy of the built project."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from sevsnp.vm_config.config import VmConfig, read_vm_config
from tests.conftest import Built
from tests.support.copies import copy_built


@dataclass(frozen=True)
class Stages:
    """A copy of the project in which guests are set up with ACPI=own."""

    copy: Built

    @classmethod
    def of(cls, built: Built, directory: Path) -> "Stages":
        return cls(copy_built(built, directory / "project"))

    def setup(self, vcpus: int) -> VmConfig:
        """The emulated VM config of the integrity workflow for ``vcpus`` vCPUs; it replaces the one before."""
        self.copy.doit("setup_verity", "ACPI=own", f"CPUS={vcpus}")
        return read_vm_config(self.copy.build / "verity" / "vm-config-verity.emulated.toml")

    def tables(self, vcpus: int) -> bytes:
        return (self.copy.build / "boot" / f"acpi-{vcpus}.bin").read_bytes()

    def remove(self) -> None:
        shutil.rmtree(self.copy.project)
