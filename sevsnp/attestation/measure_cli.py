"""measure: the launch digest of a VM config, or of files, for one or more numbers of vCPUs. Exit 0, or 64."""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sevsnp.attestation.cli import Parser, guarded
from sevsnp.attestation.launch_digest import NO_INITRD, KernelHashes, hash_cmdline, launch_digests
from sevsnp.attestation.vmsa import LAYOUTS, VCPU_SIGNATURES, find_layout, signature_of, vcpu_signature
from sevsnp.errors import UserError
from sevsnp.files import sha256_file
from sevsnp.vm.config import read_vm_config


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="measure", description="Compute the SNP launch digest of a QEMU direct boot.")
    parser.add_argument("--vm_definition", "--vm-definition", metavar="FILE", type=Path, help="a VM config, or:")
    texts = {"firmware": "OVMF, AmdSev build", "kernel": "none: not measured", "initrd": "none: as QEMU without one"}
    for name, text in texts.items():
        parser.add_argument(f"--{name}", metavar="FILE", type=Path, help=text)
    parser.add_argument("--cmdline", metavar="TEXT", help="the kernel's command line; default empty")
    parser.add_argument("--vcpus", metavar="N[,N…]", type=_numbers, help="several at once: 1,2,4; default 1")
    parser.add_argument("--vcpu-model", metavar="MODEL", help="as QEMU names it, or FAMILY-MODEL-STEPPING: 25-17-1")
    parser.add_argument("--layout", metavar="HOST", help=f"the host's VMSA: {', '.join(LAYOUTS)}")
    parser.add_argument("--guest-features", metavar="N", type=_integer, help="SEV_FEATURES; default: the layout's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    return guarded(lambda: _measure(options))


def _measure(options: argparse.Namespace) -> int:
    firmware, hashes, numbers, signature, features, layout = _inputs(options)
    try:
        with firmware.open("rb") as stream:
            digests = launch_digests(
                stream, stream.seek(0, io.SEEK_END), hashes, vcpus=numbers, signature=signature,
                guest_features=features, name=str(firmware), layout=layout,
            )  # fmt: skip
    except OSError as error:
        raise UserError(f"{firmware}: cannot read the firmware: {error.strerror}") from error
    if options.json:
        document = {
            "launch_digests": {str(number): digest.hex() for number, digest in sorted(digests.items())},
            "layout": layout, "guest_features": f"{features:#x}", "vcpu_signature": f"{signature:#x}",
            **({f"{name}_sha256": digest.hex() for name, digest in vars(hashes).items()} if hashes else {}),
        }  # fmt: skip
        print(json.dumps(document, indent=2))
    elif len(digests) == 1:
        print(*(digest.hex() for digest in digests.values()))
    else:
        for number, digest in sorted(digests.items()):
            print(f"{number:>4} vCPUs  {digest.hex()}")
    return 0


def _inputs(options: argparse.Namespace) -> tuple[Path, KernelHashes | None, list[int], int, int, str]:
    files = [options.firmware, options.kernel]
    if options.vm_definition:
        if any([*files, options.initrd, options.cmdline is not None]):
            raise UserError("--vm_definition: names the files itself, expected no --firmware, --kernel and the like")
        launch = read_vm_config(options.vm_definition).launch
        layout = options.layout or launch.vmsa
        features = options.guest_features
        if features is None:
            features = find_layout(layout).guest_features if options.layout else launch.guest_features
        numbers = options.vcpus or [launch.vcpus]
        signature = _signature(options.vcpu_model or launch.vcpu_model)
        return launch.firmware.path, KernelHashes.of(launch), numbers, signature, features, layout
    if not options.firmware:
        raise UserError("expected --vm_definition, or --firmware")
    if not options.kernel and (options.initrd or options.cmdline is not None):
        raise UserError("--initrd, --cmdline: are measured with a --kernel only")
    layout = options.layout or "linux-6.9"
    features = find_layout(layout).guest_features if options.guest_features is None else options.guest_features
    hashes = None
    if options.kernel:
        hashes = KernelHashes(
            _sha256(options.kernel),
            _sha256(options.initrd) if options.initrd else NO_INITRD,
            hash_cmdline((options.cmdline or "").encode()),
        )
    signature = _signature(options.vcpu_model or "EPYC-v4")
    return options.firmware, hashes, options.vcpus or [1], signature, features, layout


def _sha256(path: Path) -> bytes:
    try:
        return bytes.fromhex(sha256_file(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error


def _signature(model: str) -> int:
    parts = model.split("-")
    if model not in VCPU_SIGNATURES and len(parts) == 3 and all(part.isascii() and part.isdigit() for part in parts):
        family, number, stepping = (int(part) for part in parts)
        return signature_of(family, number, stepping)
    return vcpu_signature(model)


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 1 <= int(part[:6]) <= 4096 for part in parts):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected numbers from 1 to 4096, as 1,2,4")
    return sorted({int(part) for part in parts})


def _integer(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number, as 0x1") from None


if __name__ == "__main__":
    sys.exit(main())
