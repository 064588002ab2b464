# SPDX-License-Identifier: Apache-2.0
"""Settings that a VM config has fixed: a later launch or verification may repeat them, but not change them."""

import re
from collections.abc import Callable, Mapping

from sevsnp.errors import UserError
from sevsnp.settings.values import parse_minimum_tcb
from sevsnp.vm_config.cmdline import read_cmdline
from sevsnp.vm_config.config import Launch, MinimumTcb, Reference, Tcb, VmConfig, making
from sevsnp.vm_config.floors import parse_processor

Value = int | str
_HEX = ("POLICY", "GUEST_FEATURES", "PLATFORM_INFO_REQUIRED", "PLATFORM_INFO_FORBIDDEN")


def check_fixed(config: VmConfig, asked: Mapping[str, Value]) -> None:
    """Refuse settings that differ from those of the VM config; the error names the command that makes a new one.

    ``asked`` has the values that the user gave for this run, by setting name. Settings that a VM config does not fix
    are ignored.
    """
    fixed = _of_launch(config.launch)
    # Read the command line only if needed: a verifier may have the VM config without the guest's files.
    if set(asked) & {*_CMDLINE[config.launch.workflow], *_DATA}:
        fixed |= _of_cmdline(config.launch, asked)
        if config.reference and config.reference.stage:
            fixed["ACPI"] = "own"
    if config.reference:
        fixed |= _of_reference(config.reference)
    for name, value in asked.items():
        if name in fixed and not _equal(name, value, fixed[name]):
            found, made = _text(name, value), _text(name, fixed[name])
            raise UserError(
                f"{name}={found}: {config.source} was made for {name}={made}",
                f"make a new VM config: {making(config.source, config.launch.workflow)} {name}={found}",
            )


def _text(name: str, value: Value) -> str:
    return f"{value:#x}" if name in _HEX and isinstance(value, int) else str(value)


def _equal(name: str, asked: Value, fixed: Value) -> bool:
    if name == "MIN_TCB" and not {asked, fixed} & {"", "any"}:
        return _floors(str(asked)) == _floors(str(fixed))
    return asked == fixed


def _floors(text: str) -> dict[str, dict[str, int]]:
    """What a setting MIN_TCB demands, whatever the order of the processors and the spelling of their numbers."""
    return {cpuid and str(parse_processor(cpuid)): parts for cpuid, parts in parse_minimum_tcb(text)}


def _setting(minimum: MinimumTcb) -> str:
    if isinstance(minimum, tuple):
        return ",".join(floor.setting() for floor in minimum)
    return minimum.setting() if isinstance(minimum, Tcb) else minimum or ""


def _of_launch(launch: Launch) -> dict[str, Value]:
    return {
        "PRODUCT": launch.product,
        "CPUS": launch.vcpus,
        "CPU_MODEL": launch.vcpu_model,
        "POLICY": launch.guest_policy,
        "GUEST_FEATURES": launch.guest_features,
    }


def _of_reference(reference: Reference) -> dict[str, Value]:
    return {
        "MIN_TCB": _setting(reference.minimum_tcb),
        "FAMILY_ID": reference.family_id.hex(),
        "IMAGE_ID": reference.image_id.hex(),
        "GUEST_SVN": reference.guest_svn,
        "PLATFORM_INFO_REQUIRED": reference.platform_info_required,
        "PLATFORM_INFO_FORBIDDEN": reference.platform_info_forbidden,
    }


# How to read each setting from the measured command line.
_Readers = Mapping[str, Callable[[str], Value]]
_ANY: _Readers = {
    "ACPI": lambda line: "off" if "acpi=off" in line.split() else "on",
    "GUEST_DNS": lambda line: match[1] if (match := re.search(r"(?:^| )sevsnp\.dns=(\S+)", line)) else "",
}
_VERITY: _Readers = {
    "WRITABLE": lambda line: _word(line, r"sevsnp\.writable=(\w+)"),
    "VERITY_FILESYSTEM": lambda line: _word(line, r"sevsnp\.rootfs=(\w+)"),
    **{
        f"TMPFS_{name.upper()}": lambda line, name=name: int(_word(line, rf"sevsnp\.tmpfs=\S*\b{name}:(\d+)"))  # type: ignore[misc]
        for name in ("etc", "home", "var", "tmp")
    },
}
# Of the data disk of a verified guest.
_DATA = ("DATA_SIZE", "DATA_PATH")
_LUKS: _Readers = {"LUKS_REPORTS": lambda line: "open" if "sevsnp.reports=open" in line.split() else "closed"}
_CMDLINE: Mapping[str, _Readers] = {"verity": {**_ANY, **_VERITY}, "luks": {**_ANY, **_LUKS}}


def _of_cmdline(launch: Launch, asked: Mapping[str, Value]) -> dict[str, Value]:
    line = read_cmdline(launch.cmdline.path)
    try:
        return {**{name: read(line) for name, read in _CMDLINE[launch.workflow].items()}, **_data(launch, line, asked)}
    except LookupError as error:
        raise UserError(
            f"{launch.cmdline.path}: {error.args[0]}", f"make the VM config again: ./doitw setup_{launch.workflow}"
        ) from None


def _data(launch: Launch, line: str, asked: Mapping[str, Value]) -> dict[str, Value]:
    """The settings of the data disk. Its size is known only as the image's, so only 0 is compared with it."""
    if launch.workflow != "verity":
        return {}
    match = re.search(r"(?:^| )sevsnp\.data=(?:[^: ]+:){4}(\S+)", line)
    if not match:
        return {"DATA_SIZE": 0}
    size: dict[str, Value] = (
        {} if asked.get("DATA_SIZE") else {"DATA_SIZE": disk.size if (disk := launch.written) else 1}
    )
    return {"DATA_PATH": match[1], **size}


def _word(line: str, pattern: str) -> str:
    match = re.search(rf"(?:^| ){pattern}", line)
    if not match:
        raise LookupError(f"no word like {pattern}")
    return match[1]
