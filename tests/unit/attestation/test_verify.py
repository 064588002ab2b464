# SPDX-License-Identifier: Apache-2.0
import dataclasses
import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sevsnp.attestation import appraisal, authentication, product, verifier
from sevsnp.attestation.appraisal import Evidence, Expected, Reason, Refused
from sevsnp.attestation.extensions import LeafExtensions
from sevsnp.attestation.report import EMULATED_CHIP_ID, SigningKey, parse_report
from sevsnp.attestation.verifier import HardwareVerdict, verify_report
from sevsnp.emulation import psp as soft
from sevsnp.emulation.mark import EMULATION_OID
from sevsnp.emulation.verify import EmulatedVerdict, verify_emulated
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb
from tests.support.evidence import (
    MEASUREMENT,
    REPORT_DATA,
    ROOT,
    evidence,
    expected,
    now,
    psp,
    real_data,
    root,
)
from tests.support.hierarchy import amd_name


def refusal(one: Evidence, wanted: Expected | None = None, at: datetime | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        verify_emulated(one, wanted or expected(), at or now(), root())
    return caught.value


def test_honest_evidence_is_accepted() -> None:
    verdict = verify_emulated(evidence(), expected(), now(), root())
    document = verdict.to_json()
    assert (document["trust_domain"], document["accepted"], document["accepted_as_emulated"]) == (
        "emulated",
        False,
        True,
    )
    assert all(check["ok"] for check in document["checks"])
    assert {check["name"] for check in document["checks"]} >= set(Reason)
    for check in document["checks"]:
        assert (check["outcome"] == "passed") == bool(check["expected"] and not check["reason"]), check
    assert json.loads(json.dumps(document)) == document


def test_every_field_of_a_report_is_checked() -> None:
    # A field added to the parser has to be thought about: here, and in the appraisal.
    source = "".join(Path(module.__file__ or "").read_text() for module in (appraisal, authentication, product))
    elsewhere = ("raw", "cpuid", "signature_algorithm", "current_mitigations", "guest_abi")
    for field in dataclasses.fields(parse_report(evidence().report, "Genoa")):
        assert f"report.{field.name}" in source or field.name in elsewhere, field.name


TCB = Tcb(200, 200, 200, 200)
LOWER = Tcb(200, 200, 199, 200)

WRONG_REPORTS: list[tuple[dict[str, Any], str]] = [
    ({"report_data": bytes(64)}, "report-data"),
    ({"report_data": REPORT_DATA[:-1] + b"\0"}, "report-data"),
    ({"measurement": bytes(48)}, "measurement"),
    ({"policy": 0xB0000}, "debug-policy"),
    ({"policy": 0x70000}, "migration-policy"),
    ({"policy": 0x3001F}, "guest-policy"),
    ({"vmpl": 1}, "vmpl"),
    ({"guest_svn": 1}, "guest-svn"),
    ({"family_id": b"x" * 16}, "family-id"),
    ({"image_id": b"x" * 16}, "image-id"),
    ({"host_data": b"x" * 32}, "host-data"),
    ({"id_key_digest": b"x" * 48}, "id-key-digest"),
    ({"author_key_digest": b"x" * 48}, "author-key-digest"),
    ({"author_key": True}, "author-key-digest"),
    ({"report_id_ma": bytes(32)}, "report-id-ma"),
    ({"platform_info": 0x1C}, "platform-info.alias-check-complete"),
    ({"platform_info": 0x3D}, "platform-info.smt-en"),
    ({"mask_chip_key": True}, "mask-chip-key"),
    ({"signing_key": SigningKey.VLEK}, "signing-key"),
    ({"signing_key": SigningKey.NONE}, "signing-key"),
    ({"chip_id": bytes(64)}, "chip-id"),
    ({"chip_id": b"x" * 64}, "chip-id"),
    ({"reported_tcb": LOWER}, "tcb"),
    ({"committed_tcb": LOWER}, "tcb-order"),
    ({"current_tcb": LOWER}, "tcb-order"),
    ({"launch_tcb": Tcb(200, 200, 14, 200)}, "minimum-launch-tcb"),
    ({"cpuid": soft._CPUID["Milan"]}, "product"),
]


@pytest.mark.parametrize(("changes", "reason"), WRONG_REPORTS)
def test_wrong_reports(changes: dict[str, Any], reason: str) -> None:
    verify_emulated(evidence(), expected(), now(), root())  # control
    refused = refusal(evidence(**changes))
    assert refused.reason == reason.split(".")[0]
    assert refused.to_json()["accepted"] is False
    assert [check.outcome for check in refused.checks if check.name == reason] == ["failed"]
    # The check is what refuses it: where the expectation allows the value, the same report is accepted.
    if set(changes) <= {"measurement", "vmpl", "guest_svn", "family_id", "image_id", "host_data"}:
        ((name, value),) = changes.items()
        allowed = {"launch_digest": value} if name == "measurement" else changes
        verify_emulated(evidence(**changes), expected(**allowed), now(), root())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"minimum_tcb": Tcb(200, 200, 201, 200)}, "minimum-reported-tcb"),
        ({"minimum_tcb": Tcb(0, 0, 0, 201)}, "minimum-reported-tcb"),
        ({"platform_info_required": 0x40}, "platform-info"),
        ({"product": "Milan"}, "product"),
        ({"product": "Turin"}, "product"),
        ({"platform": "snp"}, "platform"),
        ({"report_data": b"x" * 64}, "report-data"),
    ],
)
def test_wrong_expectations(changes: dict[str, Any], reason: str) -> None:
    assert refusal(evidence(), expected(**changes)).reason == reason


def test_debugging_and_migration_are_refused_even_where_the_config_allows_them() -> None:
    for policy, reason in ((0xB0000, "debug-policy"), (0x70000, "migration-policy"), (0xF0000, "debug-policy")):
        assert refusal(evidence(policy=policy), expected(guest_policy=policy)).reason == reason
    verify_emulated(evidence(policy=0x3001F), expected(guest_policy=0x3001F), now(), root())


def test_a_masked_chip_id_is_refused_whatever_the_certificate_says() -> None:
    report = parse_report(evidence().report, "Genoa")
    for chip_id, problem in ((b"x" * 64, ""), (bytes(64), "masked"), (EMULATED_CHIP_ID, "software secure processor")):
        certified = LeafExtensions(0, "Genoa", TCB, chip_id, None)
        found = authentication._chip_id_problem(dataclasses.replace(report, chip_id=chip_id), certified, verifier._AMD)
        assert problem in found and bool(found) == bool(problem)


def test_a_refusal_lists_all_failed_checks() -> None:
    failed = {one.name for one in refusal(evidence(vmpl=1, guest_svn=2)).checks if one.outcome == "failed"}
    assert failed == {"vmpl", "guest-svn"}


@pytest.mark.parametrize("report_data", [bytes(64), b"", b"x" * 63])
def test_expected_report_data_must_bind_something(report_data: bytes) -> None:
    with pytest.raises(UserError, match="REPORT_DATA"):
        expected(report_data=report_data)


def test_the_validity_is_compared_with_the_time_of_the_caller() -> None:
    for hours in (-1, 25):
        assert refusal(evidence(), at=now() + timedelta(hours=hours)).reason == "validity"
    with pytest.raises(ValueError, match="aware"):
        verify_emulated(evidence(), expected(), datetime(2026, 1, 1), root())


def flipped(one: Evidence, bit: int) -> Evidence:
    raw = bytearray(one.report)
    raw[bit // 8] ^= 1 << bit % 8
    return dataclasses.replace(one, report=bytes(raw))


def test_flipped_bits_sampled() -> None:
    one = evidence()
    for bit in (*range(0, 0x2A0 * 8, 131), *range(0x2A0 * 8, 1184 * 8, 97)):
        assert refusal(flipped(one, bit)).reason in {"signature", "report-format", "product"}


@pytest.mark.full
@pytest.mark.parametrize("byte", range(1184))
def test_flipped_bits_all(byte: int) -> None:
    one = evidence()
    for bit in range(8):
        refusal(flipped(one, byte * 8 + bit))


@pytest.mark.parametrize("size", [0, 100, 1183, 1185, 4096])
def test_reports_of_another_length(size: int) -> None:
    one = evidence()
    short = dataclasses.replace(one, report=one.report.ljust(size, b"\0")[:size])
    assert refusal(short).reason == "report-format"


@pytest.mark.parametrize("table", [b"", b"\1", b"\1" * 4096, psp.__name__.encode() * 100])
def test_evidence_with_unreadable_certificates_is_refused(table: bytes) -> None:
    assert refusal(dataclasses.replace(evidence(), certificate_table=table)).reason == "certificates"


def test_another_chips_certificate() -> None:
    other = dataclasses.replace(evidence(), certificate_table=psp("second").certificate_table())
    assert refusal(other).reason == "unknown-root"
    with pytest.raises(Refused) as caught:  # the root that fits the certificates: then the signature does not
        verify_emulated(other, expected(), now(), root("second"))
    assert caught.value.reason == "signature"


@pytest.mark.parametrize("product", ["Milan", "Turin"])
def test_other_products(product: Product) -> None:
    other = psp("first", product)
    policy = {"profile": "legacy-milan" if product == "Milan" else "default"}
    wanted = expected(product=product, policy=policy, minimum_tcb=Tcb(1, 1, 1, 1, 1 if product == "Turin" else None))
    assert wanted.launch
    report = other.report(REPORT_DATA, launch=wanted.launch, measurement=MEASUREMENT)
    one = Evidence(report, other.certificate_table())
    verify_emulated(one, wanted, now(), root("first", product))
    with pytest.raises(Refused) as caught:
        verify_report(one, wanted, now())
    assert caught.value.reason == "unknown-root"


# The same evidence, two verifiers.


def production(one: Evidence, wanted: Expected | None = None) -> Refused:
    with pytest.raises(Refused) as caught:
        verify_report(one, wanted or expected(), now())
    return caught.value


@pytest.mark.parametrize("platform", ["snp", "emulated"])
def test_the_production_verifier_refuses_evidence_that_the_emulation_accepts(platform: str) -> None:
    one = evidence()
    assert isinstance(verify_emulated(one, expected(), now(), root()), EmulatedVerdict)
    refused = production(one, expected(platform=platform))
    assert (refused.reason, refused.trust_domain) == ("unknown-root", "amd")


def amd_look_alike() -> Evidence:
    """Emulated keys under AMD's distinguished names, without the mark."""
    from tests.unit.attestation.test_certificates import START, builder, rsa_key, without

    made = []
    for subject, issuer, key, common in (
        ("VCEK", "SEV-Genoa", "ASK", "SEV-VCEK"), ("ASK", "ARK-Genoa", "ARK", "SEV-Genoa"),
        ("ARK", "ARK-Genoa", "ARK", "ARK-Genoa"),
    ):  # fmt: skip
        one = without(builder(subject, "x", start=START), EMULATION_OID)
        one._subject_name, one._issuer_name = amd_name(common), amd_name(issuer)
        made.append(soft._certify(one, rsa_key(key)).public_bytes(Encoding.PEM))
    return Evidence(evidence().report, certificates=tuple(made))


def test_nothing_makes_the_production_verifier_accept_emulated_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    one = evidence()
    assert production(amd_look_alike()).reason == "unknown-root"
    more = dataclasses.replace(one, certificates=((root()).read_bytes(),))
    assert production(more).reason == "unknown-root"
    for name in ("MOCK", "SEVSNP_EMULATED", "EMULATED", "PLATFORM", "SEVSNP_ROOT", "TRUST_ROOT", "ARK"):
        monkeypatch.setenv(name, str(root()))
    assert production(one).reason == "unknown-root"
    with pytest.raises(TypeError):
        verify_report(one, expected(), now(), root())  # type: ignore[arg-type,call-arg]
    with pytest.raises(TypeError):
        verify_report(one, expected(), now(), root=root())  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        verifier._AMD.pins = ()  # type: ignore[misc]


def test_real_certificates_of_amd_do_not_make_emulated_evidence_accepted() -> None:
    real = real_data("amd-chains/ask_ark_genoa.pem").read_bytes()
    mixed = dataclasses.replace(evidence(), certificates=(real,))
    assert production(mixed).reason == "unknown-root"
    only = Evidence(evidence().report, certificates=(psp().vcek.public_bytes(Encoding.PEM), real))
    assert production(only).reason == "certificates"
    both = amd_look_alike()
    assert production(dataclasses.replace(both, certificates=(*both.certificates, real))).reason == "unknown-root"
    swapped = Evidence(both.report, certificates=(both.certificates[0], real))
    assert production(swapped).reason == "certificates"


def test_control_without_the_pin_check_later_checks_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pin check the same evidence passes further: so the tests above do test the pin."""
    from cryptography.hazmat.primitives import hashes

    fingerprint = psp().ark.fingerprint(hashes.SHA256())
    mutant = dataclasses.replace(verifier._AMD, pins=((fingerprint, "Genoa"),))
    monkeypatch.setattr(verifier, "_AMD", mutant)
    assert production(evidence(), expected(platform="snp")).reason == "certificates"  # the names
    mutant = dataclasses.replace(mutant, vendor=False)
    monkeypatch.setattr(verifier, "_AMD", mutant)
    assert production(evidence(), expected(platform="snp")).reason == "certificates"  # the mark
    mutant = dataclasses.replace(mutant, required_extensions=frozenset({EMULATION_OID}))
    monkeypatch.setattr(verifier, "_AMD", mutant)
    assert production(evidence(), expected(platform="snp")).reason == "chip-id"  # the marker
    monkeypatch.setattr(authentication, "_chip_id_problem", lambda *_: "")
    verify_report(evidence(), expected(platform="snp"), now())


def test_a_check_that_is_not_made_leads_to_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appraisal, "check_fields", lambda *_: None)
    assert "never checked" in refusal(evidence()).message


def test_only_the_verifier_makes_a_verdict() -> None:
    verdict = verify_emulated(evidence(), expected(), now(), root())
    for kind in (HardwareVerdict, EmulatedVerdict):
        with pytest.raises(TypeError):
            kind(verdict.appraisal, object())
        with pytest.raises(TypeError):
            type("Mine", (kind,), {})
    assert not isinstance(verdict, HardwareVerdict)


def test_production_does_not_import_the_emulation() -> None:
    names = ["attestation.verifier", "attestation.kds", "measurement.launch_digest"]
    names += [f"commands.{name}" for name in ("verify_report", "inspect_report", "measure", "idblock_generator")]
    lines = [f"import sevsnp.{name}" for name in names]
    script = "; ".join(["import sys", *lines, "print(*sys.modules)"])
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "sevsnp.attestation.verifier" in loaded and "sevsnp.emulation" not in loaded
    for path in (ROOT / "sevsnp" / "attestation").glob("*.py"):
        assert "sevsnp.emulation" not in path.read_text(), path


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_unusable_roots(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ark.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"ark\.pem"):
        verify_emulated(evidence(), expected(), now(), path)
