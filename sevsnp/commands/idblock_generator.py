# SPDX-License-Identifier: Apache-2.0
"""idblock-generator: sign an ID block for a VM config's guest. Exit 0 done, 64 usage or unusable input."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sevsnp.commands.arguments import Parser, guarded
from sevsnp.commands.measure import DONE
from sevsnp.measurement.id_block import make_identity, write_identity
from sevsnp.measurement.signed_config import block_of, load_key
from sevsnp.vm_config.config import read_vm_config

BLOCK, AUTH = "id-block.base64", "auth-block.base64"


def main(arguments: Sequence[str] | None = None) -> int:
    options = command_line().parse_args(arguments)
    return guarded(lambda: _generate(options), options.output)


def _generate(options: argparse.Namespace) -> int:
    block = block_of(read_vm_config(options.vm_config))
    id_key = load_key(options.id_key_path)
    author_key = load_key(options.auth_key_path) if options.auth_key_path else None
    identity = make_identity(block, id_key, author_key)
    write_identity(identity, options.output / BLOCK, options.output / AUTH)
    print(f'id_key_digest = "{identity.id_key_digest.hex()}"')
    print(f'author_key_digest = "{identity.author_key_digest.hex()}"')
    return DONE


def command_line() -> argparse.ArgumentParser:
    """The options and what they mean."""
    parser = Parser(
        prog="idblock-generator",
        description=f"Write {BLOCK} and {AUTH}: launch digest, family, image and SVN from the VM config's [reference], "
        "the guest policy from its [launch]. The digests that it prints are those that reports will have.",
        epilog="exit: 0 done, 64 wrong command line or file",
    )
    parser.add_argument(
        "--vm-definition",
        "--vm_definition",
        "--vm-config",
        metavar="FILE",
        type=Path,
        required=True,
        dest="vm_config",
        help="the VM config of the guest",
    )
    parser.add_argument("--id-key-path", metavar="FILE", type=Path, required=True, help="P-384, PKCS#8 or SEC1 in PEM")
    parser.add_argument(
        "--auth-key-path",
        metavar="FILE",
        type=Path,
        help="the same formats; signs the ID key, which some firmware requires",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, default=Path(), help="directory of the two files (default: this one)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
