# SPDX-License-Identifier: Apache-2.0
"""The task that makes the VM config of a workflow."""

from collections.abc import Mapping
from pathlib import Path

from tasks.graph import Task, artefact
from tasks.project import firmware, keys, launch_kernel, settings, stage_parts

# The settings that are fixed in a VM config.
SETTINGS = (
    "PRODUCT", "CPUS", "CPU_MODEL", "POLICY", "GUEST_FEATURES", "MIN_TCB", "FAMILY_ID", "IMAGE_ID",
    "GUEST_SVN", "PLATFORM_INFO_REQUIRED", "PLATFORM_INFO_FORBIDDEN", "FIRMWARE_REASON",
)  # fmt: skip


def launched(plain: Path) -> Path:
    """The VM config for launch and verification: the one with an ID block if ID_KEY is set."""
    return plain.parent / "idblock" / plain.name if settings().text("ID_KEY") else plain


def vm_config(
    workflow: str, platform: str, *, initrd: Path, cmdline: Path, disks: Mapping[str, tuple[str, Path]], output: Path
) -> Task:
    """The task that writes ``output``; ``disks`` has for each role the name of the input, and the image."""
    return artefact(
        "sevsnp.measurement.make_config:make_vm_config",
        inputs={
            "template": Path("templates/vm-config.toml.j2"),
            "firmware": firmware(),
            "kernel": launch_kernel(),
            "initrd": initrd,
            "cmdline": cmdline,
            **dict(disks.values()),
            **stage_parts(),
            "owner_certificate": keys().owner_certificate,
        },
        outputs={"output": output},
        params={
            "workflow": workflow,
            "platform": platform,
            "disks": {role: argument for role, (argument, _) in disks.items()},
            "settings": {name: settings()[name] for name in SETTINGS},
            "place": str(output),
        },
        distributions=["jinja2"],
        cached=workflow == "verity",
    )
