# SPDX-License-Identifier: Apache-2.0
"""ACPI=own: the stage, which puts ACPI tables of our own in the place of the host's, and starts the kernel."""

from pathlib import Path

from tasks.graph import Task, artefact
from tasks.project import RELEASE_MANIFEST, TOOLS, checked, own_acpi, settings, stage, stage_parts

SOURCES = Path("initramfs/stage")


def task__stage_code() -> Task | None:
    """The stage's code, built by the pinned compiler."""
    if not own_acpi():
        return None
    return artefact(
        "sevsnp.images.stage_code:make_stage_code",
        directories={"sources": SOURCES},
        outputs={"output": stage_parts()["stage_code"]},
        watch=[RELEASE_MANIFEST],
        how={"tools": TOOLS},
    )


def task__acpi_tables() -> Task | None:
    """The guest's ACPI tables for the number of vCPUs."""
    if not own_acpi():
        return None
    from sevsnp.stage.tables import check_vcpus

    vcpus = settings().number("CPUS")
    checked(check_vcpus, vcpus)
    return artefact(
        "sevsnp.stage.tables:make_tables",
        outputs={"output": stage_parts()["stage_tables"]},
        params={"vcpus": vcpus},
    )


def task__stage() -> Task | None:
    """The stage for the number of vCPUs, build/boot/stage-CPUS.efi: code, ACPI tables and kernel."""
    if not own_acpi():
        return None
    parts = stage_parts()
    return artefact(
        "sevsnp.stage.image:make_stage",
        inputs={"code": parts["stage_code"], "tables": parts["stage_tables"], "kernel": parts["stage_kernel"]},
        outputs={"output": stage()},
    )
