# SPDX-License-Identifier: Apache-2.0
"""sev-feature-info: print the status of a host's secure processor, and a policy that fits it.

Exit 0 done, 3 this machine gives no status, 64 usage.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sevsnp.commands.arguments import Parser, show_error
from sevsnp.commands.measure import DONE
from sevsnp.errors import UserError
from sevsnp.host_setup.platform_status import DEVICE, STATES, PlatformStatus, host_product, parse_status, read_status
from sevsnp.vm_config.config import Tcb

NO_ANSWER = 3


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
    if status.state != STATES[1]:
        found.append(f"the platform is {status.state}: no guest can be started")
    if status.current_tcb != status.reported_tcb:
        found.append("the current TCB differs from the reported one: the firmware is not committed, or held back")
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
        show_error(error)
        return NO_ANSWER
    if options.json:
        document = {**asdict(status), "warnings": warnings(status), "policy": policy_section(status)}
        print(json.dumps(document, indent=2))
    else:
        _show(status)
    return DONE


def _status(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!a:.60}, expected 64 hex digits") from None


def command_line() -> argparse.ArgumentParser:
    """The options and what they mean."""
    parser = Parser(
        prog="sev-feature-info",
        description="On an SNP host: the secure processor's status and TCB, and the policy that fits it.",
        epilog="exit: 0 done, 3 this machine gives no status, 64 wrong command line or file",
    )
    parser.add_argument(
        "--product",
        choices=("Milan", "Genoa", "Turin"),
        help="the processor (default: this machine's; required with --status)",
    )
    parser.add_argument(
        "--device", metavar="FILE", type=Path, default=DEVICE, help="the device to ask (default: %(default)s)"
    )
    parser.add_argument("--status", metavar="HEX", type=_status, help="a status from another machine, 64 hex digits")
    parser.add_argument("--json", action="store_true", help="the whole status as JSON")
    return parser


def _show(status: PlatformStatus) -> None:
    rows: list[tuple[str, Any]] = [
        ("product", status.product),
        ("firmware", f"{status.api} build {status.build}"),
        ("state", status.state),
        ("RMP initialized", "yes" if status.rmp_initialized else "no"),
        ("alias check complete", "yes" if status.alias_check_complete else "no"),
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
