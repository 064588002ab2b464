# SPDX-License-Identifier: Apache-2.0
"""Packages from the Debian archive: the lock, the tools that run in place, and the kernel."""

from pathlib import Path
from typing import Any

from sevsnp.store.pinned import PinnedFiles
from tasks.graph import Task, artefact, command, say
from tasks.project import (
    BUILD,
    DEBS,
    FIRMWARE,
    KERNEL,
    LOCK,
    RELEASE,
    RELEASE_MANIFEST,
    SOURCE_FIRMWARE,
    SOURCE_LOCK,
    STOCK_FIRMWARE,
    TOOLS,
    from_source,
    settings,
)

SOURCES = BUILD / "sources.tar"

COMPILER = DEBS / "compiler"
EDK2 = BUILD / "edk2"
LISTS = {
    "tools": Path("tasks/packages.yaml"),
    "initramfs": Path("initramfs/packages.yaml"),
    "guest": Path("guest-vm/packages.yaml"),
    "appliance": Path("initramfs/appliance/packages.yaml"),
}


def task_packages() -> Task:
    """Fetch kernel, firmware, QEMU and tools, pinned, into build/snp-release

    Fetches every package that packages.lock pins, checks its SHA-256, and unpacks the tools (QEMU among them) into a
    directory from which they run in place. What was fetched before comes from CACHE_DIR.

    Next: ./doitw setup_verity
    """
    values = settings()
    return artefact(
        "sevsnp.packages.steps:make_packages",
        needs=["_dependencies"],
        inputs={"lock": LOCK, **LISTS},
        trees={
            "release": (RELEASE, [path.relative_to(RELEASE).as_posix() for path in (RELEASE_MANIFEST, STOCK_FIRMWARE)]),
            "initramfs_debs": (DEBS / "initramfs", ["packages.json"]),
            "guest_debs": (DEBS / "guest", ["packages.json"]),
            "appliance_debs": (DEBS / "appliance", ["packages.json"]),
        },
        how={
            "cache_dir": str(values.cache_dir()),
            "mirror": values.text("MIRROR"),
            "snapshot": values.text("SNAPSHOT_MIRROR"),
            "kept": PinnedFiles(say),
        },
    )


def task_pack_sources() -> Task:
    """Pack every pinned file into build/sources.tar, which MIRROR=FILE takes

    For the day on which no mirror has the pinned versions any more. The archive is the same bytes wherever it is made;
    its SHA-256 is beside it.

    Next: ./doitw setup_verity MIRROR=build/sources.tar builds from it.
    """
    values = settings()
    # `clean` does not remove the archive: it may be the only place that still has these packages.
    return command(
        "sevsnp.packages.steps:pack_sources",
        needs=["_dependencies"],
        locks=[LOCK, SOURCE_LOCK, *sorted(Path("tests").glob("**/*packages.lock"))],
        output=SOURCES,
        cache_dir=str(values.cache_dir()),
        mirror=values.text("MIRROR"),
        snapshot=values.text("SNAPSHOT_MIRROR"),
    )


def task__compiler() -> Task | None:
    """What builds the firmware with FIRMWARE=source: the compiler's packages, and edk2's source."""
    if not from_source():
        return None
    values = settings()
    return artefact(
        "sevsnp.packages.steps:make_compiler",
        needs=["_dependencies"],
        inputs={"lock": LOCK, "source_lock": SOURCE_LOCK, "tools": LISTS["tools"]},
        trees={"debs": (COMPILER, ["packages.json"]), "sources": (EDK2, ["packages.json"])},
        how={
            "cache_dir": str(values.cache_dir()),
            "mirror": values.text("MIRROR"),
            "snapshot": values.text("SNAPSHOT_MIRROR"),
            "kept": PinnedFiles(say),
        },
    )


def task__firmware() -> Task:
    """The firmware of measured guests: it starts nothing but the three hashed files."""
    if from_source():
        return artefact(
            "sevsnp.images.source_firmware:make_source_firmware",
            inputs={"script": Path("templates/packages/ovmf.sh")},
            directories={"changes": Path("templates/firmware")},
            outputs={"output": SOURCE_FIRMWARE},
            watch=[COMPILER / "packages.json", EDK2 / "packages.json"],
            how={"debs": COMPILER, "sources": EDK2},
        )
    return artefact(
        "sevsnp.firmware.make:make_firmware",
        inputs={"stock": STOCK_FIRMWARE},
        outputs={"output": FIRMWARE},
        watch=[RELEASE_MANIFEST],
        how={"python": TOOLS / "python3"},
    )


def task_packages_lock() -> Task:
    """Pin the newest versions in packages.lock, or only that of --only NAME

    Asks the Debian archive for the newest version of every package in the lists, and of all that those depend on,
    writes packages.lock, and says what has changed.

    Next: ./doitw test, and commit packages.lock.
    """
    values = settings()
    task = command(
        "sevsnp.packages.steps:update_lock",
        mirror=values.text("MIRROR"),
        snapshot=values.text("SNAPSHOT_MIRROR"),
        cache_dir=str(values.cache_dir()),
        output=LOCK,
        tools=LISTS["tools"],
        initramfs=LISTS["initramfs"],
        guest=LISTS["guest"],
        appliance=LISTS["appliance"],
    )
    only = {"name": "only", "long": "only", "default": "", "help": "the one package to pin anew, with what it needs"}
    return {**task, "params": [only]}


def task_unpack_kernel() -> Task:
    """Unpack the kernel package into build/kernel [KERNEL_DEB]

    Unpacks the pinned kernel, or the linux-image package that KERNEL_DEB names, with its modules.

    Next: ./doitw initramfs
    """
    values = settings()
    inputs: dict[str, Any] = {"deb": deb} if (deb := values.optional_path("KERNEL_DEB")) else {}
    return artefact(
        "sevsnp.packages.steps:make_kernel",
        inputs=inputs,
        watch=[RELEASE_MANIFEST],
        trees={"output": (KERNEL, ["version", "vmlinuz"])},
        how={"release": RELEASE},
    )
