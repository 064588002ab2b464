# SPDX-License-Identifier: Apache-2.0
"""Sign VM configs: with an ID block the secure processor starts only this guest, and its reports name the signer."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from sevsnp.errors import UserError
from sevsnp.firmware.gate import check_launch_firmware
from sevsnp.keys.signature import load_signing_key
from sevsnp.measurement.id_block import CURVE, IdBlock, Identity, kind_of, make_identity, write_identity
from sevsnp.system.files import write_atomic
from sevsnp.vm_config.config import File, VmConfig, read_vm_config, render_vm_config

_MAKE = "make one: (umask 077; openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out key.pem)"


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The P-384 private key in ``path``, PEM of PKCS#8 or SEC1; for an encrypted key, the user types the password.

    Raises :class:`UserError` for another kind of key, and for a key that others may read.
    """
    key = load_signing_key(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != CURVE:
        raise UserError(f"{path}: found {kind_of(key)}, expected a P-384 key", _MAKE)
    return key


def block_of(config: VmConfig) -> IdBlock:
    """The ID block of a VM config's guest: launch digest, family, image and SVN from the reference values, and policy.

    Raises :class:`UserError` for a firmware with which no guest may start.
    """
    reference = config.require_reference()
    check_launch_firmware(config.launch)
    return IdBlock(
        launch_digest=reference.launch_digest,
        family_id=reference.family_id,
        image_id=reference.image_id,
        guest_svn=reference.guest_svn,
        policy=config.launch.guest_policy,
    )


def sign_configs(
    *, configs: Sequence[Path], id_key: Path | None, author_key: Path | None, template: Path, output: Path
) -> None:
    """Write each VM config again below the directory ``output``, with its ID block and ID authentication beside it.

    Without an ``author_key`` the block has no author. Raises :class:`UserError` if there is no ID key, or if a key is
    not P-384.
    """
    if id_key is None:
        raise UserError("ID_KEY: not set, expected a P-384 private key", _MAKE)
    keys = load_key(id_key), load_key(author_key) if author_key else None
    output.mkdir(parents=True, exist_ok=True)
    for path in configs:
        config = read_vm_config(path)
        signed = with_identity(config, make_identity(block_of(config), *keys), output)
        write_atomic(signed.source, render_vm_config(signed, template))
        reference = signed.require_reference()
        print(f"  {output / path.name}: with an ID block")
    print(f"  ID key {reference.id_key_digest.hex()}")
    print(f"  author key {reference.author_key_digest.hex() if author_key else 'none (some firmware insists on one)'}")


def with_identity(config: VmConfig, identity: Identity, directory: Path) -> VmConfig:
    """``config`` with ``identity``, for a file in ``directory``. This writes the identity there, but not the config."""
    suffix = ".emulated" if config.launch.platform == "emulated" else ""
    paths = [(directory / f"{name}-block{suffix}.base64").resolve() for name in ("id", "auth")]
    write_identity(identity, *paths)
    block, auth = (File(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths)
    reference = replace(
        config.require_reference(),
        id_key_digest=identity.id_key_digest,
        author_key_digest=identity.author_key_digest,
    )
    launch = replace(config.launch, id_block=block, id_auth=auth)
    return replace(config, source=paths[0].parent / config.source.name, launch=launch, reference=reference)
