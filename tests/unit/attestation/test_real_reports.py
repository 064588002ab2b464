# SPDX-License-Identifier: Apache-2.0
"""Real reports of real chips, with the results that the README beside them states."""

from datetime import UTC, datetime

import pytest

from sevsnp.attestation.appraisal import Evidence, Expected, Refused
from sevsnp.attestation.report import parse_report
from sevsnp.attestation.verifier import inspect_report, verify_report
from sevsnp.emulation.verify import verify_emulated
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, VmConfig
from tests.support.evidence import config, evidence, expected, now, real_data, root
from tests.unit.attestation.test_report import read_vector
from tests.unit.attestation.test_verify import flipped

REAL: list[tuple[str, str, str, Product, str]] = [
    ("milan-v2/report.hex", "milan-v2/vcek.der", "ask_ark_milan.pem", "Milan", ""),
    ("genoa-v3/report.bin", "genoa-v3/vcek.pem", "ask_ark_genoa.pem", "Genoa", "id-key-digest"),
    ("milan-v2-debug/report.bin", "milan-v2-debug/vcek.der", "ask_ark_milan.pem", "Milan", "debug-policy"),
]


def real(report: str, vcek: str, bundle: str, product: Product) -> tuple[Evidence, Expected]:
    one, wanted, report_data = real_config(report, vcek, bundle, product)
    return one, Expected.of(wanted, report_data)


def real_config(report: str, vcek: str, bundle: str, product: Product) -> tuple[Evidence, VmConfig, bytes]:
    """A real report, and a config that agrees with whatever it says."""
    raw = read_vector(real_data(report))
    chain = real_data(vcek).read_bytes(), real_data(f"amd-chains/{bundle}").read_bytes()
    found = parse_report(raw, product)
    wanted = config(
        product=product, platform="snp", guest_policy=found.policy, host_data=found.host_data, vmpl=found.vmpl,
        launch_digest=found.measurement, guest_svn=found.guest_svn, family_id=found.family_id, image_id=found.image_id,
        minimum_tcb=found.reported_tcb, platform_info_required=0, platform_info_forbidden=0,
        policy={"profile": "legacy-milan" if product == "Milan" else "default"},
    )  # fmt: skip
    return Evidence(raw, certificates=chain), wanted, found.report_data if any(found.report_data) else b"x" * 64


@pytest.mark.parametrize(("report", "vcek", "bundle", "product", "reason"), REAL)
def test_real_reports(report: str, vcek: str, bundle: str, product: Product, reason: str) -> None:
    one, wanted = real(report, vcek, bundle, product)
    at = datetime(2026, 6, 1, tzinfo=UTC)
    if reason:
        with pytest.raises(Refused) as caught:
            verify_report(one, wanted, at)
        assert caught.value.reason == reason
        outcomes = {check.name: check.outcome for check in caught.value.checks}
        assert {outcomes[name] for name in ("signature", "chip-id", "tcb", "unknown-root")} == {"passed"}
    else:
        verdict = verify_report(one, wanted, at)
        assert verdict.to_json()["trust_domain"] == "amd" and verdict.to_json()["accepted"] is True
    with pytest.raises(Refused) as caught:
        verify_emulated(one, wanted, at, root())
    assert (caught.value.reason, caught.value.trust_domain) == ("unknown-root", "emulated")
    for bit in range(0, 0x2A0 * 8, 409):
        with pytest.raises(Refused):
            verify_report(flipped(one, bit), wanted, at)


@pytest.mark.full
@pytest.mark.parametrize(("report", "vcek", "bundle", "product", "reason"), REAL)
def test_a_real_report_with_any_flipped_bit_is_not_authentic(
    report: str, vcek: str, bundle: str, product: Product, reason: str
) -> None:
    one, _ = real(report, vcek, bundle, product)
    at = datetime(2026, 6, 1, tzinfo=UTC)
    assert inspect_report(one, at).authentic  # control
    for bit in range(1184 * 8):
        assert inspect_report(flipped(one, bit), at).authentic is False


def test_the_emulation_refuses_a_root_of_amd() -> None:
    with pytest.raises(UserError, match="emulation's mark"):
        verify_emulated(evidence(), expected(), now(), real_data("amd-chains/ask_ark_genoa.pem"))
