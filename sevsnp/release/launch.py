# SPDX-License-Identifier: Apache-2.0
"""Describe a VM config for a manifest: its files, reference values, and launch digests for usual numbers of vCPUs."""

import functools
import hashlib
import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.measurement.launch_digest import KernelHashes, hash_cmdline, launch_digest, loaded_digest
from sevsnp.release.contents import Contents, ContentsError
from sevsnp.stage.image import check_kernel, stage_image
from sevsnp.stage.tables import all_tables
from sevsnp.system import toml_loader
from sevsnp.vm_config.cmdline import MAX_LENGTH, hardening_words
from sevsnp.vm_config.config import Launch, MinimumTcb, Stage, Tcb, VmConfig, parse_vm_config

USUAL_VCPUS = (1, 2, 4, 8, 16, 32, 64)
MAX_CONFIG = 1 << 20
MAX_FIRMWARE = 64 << 20
_MAX_STAGE_PART = 256 << 20

Files = Mapping[str, Mapping[str, Any]]


def boots_with_acpi(vcpus: int, setting: str) -> bool | None:
    """Whether a guest with ``vcpus`` has ACPI for this value of the setting ACPI; None if the setup tasks refuse it."""
    if setting == "off":
        return False if vcpus == 1 else None
    return True


def with_acpi(cmdline: str, acpi: bool) -> str:
    """The command line for the same settings with or without ACPI. Raises UserError for a foreign command line."""
    words = cmdline.split(" ")
    for present in (False, True):  # the words without ACPI are one more, so compare the longer beginning first
        first = [word.text for word in hardening_words(acpi=present)]
        if words[: len(first)] == first:
            return " ".join([*(word.text for word in hardening_words(acpi=acpi)), *words[len(first) :]])
    raise UserError("its command line does not begin with the words that every measured guest has")


def describe_launch(contents: Contents, files: Files, config: str, acpi: str) -> dict[str, Any]:
    """The launch of the VM config ``config``, its reference values, and its digests for the usual vCPU counts.

    ``files`` are the artefacts found, by path; they must include all files of the config. ``acpi`` is the setting ACPI.
    Only the config, the command line and the firmware are read again, and compared with ``files``. A guest with several
    vCPUs has another command line, so each entry has the SHA-256 of its own command line. Raises ContentsError if the
    config and the files do not match.
    """
    try:
        text = contents.read(config, files[config]["sha256"], MAX_CONFIG).decode()
        parsed = parse_vm_config(toml_loader.loads(text), contents.root / config)
        reference = parsed.require_reference()
        launch = parsed.launch
        names = _named_files(contents, files, launch)
        firmware = _read(contents, files, names["firmware"], MAX_FIRMWARE)
        line = _read(contents, files, names["cmdline"], MAX_LENGTH).decode("ascii")
        if reference.stage:
            names |= _stage_files(files, reference.stage)
        kernel_hash = _kernel_hash(contents, files, names, launch.vcpus)
        digests = _digests(files, names, launch, firmware, line, acpi, kernel_hash)
    except UserError as error:
        raise ContentsError(error.message) from None
    except ValueError as error:  # not UTF-8, not TOML, not ASCII
        raise ContentsError(str(error)) from None
    if (acpi == "own") != (reference.stage is not None):
        raise ContentsError(f"it was not made with ACPI={acpi}: set it up again")
    own = next((item for item in digests if item["vcpus"] == launch.vcpus), None)
    if own is None or own["cmdline_sha256"] != files[names["cmdline"]]["sha256"]:
        raise ContentsError(
            f"its command line is not the one that ACPI={acpi} gives {launch.vcpus} vCPUs: set it up again"
        )
    if own["launch_digest"] != reference.launch_digest.hex():
        raise ContentsError(
            f"says launch digest {reference.launch_digest.hex()}, its files give {own['launch_digest']}"
        )
    return {
        "workflow": launch.workflow,
        "platform": launch.platform,
        # A digest of the emulated platform proves nothing, and no verifier of a real guest may accept it.
        "production": launch.platform == "snp",
        "settings": _settings(launch),
        "acpi": acpi,
        "cmdline": line,
        "files": names,
        "reference": _reference(parsed),
        "digests": digests,
    }


def _named_files(contents: Contents, files: Files, launch: Launch) -> dict[str, str]:
    """The files of a launch by kind. Each must be an artefact with the digest in the config."""
    names = {}
    wanted = {what: getattr(launch, what) for what in ("firmware", "kernel", "initrd", "cmdline")}
    for what, file in {**wanted, **{disk.role: disk for disk in launch.disks}}.items():
        name = os.path.relpath(file.path, contents.root)
        if name not in files:
            raise ContentsError(f"its {what}, {name}, is not an artefact of the manifest")
        if files[name].get("sha256") != file.sha256:
            raise ContentsError(f"its {what}, {name}, has SHA-256 {files[name].get('sha256')}, it says {file.sha256}")
        names[what] = name
    return names


def _read(contents: Contents, files: Files, name: str, limit: int) -> bytes:
    try:
        return contents.read(name, files[name]["sha256"], limit)
    except ContentsError as error:
        raise ContentsError(f"{name}: {error}") from None


def _stage_files(files: Files, stage: Stage) -> dict[str, str]:
    """The files that the stage is made of, by kind; the VM config has only their digests."""
    names = {}
    for part, sha256 in stage._asdict().items():
        found = min((name for name, facts in files.items() if facts.get("sha256") == sha256), default=None)
        if found is None:
            raise ContentsError(f"the {part} of its stage, with SHA-256 {sha256}, is not an artefact of the manifest")
        names[f"stage_{part}"] = found
    return names


def _kernel_hash(contents: Contents, files: Files, names: Mapping[str, str], vcpus: int) -> Callable[[int], bytes]:
    """What returns, for a number of vCPUs, the SHA-256 of what the guest is started with as its kernel.

    There is one stage for each number. All are made of the same code and kernel, so their digests are known, too.
    """
    own = bytes.fromhex(files[names["kernel"]]["sha256"])
    if "stage_code" not in names:
        return lambda _: own
    code, kernel = (_read(contents, files, names[part], _MAX_STAGE_PART) for part in ("stage_code", "stage_kernel"))
    check_kernel(Path(names["stage_kernel"]), kernel)
    if _stage_hash(code, kernel, vcpus) != own:
        raise ContentsError(f"its kernel, {names['kernel']}, is not the stage for {vcpus} vCPUs made of its parts")
    return functools.partial(_stage_hash, code, kernel)


# All VM configs of a release have stages of the same parts.
@functools.lru_cache(maxsize=2 * len(USUAL_VCPUS))
def _stage_hash(code: bytes, kernel: bytes, vcpus: int) -> bytes:
    return hashlib.sha256(stage_image(code, all_tables(vcpus), kernel)).digest()


# All VM configs of a release have the same firmware, which is most of what a launch digest measures.
@functools.lru_cache(maxsize=2)
def _loaded_digest(firmware: bytes, name: str) -> bytes:
    return loaded_digest(io.BytesIO(firmware), len(firmware), name)


def _digests(
    files: Files,
    names: Mapping[str, str],
    launch: Launch,
    firmware: bytes,
    line: str,
    acpi: str,
    kernel_hash: Callable[[int], bytes],
) -> list[dict[str, Any]]:
    found = []
    for vcpus in sorted({*USUAL_VCPUS, launch.vcpus}):
        present = boots_with_acpi(vcpus, acpi)
        if present is None:
            continue
        cmdline = with_acpi(line, present).encode()
        hashes = KernelHashes(
            kernel=kernel_hash(vcpus),
            initrd=bytes.fromhex(files[names["initrd"]]["sha256"]),
            cmdline=hash_cmdline(cmdline),
        )
        digest = launch_digest(
            io.BytesIO(firmware),
            len(firmware),
            hashes,
            vcpus=vcpus,
            vcpu_model=launch.vcpu_model,
            guest_features=launch.guest_features,
            name=names["firmware"],
            loaded=_loaded_digest(firmware, names["firmware"]),
        )
        found.append(
            {
                "vcpus": vcpus,
                "acpi": present,
                "cmdline_sha256": hashlib.sha256(cmdline).hexdigest(),
                "launch_digest": digest.hex(),
            }
        )
    return found


def _settings(launch: Launch) -> dict[str, Any]:
    return {
        "product": launch.product,
        "vcpus": launch.vcpus,
        "vcpu_model": launch.vcpu_model,
        "guest_policy": f"{launch.guest_policy:#x}",
        "guest_features": f"{launch.guest_features:#x}",
        "host_data": launch.host_data.hex(),
    }


def _minimum_tcb(minimum: MinimumTcb) -> list[dict[str, Any]] | dict[str, int] | str | None:
    """A floor by component, a list of floors for processors, "any", or None if there is no floor."""
    if isinstance(minimum, tuple):
        return [floor.document() for floor in minimum]
    if not isinstance(minimum, Tcb):
        return minimum
    return {name: value for name, value in vars(minimum).items() if value is not None}


def _reference(config: VmConfig) -> dict[str, Any]:
    reference = config.require_reference()
    return {
        "minimum_tcb": _minimum_tcb(reference.minimum_tcb),
        "vmpl": reference.vmpl,
        "guest_svn": reference.guest_svn,
        "family_id": reference.family_id.hex(),
        "image_id": reference.image_id.hex(),
        "platform_info_required": f"{reference.platform_info_required:#x}",
        "platform_info_forbidden": f"{reference.platform_info_forbidden:#x}",
        **({"stage": reference.stage._asdict()} if reference.stage else {}),
    }
