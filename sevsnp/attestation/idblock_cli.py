"""idblock-generator: the signed ID block of a VM config's guest. Exit 0, or 64 with what is wrong."""

import dataclasses
import getpass
import sys
from collections.abc import Sequence
from pathlib import Path

from sevsnp.attestation.cli import Parser, guarded
from sevsnp.attestation.id_block import (
    IdBlock,
    PrivateKey,
    check_launch,
    key_digest,
    load_private_key,
    make_auth,
    to_base64,
)
from sevsnp.errors import UserError
from sevsnp.files import write_atomic
from sevsnp.vm.config import VmConfig, read_vm_config, render_vm_config

BLOCK_FILE, AUTH_FILE = "id-block.base64", "auth-block.base64"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="idblock-generator", description="Sign the ID block of a VM config's guest.")
    parser.add_argument("--vm-definition", "--vm_definition", metavar="FILE", type=Path, required=True)
    parser.add_argument("--id-key-path", metavar="PEM", type=Path, required=True, help="signs the block; P-384")
    parser.add_argument("--auth-key-path", metavar="PEM", type=Path, required=True, help="signs the ID key; P-384")
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path(), help=f"for {BLOCK_FILE}, {AUTH_FILE}")
    parser.add_argument("--vm-config-output", metavar="FILE", type=Path, help="the VM config with both in it")
    options = parser.parse_args(arguments)

    def work() -> int:
        with_block = signed_config(options.vm_definition, *_load(options.id_key_path, options.auth_key_path))
        block, auth = with_block.launch.id_block, with_block.launch.id_auth
        options.output.mkdir(parents=True, exist_ok=True)
        write_atomic(options.output / BLOCK_FILE, to_base64(block) + "\n")
        write_atomic(options.output / AUTH_FILE, to_base64(auth) + "\n")
        if options.vm_config_output:
            target = options.vm_config_output.resolve()
            write_atomic(target, render_vm_config(dataclasses.replace(with_block, source=target)))
        reference = with_block.require_reference()
        print(f"ID key digest {reference.id_key_digest.hex()}\nauthor key digest {reference.author_key_digest.hex()}")
        return 0

    return guarded(work)


def make_id_blocks(*, vm_configs: Sequence[Path], id_key: Path, author_key: Path, output: Path) -> None:
    """`doit idblock`: for each VM config both blocks in base64, and beside it NAME.id.toml, the VM config with them."""
    keys = _load(id_key, author_key)
    for path in vm_configs:
        name = path.name.removesuffix(".toml")
        middle = ".emulated" if name.endswith(".emulated") else ""
        with_block = signed_config(path, *keys)
        launch = with_block.launch
        write_atomic(output / f"id-block{middle}.base64", to_base64(launch.id_block) + "\n")
        write_atomic(output / f"auth-block{middle}.base64", to_base64(launch.id_auth) + "\n")
        target = (output / f"{name}.id.toml").resolve()
        write_atomic(target, render_vm_config(dataclasses.replace(with_block, source=target)))
        print(f"{target.name}: launch and attest it with VM_CONFIG={output / target.name}")


def _load(id_key: Path, author_key: Path) -> tuple[PrivateKey, PrivateKey]:
    """Both keys; encrypted ones are asked for their passphrase at the terminal. Raises :class:`UserError`."""
    if id_key.resolve() == author_key.resolve():
        raise UserError(f"{id_key}: ID key and author key are one file, expected two keys")
    return load_private_key(id_key, getpass.getpass), load_private_key(author_key, getpass.getpass)


def signed_config(vm_config: Path, id_key: PrivateKey, author_key: PrivateKey) -> VmConfig:
    """The VM config with the ID block of its guest, and the key digests among its reference values."""
    config = read_vm_config(vm_config)
    reference, launch = config.require_reference(), config.launch
    block = IdBlock(
        launch_digest=reference.launch_digest,
        family_id=reference.family_id,
        image_id=reference.image_id,
        guest_svn=reference.guest_svn,
        policy=launch.guest_policy,
    ).encode()
    auth = make_auth(block, id_key, author_key)
    check_launch(block, auth, reference.launch_digest, launch.guest_policy)
    return dataclasses.replace(
        config,
        launch=dataclasses.replace(launch, id_block=block, id_auth=auth),
        reference=dataclasses.replace(
            reference,
            id_key_digest=key_digest(id_key.public_key()),
            author_key_digest=key_digest(author_key.public_key()),
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
