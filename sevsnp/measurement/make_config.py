# SPDX-License-Identifier: Apache-2.0
"""Make a VM config: the TOML file that states the launch and its digest."""

import hashlib
from pathlib import Path
from typing import Any, cast

from sevsnp.errors import UserError
from sevsnp.firmware.gate import check_launch_firmware
from sevsnp.measurement.launch_digest import launch_digest_of
from sevsnp.measurement.owner import owner_der
from sevsnp.settings.values import parse_tcb
from sevsnp.stage.image import check_stage
from sevsnp.store import session
from sevsnp.vm_config.config import (
    Disk,
    File,
    Launch,
    MinimumTcb,
    PlatformName,
    Product,
    Reference,
    Stage,
    Tcb,
    VmConfig,
    render_vm_config,
)
from sevsnp.vm_config.floors import floors_of_setting


def make_vm_config(
    *,
    template: Path,
    workflow: str,
    platform: str,
    firmware: Path,
    kernel: Path,
    initrd: Path,
    cmdline: Path,
    disks: dict[str, str],
    owner_certificate: Path,
    settings: dict[str, Any],
    place: str,
    output: Path,
    shown: str = "",
    stage_code: Path | None = None,
    stage_tables: Path | None = None,
    stage_kernel: Path | None = None,
    **disk_files: Path,
) -> None:
    """Write a VM config whose launch digest is computed from the files themselves.

    ``disks`` maps each role to the argument that holds its file. ``settings`` are the pipeline's settings by name.
    ``place`` is the config's final path, from which its relative paths start; messages call it ``shown``. HOST_DATA is
    the SHA-256 of the owner's certificate (DER): it distinguishes the guests of different owners. With ``stage_*``,
    ``kernel`` is the stage that is made of these three.
    """

    known = session.index()

    def file(path: Path) -> File:
        return File(path.resolve(), known.file(path))

    def disk(role: str, path: Path) -> Disk:
        return Disk(role, path.resolve(), path.stat().st_size, known.file(path))

    launch = Launch(
        workflow=workflow,
        platform=cast(PlatformName, platform),
        product=cast(Product, settings["PRODUCT"]),
        vcpus=settings["CPUS"],
        vcpu_model=settings["CPU_MODEL"],
        guest_policy=settings["POLICY"],
        guest_features=settings["GUEST_FEATURES"],
        host_data=hashlib.sha256(owner_der(owner_certificate)).digest(),
        firmware=file(firmware),
        kernel=file(kernel),
        initrd=file(initrd),
        cmdline=file(cmdline),
        disks=tuple(disk(role, disk_files[argument]) for role, argument in disks.items()),
        firmware_reason=settings["FIRMWARE_REASON"],
    )
    check_launch_firmware(launch)
    stage = None
    if stage_code and stage_tables and stage_kernel:
        check_stage(kernel, launch.vcpus, code=stage_code, tables=stage_tables, kernel=stage_kernel)
        stage = Stage(known.file(stage_code), known.file(stage_tables), known.file(stage_kernel))
    reference = Reference(
        launch_digest=launch_digest_of(launch),
        minimum_tcb=_minimum_tcb(settings["MIN_TCB"], settings["PRODUCT"]),
        vmpl=0,
        guest_svn=settings["GUEST_SVN"],
        family_id=bytes.fromhex(settings["FAMILY_ID"]),
        image_id=bytes.fromhex(settings["IMAGE_ID"]),
        platform_info_required=settings["PLATFORM_INFO_REQUIRED"],
        platform_info_forbidden=settings["PLATFORM_INFO_FORBIDDEN"],
        acpi="acpi=off" not in cmdline.read_text().split() and not stage,
        stage=stage,
    )
    policy = {"profile": "legacy-milan" if launch.product == "Milan" else "default"}
    config = VmConfig(Path(place).resolve(), launch, reference, policy)
    output.write_text(render_vm_config(config, template))
    if platform == "snp" and reference.minimum_tcb is None:
        consequence = f"attest_{workflow} refuses a guest on SEV-SNP without, and shows the line to set"
        print(f"  {shown or place}: no MIN_TCB: {consequence}")


def _minimum_tcb(text: str, product: str) -> MinimumTcb:
    if not text:
        return None
    if text == "any":
        return "any"
    try:
        floors = floors_of_setting(text)
    except ValueError as error:
        raise UserError(f"MIN_TCB={text}: expected {error}") from None
    for floor in floors:
        if (found := floor.processor.product) != product:
            raise UserError(f"MIN_TCB={text}: {floor.processor} is one of {found}, expected PRODUCT={product}")
    if floors:
        return floors
    parts = parse_tcb(text)
    fmc = parts.pop("fmc")
    if product != "Turin" and fmc:
        raise UserError(f"MIN_TCB={text}: fmc: found {fmc}, but {product} has no such part")
    return Tcb(**parts, fmc=fmc if product == "Turin" else None)
