# SPDX-License-Identifier: Apache-2.0
"""Packages from the Debian archive: the lock, the tools that run in place, and the kernel."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sevsnp.settings.resolved import Settings
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
PACKED_RELEASE = BUILD / "snp-release.tar.gz"
# What was built from source, and its record.
BUILT = BUILD / "snp-built"

COMPILER = DEBS / "compiler"
EDK2 = BUILD / "edk2"
LISTS = {
    "tools": Path("tasks/packages.yaml"),
    "initramfs": Path("initramfs/packages.yaml"),
    "guest": Path("guest-vm/packages.yaml"),
    "appliance": Path("initramfs/appliance/packages.yaml"),
}


@dataclass(frozen=True)
class Source:
    """What makes build/snp-release for one value of PACKAGES_SOURCE.

    ``function`` writes the task's four trees. It gets the lock, the lists and the settings of downloads, as
    ``sevsnp.packages.steps:make_packages`` does, and also ``params`` and ``directories``, which decide the content of
    the tree, and ``how``, which only leads to it. The tree must be complete, and sealed with its digest
    (``check_release`` in ``sevsnp.packages.release_archive``, ``seal`` in ``sevsnp.packages.tree``).
    """

    function: str
    directories: Mapping[str, Path] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)


def _debian(values: Settings) -> Source:
    return Source("sevsnp.packages.steps:make_packages")


def _release(values: Settings) -> Source:
    # The digest alone says what the archive is; its place does not.
    return Source(
        "sevsnp.packages.release_steps:make_packages_from_release",
        params={"sha256": values.text("PACKAGES_SHA256")},
        how={"place": values.text("PACKAGES_RELEASE")},
    )


def _built(values: Settings) -> Source:
    return Source("sevsnp.packages.built:make_packages_with_built", directories={"built": BUILT})


# The words of PACKAGES_SOURCE. Another source is a line here, and its word in the table of settings.
SOURCES_OF_TOOLS: Mapping[str, Callable[[Settings], Source]] = {
    "debian": _debian,
    "release": _release,
    "container": _built,
    "local": _built,
}


def task_packages() -> Task:
    """Fetch kernel, firmware, QEMU and tools into build/snp-release [PACKAGES_SOURCE]

    Fetches every package that packages.lock pins, checks its SHA-256, and unpacks the tools (QEMU among them) into a
    directory from which they run in place. What was fetched before comes from CACHE_DIR. PACKAGES_SOURCE=release takes
    that directory from an archive, with PACKAGES_RELEASE and PACKAGES_SHA256. PACKAGES_SOURCE=container or local puts
    what packages_fetch has fetched in the place of Debian's.

    Next: ./doitw setup_verity
    """
    values = settings()
    source = SOURCES_OF_TOOLS[values.text("PACKAGES_SOURCE")](values)
    return artefact(
        source.function,
        needs=["_dependencies"],
        inputs={"lock": LOCK, **LISTS},
        trees={
            "release": (RELEASE, [path.relative_to(RELEASE).as_posix() for path in (RELEASE_MANIFEST, STOCK_FIRMWARE)]),
            "initramfs_debs": (DEBS / "initramfs", ["packages.json"]),
            "guest_debs": (DEBS / "guest", ["packages.json"]),
            "appliance_debs": (DEBS / "appliance", ["packages.json"]),
        },
        directories=source.directories,
        params=source.params,
        how={
            "cache_dir": str(values.cache_dir()),
            "mirror": values.text("MIRROR"),
            "snapshot": values.text("SNAPSHOT_MIRROR"),
            "kept": PinnedFiles(say),
            **source.how,
        },
    )


def task_pack_release() -> Task:
    """Pack build/snp-release into build/snp-release.tar.gz, for PACKAGES_SOURCE=release

    For machines that are to take kernel, firmware, QEMU and tools from one file. The archive is the same bytes wherever
    it is made of the same tree; its SHA-256 is beside it. The packages of the guest and of the initramfs are not in it.

    Next: ./doitw packages PACKAGES_SOURCE=release PACKAGES_RELEASE=FILE PACKAGES_SHA256=DIGEST, on another machine.
    """
    return command(
        "sevsnp.packages.pack_release:pack_release",
        alone=True,
        needs=["packages"],
        release=RELEASE,
        python=TOOLS / "python3",
        output=PACKED_RELEASE,
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
    """The compiler's packages, for FIRMWARE=source."""
    if not from_source():
        return None
    return artefact(
        "sevsnp.packages.steps:make_compiler",
        needs=["_dependencies"],
        inputs={"lock": LOCK, "tools": LISTS["tools"]},
        trees={"debs": (COMPILER, ["packages.json"])},
        how=_fetching(),
    )


def task__edk2() -> Task | None:
    """What the firmware is built from with FIRMWARE=source: edk2's source."""
    if not from_source():
        return None
    return artefact(
        "sevsnp.packages.steps:make_edk2",
        needs=["_dependencies"],
        inputs={"source_lock": SOURCE_LOCK},
        trees={"sources": (EDK2, ["packages.json"])},
        how=_fetching(),
    )


def _fetching() -> dict[str, Any]:
    """From where pinned files come."""
    values = settings()
    return {
        "cache_dir": str(values.cache_dir()),
        "mirror": values.text("MIRROR"),
        "snapshot": values.text("SNAPSHOT_MIRROR"),
        "kept": PinnedFiles(say),
    }


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
    pinned = settings().text("PACKAGES_SOURCE") == "debian"
    return artefact(
        "sevsnp.firmware.make:make_firmware" if pinned else "sevsnp.firmware.released:take_firmware",
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
