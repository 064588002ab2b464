# SPDX-License-Identifier: Apache-2.0
"""sev-feature-info: print the status of a host's secure processor, and a policy that fits it.

Sources: AMD 56860, SNP_PLATFORM_STATUS; Linux include/uapi/linux/psp-sev.h (the ioctl of /dev/sev). Integers are
little-endian. Exit 0 done, 3 this machine has no answer, 64 usage.
"""

import argparse
import ctypes
import errno
import fcntl
import json
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sevsnp.attestation.report import Cpuid, decode_tcb, product_of
from sevsnp.commands.arguments import Parser
from sevsnp.commands.measure import DONE
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb

DEVICE = Path("/dev/sev")
CPUINFO = Path("/proc/cpuinfo")
NO_ANSWER = 3

STATUS_SIZE = 32
_STATUS = struct.Struct("<BBBBIII8s8s")
_COMMAND = struct.Struct("<IQI")  # struct sev_issue_cmd: command, address of the answer, status of the firmware
_SNP_PLATFORM_STATUS = 9
_ISSUE = 3 << 30 | _COMMAND.size << 16 | ord("S") << 8  # _IOWR('S', 0, struct sev_issue_cmd)
_STATES = {0: "uninitialized", 1: "initialized"}
_FLAGS = (
    "mask_chip_id", "mask_chip_key", "vlek_en", "feature_info", "rapl_dis", "ciphertext_hiding_cap",
    "ciphertext_hiding_en",
)  # fmt: skip
_FIRST_KERNEL = "expected Linux 6.11 or newer with SEV-SNP on: docs/hardware.md"


@dataclass(frozen=True)
class PlatformStatus:
    """SNP_PLATFORM_STATUS. ``flags`` have their names in Linux; a flag without a name has its position (bit_7)."""

    product: Product
    api: str
    build: int
    state: str
    rmp_initialized: bool
    flags: dict[str, bool]
    guests: int
    current_tcb: Tcb
    reported_tcb: Tcb


def parse_status(data: bytes, product: Product) -> PlatformStatus:
    """Read an answer of 32 bytes; the TCB versions have the layout of ``product``.

    Raises :class:`UserError` for another length, and for bytes that must be zero and are not.
    """
    if len(data) != STATUS_SIZE:
        raise UserError(f"platform status: found {len(data)} bytes, expected {STATUS_SIZE}")
    major, minor, state, rmp, build, flags, guests, current, reported = _STATUS.unpack(data)
    if rmp > 1:
        raise UserError(f"platform status: byte 3 is {rmp:#x}, expected 0 or 1")
    later = {f"bit_{bit}": True for bit in range(len(_FLAGS), 32) if flags >> bit & 1}
    return PlatformStatus(
        product=product,
        api=f"{major}.{minor}",
        build=build,
        state=_STATES.get(state, f"unknown ({state})"),
        rmp_initialized=bool(rmp),
        flags={**{name: bool(flags >> bit & 1) for bit, name in enumerate(_FLAGS)}, **later},
        guests=guests,
        current_tcb=decode_tcb(current, product),
        reported_tcb=decode_tcb(reported, product),
    )


def read_status(device: Path = DEVICE) -> bytes:
    """The answer (32 bytes) of this machine's secure processor. Raises :class:`UserError` if there is no answer."""
    answer = ctypes.create_string_buffer(STATUS_SIZE)
    command = bytearray(_COMMAND.pack(_SNP_PLATFORM_STATUS, ctypes.addressof(answer), 0))
    try:
        with device.open("rb+", buffering=0) as stream:
            fcntl.ioctl(stream, _ISSUE, command, True)
    except FileNotFoundError:
        raise UserError(
            f"{device}: no such device: this machine has no AMD secure processor for SEV, or no driver for it (ccp)",
            "run it on the SNP host itself, not in a guest",
        ) from None
    except PermissionError:
        raise UserError(f"{device}: this user may not open it", "run it as root") from None
    except OSError as error:
        status = _COMMAND.unpack(command)[2]
        if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ENODEV):
            why = f"{device}: no SNP_PLATFORM_STATUS: {error.strerror}"
            raise UserError(why, f"SEV-SNP is off, or the kernel too old: {_FIRST_KERNEL}") from None
        raise UserError(f"{device}: {error.strerror}, firmware status {status:#x}") from None
    return answer.raw


def host_product(cpuinfo: Path = CPUINFO) -> Product:
    """This machine's product, from family and model in /proc/cpuinfo."""
    text = cpuinfo.read_text(errors="replace")
    numbers = [re.search(rf"^{name}\s*:\s*(\d+)$", text, re.MULTILINE) for name in ("cpu family", "model", "stepping")]
    family, model, stepping = (int(number[1]) if number else 0 for number in numbers)
    return product_of(Cpuid(family, model, stepping))


def policy_section(status: PlatformStatus) -> str:
    """A [policy] (TOML) that this platform satisfies and a platform with an older TCB does not."""
    tcb = {name: value for name, value in asdict(status.reported_tcb).items() if value is not None}
    floor = ", ".join(f"{name} = {value}" for name, value in tcb.items())
    lines = [
        "[policy]",
        'profile = "legacy-milan"' if status.product == "Milan" else 'profile = "default"',
        f'product = ["{status.product}"]',
        *(f"{name}_tcb = {{ {floor} }}" for name in ("reported", "committed", "launch")),
        f'firmware = {{ at_least = "{status.api}.{status.build}" }}',
    ]
    bits = {"rapl_dis": "rapl_dis", "ciphertext_hiding_en": "ciphertext_hiding_dram_en"}
    if said := [f"{name} = true" for flag, name in bits.items() if status.flags[flag]]:
        lines.append(f"platform_info = {{ {', '.join(said)} }}")
    return "\n".join(lines) + "\n"


def settings_lines(status: PlatformStatus) -> str:
    """The same policy as settings, as far as config.yaml can express it."""
    return f'product: {status.product}\nmin_tcb: "{status.reported_tcb.setting()}"\n'


def warnings(status: PlatformStatus) -> list[str]:
    """The reasons why reports of this platform are not accepted."""
    found = []
    if status.state != _STATES[1]:
        found.append(f"the platform is {status.state}: no guest can be started")
    if status.current_tcb != status.reported_tcb:
        found.append("the current TCB is not the reported one: the firmware is not committed, or held back")
    if status.flags["vlek_en"]:
        found.append("a VLEK is loaded: reports may be signed by it, which the policy's signer must allow")
    if status.flags["mask_chip_key"]:
        found.append("the chip key is masked: reports are not signed")
    if status.flags["mask_chip_id"]:
        found.append("the chip id is masked: reports do not say which chip it is")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line()
    options = parser.parse_args(arguments)
    if options.status is not None and options.product is None:
        # This machine's processor says nothing about the machine that gave the answer.
        parser.error("--status: the answer does not name its processor: give --product Milan|Genoa|Turin")
    try:
        data = read_status(options.device) if options.status is None else options.status
        status = parse_status(data, options.product or host_product())
    except UserError as error:
        print(error, file=sys.stderr)
        return NO_ANSWER
    if options.json:
        document = {**asdict(status), "warnings": warnings(status), "policy": policy_section(status)}
        print(json.dumps(document, indent=2))
    else:
        _show(status)
    return DONE


def command_line() -> argparse.ArgumentParser:
    """The options and what they mean."""
    parser = Parser(
        prog="sev-feature-info",
        description="On an SNP host: the secure processor's status and TCB, and the policy that fits it.",
        epilog="exit: 0 done, 3 this machine has no answer, 64 wrong command line or file",
    )
    parser.add_argument(
        "--product",
        choices=("Milan", "Genoa", "Turin"),
        help="the processor (default: this machine's; required with --status)",
    )
    parser.add_argument(
        "--device", metavar="FILE", type=Path, default=DEVICE, help="the device that is asked (default: %(default)s)"
    )
    parser.add_argument("--status", metavar="HEX", type=bytes.fromhex, help="an answer from elsewhere, 64 digits")
    parser.add_argument("--json", action="store_true", help="all of it as JSON")
    return parser


def _show(status: PlatformStatus) -> None:
    rows: list[tuple[str, Any]] = [
        ("product", status.product),
        ("firmware", f"{status.api} build {status.build}"),
        ("state", status.state),
        ("RMP initialized", "yes" if status.rmp_initialized else "no"),
        ("guests", status.guests),
        *((name, "yes" if value else "no") for name, value in status.flags.items()),
        *(
            (f"{name} TCB", _tcb(tcb))
            for name, tcb in (("current", status.current_tcb), ("reported", status.reported_tcb))
        ),
    ]
    for name, value in rows:
        print(f"{name:<22} {value}")
    for warning in warnings(status):
        print(f"warning: {warning}")
    print(f"\n# for config.yaml\n{settings_lines(status)}\n# for a VM config, or a policy file without its first line")
    print(policy_section(status), end="")


def _tcb(tcb: Tcb) -> str:
    return " ".join(f"{name} {value}" for name, value in asdict(tcb).items() if value is not None)


if __name__ == "__main__":
    sys.exit(main())
