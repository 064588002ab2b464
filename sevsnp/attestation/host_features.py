"""sev-feature-info: what this host's SEV-SNP can, and the [policy] that fits it, ready to paste. Exit 0, 3 or 64.

Sources: Linux include/uapi/linux/psp-sev.h (SEV_ISSUE_CMD, SNP_PLATFORM_STATUS), kvm_amd's parameters. What a host says
of itself proves nothing: the policy belongs to the owner, who reads it before he uses it.
"""

import fcntl
import json
import platform
import re
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sevsnp.attestation.cli import Parser, guarded
from sevsnp.attestation.report import Cpuid, decode_tcb, product_of
from sevsnp.attestation.vmsa import LAYOUTS
from sevsnp.errors import UserError
from sevsnp.vm.config import Product, Tcb

DEVICE, CPUINFO = Path("/dev/sev"), Path("/proc/cpuinfo")
PARAMETERS = Path("/sys/module/kvm_amd/parameters")
_ISSUE_COMMAND = 0xC0105300  # _IOWR('S', 0, struct sev_issue_cmd: cmd, data, error, packed to 16 bytes)
_SNP_PLATFORM_STATUS = 9
# struct sev_user_data_snp_status: API major, minor, state, RMP flag, build, flags, guests, current and reported TCB
_STATUS = struct.Struct("<BBBBIII8s8s")
_STATES = {0: "not initialised", 1: "initialised"}


@dataclass(frozen=True)
class Status:
    """SNP_PLATFORM_STATUS as the secure processor answers it."""

    api: tuple[int, int]
    build: int
    state: str
    rmp_initialized: bool
    mask_chip_id: bool
    mask_chip_key: bool
    vlek: bool
    guests: int
    current_tcb: Tcb
    reported_tcb: Tcb


def decode_status(data: bytes, product: Product) -> Status:
    """The 32 bytes of SNP_PLATFORM_STATUS in a product's TCB layout. Raises :class:`UserError`."""
    if len(data) != _STATUS.size:
        raise UserError(f"SNP_PLATFORM_STATUS: found {len(data)} bytes, expected {_STATUS.size}")
    major, minor, state, rmp, build, flags, guests, current, reported = _STATUS.unpack(data)
    return Status(
        (major, minor), build, _STATES.get(state, f"state {state}"), bool(rmp & 1), bool(flags & 1), bool(flags & 2),
        bool(flags & 4), guests, decode_tcb(current, product), decode_tcb(reported, product),
    )  # fmt: skip


def read_status(device: Path) -> bytes:
    """Ask the secure processor through ``device``. Raises :class:`UserError`."""
    answer = array("B", bytes(_STATUS.size))
    command = array("B", struct.pack("<IQI", _SNP_PLATFORM_STATUS, answer.buffer_info()[0], 0))
    try:
        with device.open("rb", buffering=0) as stream:
            fcntl.ioctl(stream, _ISSUE_COMMAND, command, True)
    except FileNotFoundError:
        raise UserError(f"{device}: not there: no secure processor, or its driver (ccp) is not loaded") from None
    except PermissionError:
        raise UserError(f"{device}: not open to this user", "run it as root") from None
    except OSError as error:
        (code,) = struct.unpack_from("<I", command, 12)
        raise UserError(f"{device}: SNP_PLATFORM_STATUS: {error.strerror} (firmware error {code:#x})") from error
    return answer.tobytes()


def read_cpuid(cpuinfo: Path) -> Cpuid:
    """Family, model and stepping of the first processor. Raises :class:`UserError`."""
    text = cpuinfo.read_text(errors="replace")
    numbers = [re.search(rf"^{name}\s*:\s*(\d+)$", text, re.MULTILINE) for name in ("cpu family", "model", "stepping")]
    if "AuthenticAMD" not in text or not all(numbers):
        raise UserError(f"{cpuinfo}: not an AMD processor")
    return Cpuid(*(int(one[1]) for one in numbers if one))


def layout_of(release: str, debug_swap: bool) -> str:
    """The VMSA layout of a host with this kernel release (uname -r)."""
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (6, 9)
    if version >= (6, 9):
        return "linux-6.9"
    return "linux-6.6" if version >= (6, 6) and debug_swap else "linux-6.5"


def policy_section(product: str, status: Status) -> str:
    """The [policy] that fits, in TOML."""
    floor = ", ".join(f"{name} = {value}" for name, value in vars(status.reported_tcb).items() if value is not None)
    profile = "legacy-milan" if product == "Milan" else "default"
    api = f"{status.api[0]}.{status.api[1]}.{status.build}"
    lines = [f'[policy]\nprofile = "{profile}"', f"firmware = {{ at_least = \"{api}\" }}"]
    lines += [f"{name} = {{ {floor} }}" for name in ("reported_tcb", "committed_tcb", "launch_tcb")]
    if status.mask_chip_key:
        lines.append("# This host masks its chip key: its reports are refused until it no longer does.")
    return "\n".join(lines) + "\n"


def collect(device: Path, cpuinfo: Path, parameters: Path, release: str) -> dict[str, Any]:
    """Everything that is known of this host, for programs; ``problem`` where SEV-SNP is not there."""
    try:
        cpuid = read_cpuid(cpuinfo)
        product = product_of(cpuid)
    except UserError as error:
        return {"product": "", "kernel": release, "status": None, "policy": "", "problem": str(error)}
    switches = {name: _parameter(parameters / name) for name in ("sev", "sev_es", "sev_snp", "debug_swap")}
    layout = layout_of(release, switches["debug_swap"] == "Y")
    found: dict[str, Any] = {
        "product": product, "cpuid": vars(cpuid), "kernel": release, "kvm_amd": switches, "vmsa": layout,
        "guest_features": f"{LAYOUTS[layout].guest_features:#x}", "status": None, "policy": "", "problem": "",
    }  # fmt: skip
    try:
        status = decode_status(read_status(device), product)
    except UserError as error:
        return {**found, "problem": str(error)}
    shown = {**vars(status), "current_tcb": vars(status.current_tcb), "reported_tcb": vars(status.reported_tcb)}
    return {**found, "status": shown, "policy": policy_section(product, status)}


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Show what this host's SEV-SNP can, and a policy that fits it."
    parser = Parser(prog="sev-feature-info", description=description, epilog="exit: 0, 3 no SEV-SNP here, 64 usage")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    def work() -> int:
        found = collect(DEVICE, CPUINFO, PARAMETERS, platform.release())
        if options.json:
            print(json.dumps(found, indent=2))
        else:
            _print(found)
        return 3 if found["problem"] else 0

    return guarded(work)


def _print(found: dict[str, Any]) -> None:
    for name, value in found.items():
        if name not in ("policy", "problem", "status"):
            text = ", ".join(f"{part} {one}" for part, one in value.items()) if isinstance(value, dict) else value
            print(f"{name}: {text}")
    for name, value in (found["status"] or {}).items():
        print(f"{name}: {value}")
    print(found["problem"] or f"\n{found['policy']}", end="\n" if found["problem"] else "")


def _parameter(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "not there"


if __name__ == "__main__":
    sys.exit(main())
