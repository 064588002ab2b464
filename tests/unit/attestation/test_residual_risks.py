# SPDX-License-Identifier: Apache-2.0
"""A verdict names the remaining risks and the values that it did not compare."""

from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation.page import render_page
from sevsnp.emulation.verify import verify_emulated
from sevsnp.firmware.known import OURS, STOCK
from sevsnp.vm_config.config import File, Tcb
from tests.support.evidence import config, evidence, expected, now, root
from tests.unit.attestation.test_forged_reports import outcome


def outcomes(**changes: object) -> dict[str, str]:
    verdict = verify_emulated(evidence(), expected(**changes), now(), root())
    return {check.name: check.outcome for check in verdict.checks}


def test_a_guest_with_acpi_runs_the_host_s_code() -> None:
    without, with_acpi = (
        verify_emulated(evidence(), expected(acpi=acpi), now(), root()).to_json()["open"] for acpi in (False, True)
    )
    assert without == []
    assert len(with_acpi) == 1 and "AML" in with_acpi[0]


def test_a_check_without_a_reference_value_is_not_called_passed() -> None:
    names = ("minimum-reported-tcb", "minimum-committed-tcb", "minimum-launch-tcb")
    asked = outcomes(minimum_tcb=Tcb(1, 0, 0, 0), platform_info_required=0x10)
    assert {asked[name] for name in names} == {asked["platform-info.ciphertext-hiding-dram-en"]} == {"passed"}
    for minimum in (None, "any"):
        nothing = outcomes(minimum_tcb=minimum, platform_info_required=0, platform_info_forbidden=0)
        assert {nothing[name] for name in (*names, "tcb-floor", "platform-info.smt-en")} == {"not-compared"}


def test_a_weaker_profile_is_named() -> None:
    verdict = verify_emulated(evidence(), expected(), now(), root())
    assert any("profile default: weaker than strict" in note for note in verdict.to_json()["notes"])
    assert verdict.to_json()["profile"] == "default"


ABSENT = Path("/nonexistent/OVMF.fd")
REASON = "a vendor's, <b>audited</b>"


def test_a_firmware_that_is_trusted_for_a_reason_is_named_in_every_verdict() -> None:
    trusted: dict[str, Any] = {"firmware": File(ABSENT, "5" * 64), "firmware_reason": REASON}
    (road,) = verify_emulated(evidence(), expected(**trusted), now(), root()).to_json()["open"]
    assert REASON in road and "no check shows that the firmware starts only" in road
    production = outcome(platform="snp", **trusted)
    assert production.accepted and production.residual_risks == (road,)
    assert "audited&lt;/b&gt;" in render_page(production, config())
    ours = outcome(platform="snp", firmware=File(ABSENT, OURS), firmware_reason=REASON)
    assert ours.accepted and ours.residual_risks == ()


@pytest.mark.parametrize(
    ("digest", "reason", "found"),
    [
        ("5" * 64, "", "unknown, and its file is not here"),
        (STOCK, "", "starts code of the host"),
        (STOCK, REASON, "starts code of the host"),
    ],
    ids=["unknown", "known", "known, with a reason"],
)
def test_an_unaccepted_firmware_is_refused_although_the_report_matches(digest: str, reason: str, found: str) -> None:
    refused = outcome(platform="snp", firmware=File(ABSENT, digest), firmware_reason=reason)
    assert (refused.decision, refused.reason) == ("refused", "guest-firmware") and found in refused.message
    assert [check.name for check in refused.checks if check.outcome == "failed"] == ["guest-firmware"]
