# SPDX-License-Identifier: Apache-2.0
"""The release manifest: the digests of the built files, and their check."""

import os
from pathlib import Path

from tasks import cloud, luks
from tasks.e2e import BUNDLE
from tasks.graph import Task, command
from tasks.guest import DISK, PACKAGES, ROOTFS
from tasks.packages import COMPILER, EDK2
from tasks.project import (
    APPLIANCE_INITRAMFS,
    BUILD,
    DEBS,
    EMULATED_INITRAMFS,
    INITRAMFS,
    KERNEL,
    LOCK,
    PLAIN_INITRAMFS,
    RELEASE_MANIFEST,
    SOURCE_LOCK,
    VERITY,
    firmware,
    from_source,
    launch_kernel,
    own_acpi,
    settings,
    stage_parts,
)
from tasks.tools import BIN
from tasks.verity import IMAGE, ROOTHASH, TREE, config, data_files

MANIFEST = BUILD / "manifest.json"
CONFIGS = (config("snp"), config("emulated"))
PACKAGE_LISTS = (RELEASE_MANIFEST, *(DEBS / name / "packages.json" for name in ("initramfs", "guest", "appliance")))
# What else a firmware from source was made with.
SOURCE_LISTS = (COMPILER / "packages.json", EDK2 / "packages.json")
# Without the verifiers in build/bin: they contain the path of the checkout.
ARTEFACTS = (
    LOCK, Path("requirements.lock"), *PACKAGE_LISTS,
    KERNEL / "vmlinuz", KERNEL / "version",
    INITRAMFS, EMULATED_INITRAMFS, PLAIN_INITRAMFS, APPLIANCE_INITRAMFS,
    PACKAGES,
    IMAGE, TREE, ROOTHASH, VERITY / "cmdline", VERITY / "cmdline.emulated", *CONFIGS,
    BIN / "get_report",
)  # fmt: skip
# One owner's volume: listed if it exists, and never made for a release, because each volume is different.
ENCRYPTED_CONFIGS = (luks.config("snp"), luks.config("emulated"))
ENCRYPTED = (
    luks.IMAGE, luks.HEADER, luks.HEADER_DIGEST, luks.TABLES_DIGEST,
    luks.cmdline("snp"), luks.cmdline("emulated"), *ENCRYPTED_CONFIGS,
)  # fmt: skip


def _stage() -> tuple[Path, ...]:
    """With ACPI=own: what the guest starts as its kernel, and what that is made of."""
    return (launch_kernel(), *stage_parts().values()) if own_acpi() else ()


def task_manifest() -> Task:
    """Write build/manifest.json and an SBOM, signed [MANIFEST_KEY]

    Writes the digests of all that was built, the launch digests for 1 to 64 vCPUs, what everything was made with, and
    what must never be accepted; beside it a software bill of materials (CycloneDX). MANIFEST_KEY signs it,
    and build/manifest.intoto.json is then the same as SLSA provenance.

    Next: ./doitw verify_manifest MANIFEST_PUBLIC_KEY=…
    """
    values = settings()
    source = (SOURCE_LOCK, *SOURCE_LISTS) if from_source() else ()
    # A cloud image is the user's own.
    plain = () if cloud.chosen() else (ROOTFS, DISK)
    # A command, not an artefact: the state of git, the Python environment and the key are not files of the project, and
    # a result of a signing key must not be in a cache.
    return command(
        "sevsnp.release.manifest:make_manifest",
        alone=True,
        needs=[
            "packages",
            "initramfs",
            "_appliance_initramfs",
            "create_new_vm",
            "setup_verity",
            "host_bundle",
            "build_tools",
        ],
        project=Path(),
        artefacts=(*ARTEFACTS, firmware(), *plain, *_stage(), *source, *data_files()),
        trees=[BUNDLE],
        configs=CONFIGS,
        package_lists=(*PACKAGE_LISTS, *(SOURCE_LISTS if source else ())),
        acpi=values.text("ACPI"),
        created=os.environ.get("SOURCE_DATE_EPOCH", ""),
        key=values.optional_path("MANIFEST_KEY"),
        output=MANIFEST,
        sbom=BUILD / "sbom.cdx.json",
        if_built=ENCRYPTED,
        if_built_configs=ENCRYPTED_CONFIGS,
    )


def task_verify_manifest() -> Task:
    """Compare everything with the manifest [MANIFEST MANIFEST_PUBLIC_KEY]

    Says which artefact differs from the manifest, or is not there, and checks the signature where MANIFEST_PUBLIC_KEY
    names the key that must have signed it.

    Next: ./doitw attest_verity MANIFEST=… verifies a guest against it.
    """
    values = settings()
    return command(
        "sevsnp.release.verify:verify_manifest",
        alone=True,
        manifest=values.path("MANIFEST", MANIFEST),
        public_key=values.optional_path("MANIFEST_PUBLIC_KEY"),
        project=Path(),
    )
