# SPDX-License-Identifier: Apache-2.0
"""The stages of a build from source, in their order: the script of each, its sources, its needs and its result."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sevsnp.errors import UserError
from sevsnp.firmware.known import OURS_FROM_SOURCE

HOUR = 3600


@dataclass(frozen=True)
class Stage:
    """One stage.

    ``script`` is a file of templates/packages, or an absolute path. It is run with SOURCES (a directory with what
    ``sources`` names), WORK (an empty directory), OUT (a directory for the results), JOBS and CONFIGURE_ONLY (yes: stop
    once it is configured), and with ``variables``. ``results`` are patterns of files below OUT, each of which it must
    leave. ``packages`` is the set of tasks/build-packages.yaml with what the script needs. ``limit`` is in seconds,
    ``room`` in bytes of disk space. ``prepare`` names a function ``module:function`` that makes SOURCES instead; it is
    called with ``sources`` (the directory of the fetched files), ``output``, and the path of each of ``templates``.
    ``output``: OUT is a file of this name in that directory. ``known`` is the SHA-256 of the first result, if it was
    made from the pinned source by the pinned compilers.
    """

    name: str
    script: str
    sources: tuple[str, ...]
    packages: str
    results: tuple[str, ...]
    limit: int
    room: int
    variables: Mapping[str, str] = field(default_factory=dict)
    prepare: str = ""
    templates: Mapping[str, str] = field(default_factory=dict)
    output: str = ""
    known: str = ""


def _kernel(flavour: str) -> Stage:
    return Stage(
        f"{flavour}-kernel",
        "kernel.sh",
        (f"{flavour}-kernel", "kernel-config"),
        "kernel",
        ("linux-image-*.deb",),
        24 * HOUR,
        25 << 30,
        {"FLAVOUR": flavour},
    )


STAGES = (
    Stage(
        "ovmf",
        "ovmf.sh",
        ("ovmf",),
        "ovmf",
        ("OVMF.fd",),
        2 * HOUR,
        2 << 30,
        prepare="sevsnp.firmware.source:prepare_tree",
        templates={"changes": "firmware/changes.yaml"},
        output="OVMF.fd",
        known=OURS_FROM_SOURCE,
    ),
    Stage(
        "qemu",
        "qemu.sh",
        ("qemu", "meson", "pycotap"),
        "qemu",
        ("usr/bin/qemu-system-x86_64",),
        6 * HOUR,
        4 << 30,
    ),
    _kernel("guest"),
    _kernel("host"),
)


def chosen(only: str, stages: tuple[Stage, ...] = STAGES) -> tuple[Stage, ...]:
    """The stages that ``only`` names, separated by commas, in the order of the table; all if it is empty.

    Raises :class:`UserError` for a name that there is not.
    """
    names = {name.strip() for name in only.split(",")} if only else {stage.name for stage in stages}
    if unknown := sorted(names - {stage.name for stage in stages}):
        known = ", ".join(stage.name for stage in stages)
        raise UserError(f"--only: there is no stage {unknown[0]!r}, expected some of {known}")
    return tuple(stage for stage in stages if stage.name in names)
