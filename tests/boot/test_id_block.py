# SPDX-License-Identifier: Apache-2.0
"""A guest with an ID block: only the signed guest starts with it, and its report names the signing keys."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sevsnp.attestation.report import parse_report
from sevsnp.e2e.guest import wait_for_evidence
from sevsnp.errors import UserError
from sevsnp.measurement.id_block import Identity, make_identity
from sevsnp.measurement.launch_digest import KernelHashes, hash_cmdline
from sevsnp.measurement.signed_config import block_of, with_identity
from sevsnp.owner.client import ask
from sevsnp.vm_config.config import VmConfig
from tests.conftest import Built
from tests.support.harness import BOOT_SECONDS, boot

pytestmark = pytest.mark.boot

Signed = tuple[VmConfig, Identity]


@pytest.fixture(scope="module")
def signed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    config = built.config("emulated")
    reference = dataclasses.replace(config.require_reference(), family_id=b"f" * 16, image_id=b"i" * 16, guest_svn=9)
    config = dataclasses.replace(config, reference=reference)
    keys = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    identity = make_identity(block_of(config), *keys)
    yield with_identity(config, identity, tmp_path_factory.mktemp("idblock")), identity


@pytest.mark.full
def test_the_report_has_the_digests_of_the_signing_keys(built: Built, signed: Signed, tmp_path: Path) -> None:
    config, identity = signed
    with boot(config.launch, built.qemu, tmp_path / "state") as guest:
        wait_for_evidence(guest.process, guest.options.attest_port, BOOT_SECONDS)
        answer = ask("127.0.0.1", guest.options.attest_port, os.urandom(32))
    report = parse_report(answer.report, config.launch.product)
    assert report.measurement == config.require_reference().launch_digest
    assert (report.id_key_digest, report.author_key_digest) == (identity.id_key_digest, identity.author_key_digest)
    assert (report.family_id, report.image_id, report.guest_svn) == (b"f" * 16, b"i" * 16, 9)
    assert report.author_key


def test_another_guest_does_not_start_with_the_id_block(built: Built, signed: Signed, tmp_path: Path) -> None:
    launch = signed[0].launch
    hashes = dataclasses.replace(KernelHashes.of(launch), cmdline=hash_cmdline(b"init=/bin/sh"))
    with pytest.raises(UserError, match="BAD_MEASUREMENT"), boot(launch, built.qemu, tmp_path / "one", hashes=hashes):
        pass
    assert not (tmp_path / "one" / "ark.pem").exists()
    policy = dataclasses.replace(launch, guest_policy=0xB0000)
    with pytest.raises(UserError, match="POLICY_FAILURE"), boot(policy, built.qemu, tmp_path / "two"):
        pass
    # Controls: without it the other guest is started, and measures as what it is; with it the one that was signed.
    plain = dataclasses.replace(launch, id_block=None, id_auth=None)
    for name, one, changes in (("three", plain, {"hashes": hashes}), ("four", launch, {})):
        with boot(one, built.qemu, tmp_path / name, **changes) as guest:  # type: ignore[arg-type]
            assert guest.process.poll() is None
    digests = [(tmp_path / name / "launch-digest.emulated.txt").read_text().strip() for name in ("three", "four")]
    assert digests[0] != digests[1] == signed[0].require_reference().launch_digest.hex()
