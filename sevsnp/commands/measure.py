# SPDX-License-Identifier: Apache-2.0
"""measure: compute the launch digest of a VM config or of files, without hardware. Exit 0, or 64 for unusable input."""

import argparse
import base64
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sevsnp.commands.arguments import USAGE, Parser, show_error
from sevsnp.errors import UserError
from sevsnp.firmware.gate import REMEDY, check_firmware, residual_risks
from sevsnp.measurement.launch_digest import (
    NO_INITRD,
    KernelHashes,
    Machine,
    checked_cmdline,
    firmware_digest,
    hash_cmdline,
    hash_file,
    launch_digests_of,
    measure_firmware,
    measure_svsm,
    svsm_save_area,
)
from sevsnp.measurement.sev_digest import (
    NO_FEATURES,
    read_info,
    save_areas,
    sev_digest,
    seves_digests,
    write_save_areas,
)
from sevsnp.measurement.vmsa import DEFAULT_KERNEL, HOST_KERNELS, Vmm, host_kernel
from sevsnp.vm_config.config import VmConfig, read_vm_config

DONE = 0
_MOST_COUNTS = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line().parse_args(arguments)
    try:
        config = read_vm_config(options.vm_config) if options.vm_config else None
        _check(options)
        vcpus = options.vcpus or [config.launch.vcpus if config else 1]
        digests = _of_config(options, config, vcpus) if config else _of_files(options, vcpus)
        _show(options, config, digests)
    except UserError as error:
        show_error(error)
        return USAGE
    return DONE


def command_line() -> argparse.ArgumentParser:
    """The options and what they mean."""
    usage = "measure --vm-config FILE | --firmware FILE [--kernel FILE --initrd FILE --append TEXT] …"
    parser = Parser(
        prog="measure",
        usage=usage,
        description="Compute launch digests, of a VM config or of files.",
        epilog="exit: 0 done, 64 wrong command line or file",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--vm-definition", "--vm_definition", "--vm-config", metavar="FILE", type=Path, dest="vm_config",
                      help="a VM config, which names all that is measured")  # fmt: skip
    what.add_argument("--firmware", metavar="FILE", type=Path, help="an OVMF")
    parser.add_argument(
        "--firmware-reason", metavar="TEXT", default="", help="why firmware other than ours is measured"
    )
    parser.add_argument("--kernel", metavar="FILE", type=Path, help="needs the firmware of OvmfPkg/AmdSev")
    parser.add_argument("--initrd", metavar="FILE", type=Path, help="the initramfs; goes with --kernel")
    parser.add_argument("--append", "--cmdline", metavar="TEXT", help="the kernel's command line")
    parser.add_argument("--firmware-hash", metavar="HEX", help="in place of the content of --firmware, see --mode")
    parser.add_argument("--kernel-hash", metavar="HEX", help="SHA-256 in place of --kernel")
    parser.add_argument("--initrd-hash", metavar="HEX", help="SHA-256 in place of --initrd")
    parser.add_argument("--mode", choices=("snp", "seves", "sev", "firmware-hash"), default="snp",
                        help="what is computed (default: snp)")  # fmt: skip
    parser.add_argument(
        "--vcpus", metavar="N,…", type=_counts, help="vCPUs, as 1,2,4 (default: the VM config's, else 1)"
    )
    parser.add_argument("--vcpu-model", metavar="MODEL", help="QEMU's name, or family/model/stepping (EPYC-v4)")
    parser.add_argument("--guest-features", metavar="MASK", type=_mask, help="SEV_FEATURES, as 0x1")
    parser.add_argument("--host-kernel", metavar="NAME", help=f"{', '.join(HOST_KERNELS)} (default: {DEFAULT_KERNEL})")
    parser.add_argument(
        "--vmm", choices=[str(vmm) for vmm in Vmm], default="qemu", help="what starts the guest (default: qemu)"
    )
    parser.add_argument("--svsm", metavar="FILE", type=Path, help="an SVSM that QEMU starts below the firmware")
    parser.add_argument("--vars-size", metavar="BYTES", type=_size, help="of the variables between the two")
    parser.add_argument("--dump-vmsa", metavar="DIR", type=Path, help="write the vCPUs' VMSAs there: vmsa0.bin, …")
    parser.add_argument("--output-format", choices=("hex", "base64"), default="hex", help="default: hex")
    parser.add_argument("--json", action="store_true", help="the digests as JSON")
    return parser


def _counts(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) > _MOST_COUNTS or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise argparse.ArgumentTypeError(f"found {text[:60]!r}, expected numbers as 1,2,4")
    return [int(part) for part in parts]


def _mask(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text[:60]!r}, expected a number as 0x1") from None


def _size(text: str) -> int:
    value = _mask(text)
    if not 0 <= value < 1 << 24 or value % 4096:
        raise argparse.ArgumentTypeError(f"found {text[:60]!r}, expected a multiple of 4096")
    return value


def _check(options: argparse.Namespace) -> None:
    """Refuse options that do not go together, which argparse cannot express."""

    def given(*names: str) -> str:
        return next((f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None), "")

    others = ("kernel", "initrd", "append", "svsm", "vars_size", "firmware_hash", "kernel_hash", "initrd_hash")
    mode = "" if options.mode == "snp" else "--mode"
    if options.vm_config and (wrong := given(*others, "dump_vmsa") or mode):
        raise UserError(f"{wrong}: the VM config says what is measured")
    for name in ("kernel", "initrd"):
        if getattr(options, name) is not None and (wrong := given(f"{name}_hash")):
            raise UserError(f"{wrong}: not with --{name}")
    if options.kernel is None and options.kernel_hash is None and (wrong := given("initrd", "append", "initrd_hash")):
        raise UserError(f"{wrong}: goes with --kernel")
    if options.mode == "firmware-hash" and (wrong := given(*others, "dump_vmsa", "vcpus", "vcpu_model")):
        raise UserError(f"{wrong}: not with --mode firmware-hash, which is of the firmware alone")
    if options.mode in ("sev", "seves") and (wrong := given("firmware_hash", "svsm", "guest_features")):
        raise UserError(f"{wrong}: not with --mode {options.mode}")
    if options.mode == "sev" and (wrong := given("dump_vmsa", "vcpus")):
        raise UserError(f"{wrong}: an SEV guest's digest does not cover its vCPUs")
    beside_svsm = given("kernel", "kernel_hash", "firmware_hash", "guest_features", "host_kernel") or (
        "--vmm" if options.vmm != "qemu" else ""
    )
    if options.svsm and (wrong := beside_svsm):
        raise UserError(f"{wrong}: not with --svsm, which determines it")
    if (options.svsm is None) != (options.vars_size is None):
        raise UserError("--svsm and --vars-size: expected both or neither")


def _machine(options: argparse.Namespace, model: str, features: int | None) -> Machine:
    """The machine that the options describe.

    ``features`` are the VM config's guest features; those of a host kernel named by an option replace them.
    """
    kernel = host_kernel(options.host_kernel or DEFAULT_KERNEL)
    if options.guest_features is not None:
        features = options.guest_features
    elif options.host_kernel or features is None:
        features = kernel.guest_features
    return Machine(options.vcpu_model or model, features, kernel, Vmm(options.vmm))


def _judge(digest: str, firmware: Path, reason: str) -> None:
    try:
        check_firmware(digest, firmware, reason)
    except UserError as error:
        if error.hint != REMEDY:
            raise
        # The settings in the gate's remedy are options here.
        raise UserError(error.message, "say why this firmware is trusted: --firmware-reason TEXT") from None
    for road in residual_risks(digest, reason):
        print(f"open: {road}", file=sys.stderr)


def _of_config(options: argparse.Namespace, config: VmConfig, vcpus: list[int]) -> dict[int, bytes]:
    launch = config.launch
    _judge(launch.firmware.sha256, launch.firmware.path, options.firmware_reason or launch.firmware_reason)
    return launch_digests_of(launch, vcpus, _machine(options, launch.vcpu_model, launch.guest_features))


def _of_files(options: argparse.Namespace, vcpus: list[int]) -> dict[int, bytes]:
    _judge(hash_file(options.firmware, "firmware").hex(), options.firmware, options.firmware_reason)
    if options.mode == "firmware-hash":
        return {1: firmware_digest(options.firmware)}
    if options.svsm:
        model = options.vcpu_model or "EPYC-v4"
        _dump(options, vcpus, lambda: svsm_save_area(options.firmware, options.svsm, options.vars_size, model))
        return measure_svsm(options.firmware, options.svsm, options.vars_size, vcpus, model)
    hashes, machine = _kernel_hashes(options), _machine(options, "EPYC-v4", None)
    features = NO_FEATURES if options.mode == "seves" else machine.guest_features
    _dump(options, vcpus, lambda: save_areas(read_info(options.firmware, False), machine, features))
    if options.mode == "sev":
        return {1: sev_digest(options.firmware, hashes)}
    if options.mode == "seves":
        return seves_digests(options.firmware, hashes, vcpus, machine)
    loaded = _digest(options.firmware_hash, 48, "--firmware-hash") if options.firmware_hash else None
    if loaded:
        print("open: only the firmware's hash is known; whether it starts only the hashed files is not known",
              file=sys.stderr)  # fmt: skip
    return measure_firmware(options.firmware, hashes, vcpus, machine, loaded)[0]


def _kernel_hashes(options: argparse.Namespace) -> KernelHashes | None:
    """The hashes of kernel, initrd and command line, each of a file or as it was given; None without a kernel."""
    if options.kernel_hash:
        kernel = _digest(options.kernel_hash, 32, "--kernel-hash")
    elif options.kernel:
        kernel = hash_file(options.kernel, "kernel")
    else:
        return None
    initrd = NO_INITRD
    if options.initrd_hash:
        initrd = _digest(options.initrd_hash, 32, "--initrd-hash")
    elif options.initrd:
        initrd = hash_file(options.initrd, "initrd")
    return KernelHashes(kernel, initrd, hash_cmdline((options.append or "").encode()))


def _digest(text: str, size: int, option: str) -> bytes:
    found = "".join(text.split()).removeprefix("0x")
    try:
        data = bytes.fromhex(found)
    except ValueError:
        data = b""
    if len(data) != size:
        raise UserError(f"{option}: expected {2 * size} hex digits ({size} bytes)")
    return data


def _dump(options: argparse.Namespace, vcpus: list[int], areas: Callable[[], tuple[bytes, bytes]]) -> None:
    if options.dump_vmsa is None:
        return
    try:
        write_save_areas(options.dump_vmsa, *areas(), max(vcpus))
    except OSError as error:
        raise UserError(f"{options.dump_vmsa}: cannot write the VMSAs: {error.strerror}") from error


def _show(options: argparse.Namespace, config: VmConfig | None, digests: dict[int, bytes]) -> None:
    reference = config.reference.launch_digest if config and config.reference else None
    own = digests.get(config.launch.vcpus) if config else None

    def shown(digest: bytes) -> str:
        return digest.hex() if options.output_format == "hex" else base64.b64encode(digest).decode()

    if options.json:
        document: dict[str, Any] = {"launch_digests": {str(count): shown(one) for count, one in digests.items()}}
        if reference is not None:
            document |= {"reference": reference.hex(), "equal": own == reference}
        print(json.dumps(document, indent=2))
    if config and max(digests) > 1 and b"acpi=off" in checked_cmdline(config.launch).split():
        print(
            "more than one vCPU needs ACPI: set up with CPUS=N, which changes the command line and the digest",
            file=sys.stderr,
        )
    if config and config.reference and config.reference.stage and set(digests) != {config.launch.vcpus}:
        print(
            f"its kernel is a stage with ACPI tables for {config.launch.vcpus} vCPUs: set up with CPUS=N for others",
            file=sys.stderr,
        )
    if options.json:
        return
    for count, one in digests.items():
        print(shown(one) if len(digests) == 1 else f"{count:>4}  {shown(one)}")
    if reference is not None and own is not None and own != reference:
        print(f"the VM config's reference differs: {reference.hex()}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
