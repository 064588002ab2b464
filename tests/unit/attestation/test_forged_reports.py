# SPDX-License-Identifier: Apache-2.0
"""For every check, evidence that only this check refuses: signed and certified like honest evidence, with one fault."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation import appraisal
from sevsnp.attestation.appraisal import Evidence, NeverAccepted, Reason, appraise
from sevsnp.attestation.authentication import Nobody
from sevsnp.attestation.checklist import Checklist
from sevsnp.attestation.hcl import Claims
from sevsnp.attestation.outcome import Appraisal
from sevsnp.attestation.report import EMULATED_CHIP_ID, FirmwareVersion, SigningKey
from sevsnp.attestation.revocation import Lists
from sevsnp.emulation.report_encoder import encode_report
from sevsnp.firmware.known import STOCK
from sevsnp.vm_config.config import File, Tcb
from tests.support.evidence import MEASUREMENT, REPORT_DATA, expected
from tests.support.hierarchy import NOW, Hierarchy, load_crl

GENOA = Hierarchy()
MILAN = Hierarchy("Milan")
VLEK = Hierarchy(vlek=True)
LOWER = Tcb(10, 0, 22, 200)


class WithList(Nobody):
    """An endorser that has a revocation list."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def revocation_lists(self, product: Any, signer: Any, ark: Any, now: Any, demanded: bool) -> Lists:
        return Lists((load_crl(self.data, ark, now),))


def outcome(
    one: Evidence | None = None, by: Hierarchy = GENOA, endorser: Nobody | None = None, at: Any = NOW, **wanted: Any
) -> Appraisal:
    changes = {
        "platform": "snp", "product": by.product, "platform_info_required": 0, "platform_info_forbidden": 0, **wanted,
    }  # fmt: skip
    if by.product == "Milan" and "policy" not in wanted:
        changes["policy"] = {"profile": "legacy-milan"}
    return appraise(one or by.evidence(), expected(**changes), at, by.root, endorser)


def failed(found: Appraisal) -> set[str]:
    return {str(check.name) for check in found.checks if check.outcome == "failed"}


@pytest.mark.parametrize("by", [GENOA, MILAN, Hierarchy("Turin"), VLEK], ids=lambda one: f"{one.product}-{one.vlek}")
@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_honest_evidence(by: Hierarchy, version: int) -> None:
    policy = {"profile": "legacy-milan" if by.product == "Milan" else "default", "signer": ["VCEK", "VLEK"]}
    floor = Tcb(1, 0, 1, 1, 1 if by.product == "Turin" else None)
    found = outcome(by.evidence(version=version), by, policy=policy, minimum_tcb=floor)
    assert found.decision == "accepted", found.message
    assert (found.to_json()["product"], found.signer) == (by.product, "VLEK" if by.vlek else "VCEK")
    assert found.to_json()["accepted"] is True and "with its own signer" in found.profile


# Changes to the report, changes to what is expected of it, and the one check that refuses it.
FORGED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"signing_key": SigningKey.NONE}, {}, "signing-key"),
    ({"chip_id": bytes(64)}, {}, "chip-id"),
    ({"chip_id": b"x" * 64}, {}, "chip-id"),
    ({"reported_tcb": LOWER}, {}, "tcb"),
    ({}, {"product": "Milan", "policy": {"product": ["Genoa", "Milan"]}}, "product"),
    ({}, {"platform": "emulated"}, "platform"),
    ({}, {"firmware": File(Path("OVMF.amdsev.fd"), STOCK)}, "guest-firmware"),
    ({}, {"never": NeverAccepted({MEASUREMENT.hex(): "emulated"}, {})}, "never-accepted"),
    ({"version": 2}, {"policy": {"report_version": {"at_least": 3}}}, "report-version"),
    ({}, {"policy": {"product": ["Turin"]}}, "allowed-product"),
    ({}, {"policy": {"signer": ["VLEK"]}}, "allowed-signer"),
    ({}, {"policy": {"csp": ["another cloud"]}}, "csp"),
    ({"mask_chip_key": True}, {}, "mask-chip-key"),
    ({}, {"policy": {"chip_id": ["ab" * 64]}}, "allowed-chip"),
    ({"committed_tcb": LOWER}, {"policy": {"provisional_firmware": [True, False]}}, "tcb-order"),
    ({}, {"minimum_tcb": Tcb(0, 0, 0, 201), "policy": {
        name: {"any": "not now"} for name in ("committed_tcb", "launch_tcb")}}, "minimum-reported-tcb"),
    ({}, {"minimum_tcb": Tcb(11, 0, 0, 0), "policy": {
        name: {"any": "not now"} for name in ("reported_tcb", "launch_tcb")}}, "minimum-committed-tcb"),
    ({"launch_tcb": LOWER}, {"minimum_tcb": Tcb(1, 0, 23, 1)}, "minimum-launch-tcb"),
    ({}, {"minimum_tcb": None}, "tcb-floor"),
    ({}, {"minimum_tcb": Tcb(0, 0, 0, 0)}, "tcb-floor"),
    ({"current_tcb": Tcb(10, 0, 24, 200)}, {}, "provisional-firmware"),
    ({"firmware": FirmwareVersion(1, 55, 37)}, {"policy": {"firmware": {"at_least": "1.55.38"}}}, "minimum-firmware"),
    ({"mitigations": 0b101}, {"policy": {"launch_mitigations": 0b111}}, "launch-mitigations"),
    ({"version": 4}, {"policy": {"launch_mitigations": 1}}, "launch-mitigations"),
    ({"policy": 0xB0000}, {"guest_policy": 0xB0000}, "debug-policy"),
    ({"policy": 0x70000}, {"guest_policy": 0x70000}, "migration-policy"),
    ({"policy": 0x130000}, {}, "guest-policy"),
    ({"policy": 0x230000}, {"guest_policy": 0x230000}, "guest-policy.cxl-allow"),
    *(({}, {"policy": {"guest_policy_bits": {name: True}}}, f"guest-policy.{name.replace('_', '-')}")
      for name in ("single_socket", "mem_aes_256_xts", "rapl_dis", "ciphertext_hiding_dram", "page_swap_disable")),
    ({}, {"policy": {"guest_policy_bits": {"smt": False}}}, "guest-policy.smt"),
    ({"policy": 0x30100}, {"guest_policy": 0x30100, "policy": {"guest_abi": {"at_least": "1.51"}}}, "guest-abi"),
    ({"platform_info": 0x38}, {}, "platform-info.ecc-en"),
    ({"platform_info": 0x1C}, {}, "platform-info.alias-check-complete"),
    ({"platform_info": 0x3D}, {"policy": {"platform_info": {"smt_en": False}}}, "platform-info.smt-en"),
    ({"platform_info": 0x3E}, {"policy": {"platform_info": {"tsme_en": False}}}, "platform-info.tsme-en"),
    ({"platform_info": 0x34}, {"policy": {"platform_info": {"rapl_dis": True}}}, "platform-info.rapl-dis"),
    ({"platform_info": 0x2C}, {"policy": {"platform_info": {"ciphertext_hiding_dram_en": True}}},
     "platform-info.ciphertext-hiding-dram-en"),
    ({"platform_info": 0xBC}, {"policy": {"platform_info": {"tio_en": False}}}, "platform-info.tio-en"),
    ({"platform_info": 0x7C}, {"platform_info_forbidden": 0x40}, "platform-info.bit-6"),
    ({}, {"platform_info_required": 1 << 40}, "platform-info.bit-40"),
    ({"vmpl": 1}, {}, "vmpl"),
    ({"guest_svn": 1}, {}, "guest-svn"),
    ({"guest_svn": 4}, {"policy": {"guest_svn": {"at_least": 5}}}, "guest-svn"),
    ({"family_id": b"x" * 16}, {}, "family-id"),
    ({"image_id": b"x" * 16}, {}, "image-id"),
    ({"host_data": b"x" * 32}, {}, "host-data"),
    ({"id_key_digest": b"x" * 48}, {}, "id-key-digest"),
    ({"author_key_digest": b"x" * 48, "author_key": True}, {}, "author-key-digest"),
    ({"author_key": True}, {}, "author-key-digest"),
    ({}, {"policy": {"report_id": ["ab" * 32]}}, "report-id"),
    ({"report_id_ma": bytes(32)}, {}, "report-id-ma"),
    ({"measurement": bytes(48)}, {}, "measurement"),
    ({"report_data": bytes(64)}, {}, "report-data"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "wanted", "name"), FORGED, ids=[f"{one[2]}-{n}" for n, one in enumerate(FORGED)])
def test_a_forged_report_is_refused_by_its_check_only(
    changes: dict[str, Any], wanted: dict[str, Any], name: str
) -> None:
    assert outcome().decision == "accepted"  # control: what it was forged from
    found = outcome(GENOA.evidence(**changes), **wanted)
    assert (found.decision, failed(found)) == ("refused", {name})
    (check,) = (one for one in found.checks if one.name == name)
    assert not check.ok and (check.reason or (check.expected and check.found))
    assert found.to_json()["accepted"] is False and found.message


def test_every_check_has_its_forged_report() -> None:
    authenticity = {one[0] for one in FORGED_AUTHENTICITY}  # below
    bits = {"platform-info"}  # a check for each bit
    assert {one[2] for one in FORGED} >= set(Reason) - authenticity - bits
    named = {str(check.name) for check in outcome().checks}
    assert named - authenticity - bits <= {one[2] for one in FORGED}


MUTANTS = [one for one in FORGED if one[2] != "signing-key"]  # nobody's signature ends it: nothing after it is reached


@pytest.mark.parametrize(("changes", "wanted", "name"), MUTANTS, ids=[f"{one[2]}-{n}" for n, one in enumerate(MUTANTS)])
def test_a_forged_report_is_accepted_without_its_check(
    changes: dict[str, Any], wanted: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed verifier in which this one check cannot fail accepts the forged report."""
    honest = Checklist.failed

    def mutant(log: Checklist, reason: Reason, message: str, **more: str) -> None:
        if (more.get("name") or reason) == name:
            log.not_compared(name, "mutant")
        else:
            honest(log, reason, message, **more)

    monkeypatch.setattr(Checklist, "failed", mutant)
    assert outcome(GENOA.evidence(**changes), **wanted).decision == "accepted"


@pytest.mark.parametrize("field", appraisal.FIELDS, ids=lambda field: str(field[0]))
def test_a_check_that_is_removed_makes_every_appraisal_refuse(
    field: appraisal.Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appraisal, "FIELDS", tuple(one for one in appraisal.FIELDS if one is not field))
    found = outcome()
    assert found.decision == "refused" and f"{field[0]}: never checked" in found.message


OTHER_KEYS = Hierarchy(keys="-other")


def unsigned() -> Evidence:
    """A report with another measurement's bytes under the honest one's signature, honest in all else."""
    changed = bytearray(encode_report(GENOA.fields()))
    changed[0x140] ^= 1  # REPORT_ID, which no profile compares
    return dataclasses.replace(GENOA.evidence(), report=bytes(changed) + GENOA.report()[0x2A0:])


def strange() -> Evidence:
    """Signed, with a byte that has to be zero and is not."""
    body = bytearray(encode_report(GENOA.fields()))
    body[0x4C] = 1
    return dataclasses.replace(GENOA.evidence(), report=GENOA.sign(bytes(body)))


# Name of the check, forged evidence, its endorser, and the code without the check.
FORGED_AUTHENTICITY: list[tuple[str, Callable[[], Evidence], Callable[[], Nobody] | None, str, Any]] = [
    ("report-format", strange, None, "report._require_zero", lambda *_: None),
    ("unknown-root", OTHER_KEYS.evidence, None, "chain.root_product", lambda *_: "Genoa"),
    # The true ASK's name and another's key.
    ("certificates", lambda: GENOA.evidence([OTHER_KEYS.certificate, GENOA.ask, GENOA.ark]), None,
     "chain._standing_problem", lambda *_: ""),
    ("validity", Hierarchy(leaf_days=(-30, -1)).evidence, None, "chain.is_valid_at", lambda *_: True),
    ("signature", unsigned, None, "chain.verify_signature", lambda *_: True),
    ("revocation", GENOA.evidence, lambda: WithList(GENOA.crl([GENOA.ask.serial_number])), "authentication.is_revoked",
     lambda *_: False),
    ("runtime-claims", lambda: dataclasses.replace(GENOA.evidence(), claims=Claims(b"{}", "sha256")), None,
     "hcl.Claims.bound", lambda *_: REPORT_DATA),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "forged", "endorser", "check", "mutant"), FORGED_AUTHENTICITY, ids=[one[0] for one in FORGED_AUTHENTICITY]
)
def test_a_forged_signature_or_chain_is_accepted_without_its_check(
    name: str, forged: Any, endorser: Any, check: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = endorser and endorser()
    found = outcome(forged(), endorser=asked)
    assert (found.decision, failed(found)) == ("refused", {name})
    monkeypatch.setattr(f"sevsnp.attestation.{check}", mutant)
    assert outcome(forged(), endorser=asked).decision == "accepted"


def test_authenticity() -> None:
    def reason(one: Evidence, **more: Any) -> tuple[str, str]:
        found = outcome(one, **more)
        return found.decision, str(found.reason)

    honest = GENOA.evidence()
    assert reason(honest) == ("accepted", "None")
    assert reason(OTHER_KEYS.evidence()) == ("refused", "unknown-root")  # AMD's names, other keys
    stolen = GENOA.evidence([OTHER_KEYS.certificate, OTHER_KEYS.ask, GENOA.ark])
    assert reason(stolen) == ("refused", "certificates")
    raw = bytearray(honest.report)
    raw[0x90] ^= 1
    assert reason(dataclasses.replace(honest, report=bytes(raw))) == ("refused", "signature")
    assert reason(dataclasses.replace(honest, report=honest.report[:-1])) == ("refused", "report-format")
    for days in ((-30, -1), (1, 30)):
        assert reason(Hierarchy(leaf_days=days).evidence()) == ("refused", "validity")
    for wrong, how in ((Hierarchy(leaf="P-256"), "refused"), (Hierarchy(leaf_rsa=True), "undecided")):
        assert reason(GENOA.evidence([wrong.certificate, GENOA.ask, GENOA.ark])) == (how, "certificates")
    assert reason(GENOA.evidence([])) == ("undecided", "certificates")
    assert reason(GENOA.evidence([GENOA.certificate])) == ("undecided", "certificates")


def test_a_vlek_and_a_vcek_are_not_interchangeable() -> None:
    both: dict[str, Any] = {"policy": {"signer": ["VCEK", "VLEK"]}}
    assert outcome(VLEK.evidence(), **both).decision == "accepted"
    # The report says VCEK, the chain is the provider's; and the reverse.
    for one in (
        VLEK.evidence(signing_key=SigningKey.VCEK),
        GENOA.evidence(signing_key=SigningKey.VLEK, chip_id=bytes(64)),
    ):
        found = outcome(one, **both)
        assert (found.decision, str(found.reason)) == ("refused", "certificates"), found.message
    assert str(outcome(VLEK.evidence()).reason) == "allowed-signer"
    assert str(outcome(VLEK.evidence(chip_id=b"x" * 64), **both).reason) == "chip-id"
    accepted = outcome(VLEK.evidence(), policy={"signer": ["VLEK"], "csp": ["a cloud"]})
    assert accepted.decision == "accepted" and any("VLEK" in note for note in accepted.notes)


def test_revocation() -> None:
    required: dict[str, Any] = {"policy": {"revocation": "required"}}
    serial = GENOA.ask.serial_number
    assert outcome(endorser=WithList(GENOA.crl()), **required).decision == "accepted"
    for wanted in (required, {}):  # a list that is there counts, demanded or not
        found = outcome(endorser=WithList(GENOA.crl([serial])), **wanted)
        assert (found.decision, failed(found)) == ("refused", {"revocation"})
    undecided = outcome(**required)
    assert (undecided.decision, str(undecided.reason)) == ("undecided", "revocation")
    without = outcome()
    assert without.decision == "accepted"
    (check,) = (one for one in without.checks if one.name == "revocation")
    assert check.outcome == "not-compared" and "not demanded" in check.reason
    # What is wrong comes before what is not known.
    assert outcome(GENOA.evidence(vmpl=1), **required).decision == "refused"


def test_milan_needs_the_profile_legacy_milan_and_the_verdict_names_it() -> None:
    assert str(outcome(by=MILAN, policy={"profile": "default"}).reason) == "allowed-product"
    found = outcome(by=MILAN)
    assert found.decision == "accepted" and any("2605.12990" in note for note in found.notes)
    assert any("legacy-milan" in note for note in found.notes)


FLOOR = Tcb(10, 0, 23, 84)
STRICT: dict[str, Any] = {
    "policy": {"profile": "strict", "chip_id": [GENOA.chip_id.hex()]}, "minimum_tcb": FLOOR,
    "guest_policy": 0x3D20000,
}  # fmt: skip


def test_the_profile_strict_accepts_only_what_it_demands() -> None:
    one = GENOA.evidence(policy=0x3D20000)
    found = outcome(one, endorser=WithList(GENOA.crl()), **STRICT)
    (note,) = found.notes
    assert found.decision == "accepted" and "this processor has 0x19/0x11/1" in note
    bound = {"cpuid": "0x19/0x11/1", **{name: value for name, value in vars(FLOOR).items() if value is not None}}
    named = {**STRICT["policy"], **dict.fromkeys(("reported_tcb", "committed_tcb", "launch_tcb"), bound)}
    found = outcome(one, endorser=WithList(GENOA.crl()), **{**STRICT, "policy": named})
    assert found.decision == "accepted" and [one for one in found.notes if "perhaps" not in one] == []
    changed = {**STRICT, "policy": {**STRICT["policy"], "vmpl": [0, 1]}}
    note, _ = outcome(one, endorser=WithList(GENOA.crl()), **changed).notes
    assert "strict, with its own vmpl: perhaps weaker" in note
    assert outcome(one, **STRICT).decision == "undecided"  # no revocation list
    for bit in (16, 20, 22, 23, 24, 25):
        policy = 0x3D20000 ^ 1 << bit
        wanted = {**STRICT, "guest_policy": policy}
        other = outcome(GENOA.evidence(policy=policy), endorser=WithList(GENOA.crl()), **wanted)
        assert other.decision == "refused" and len(failed(other)) == 1
    for bit in (0, 2, 3, 4, 5, 7):
        report = GENOA.evidence(policy=0x3D20000, platform_info=0x3C ^ 1 << bit)
        assert len(failed(outcome(report, endorser=WithList(GENOA.crl()), **STRICT))) == 1


class Knows(Nobody):
    """An endorser with certificates at hand, such as a directory."""

    def __init__(self, *certificates: Any) -> None:
        self.certificates = list(certificates)

    def known(self) -> list[Any]:
        return self.certificates


def test_a_renewed_local_certificate_replaces_the_expired_one_of_the_evidence() -> None:
    """AMD certifies the same key again with new dates."""
    old = Hierarchy(leaf_days=(-30, -1)).evidence()
    assert failed(outcome(old)) == {"validity"}  # control
    assert outcome(old, endorser=Knows(GENOA.certificate, GENOA.ask, GENOA.ark)).accepted
    assert failed(outcome(old, endorser=Knows(Hierarchy("Turin", leaf="other").certificate))) == {"validity"}


@pytest.mark.parametrize(("by", "names"), [(GENOA, "ARK, ASK and VCEK"), (VLEK, "ARK, ASVK and VLEK")])
def test_the_names_of_the_chain(by: Hierarchy, names: str) -> None:
    found = outcome(by.evidence(), by, policy={"profile": "default", "signer": ["VCEK", "VLEK"]})
    said = {check.name: check.found for check in found.checks}
    assert said["certificates"] == f"{names} are signed, named and constrained as they must be"
    assert said["validity"] == "all three are valid at 2026-06-01T00:00:00Z"


@pytest.mark.parametrize(
    ("changes", "decision", "reason"),
    [
        ({}, "refused", "signature"), ({"tcb": LOWER}, "undecided", "certificates"),
        ({"chip": b"x" * 64}, "undecided", "certificates"), ({"vlek": True}, "undecided", "certificates"),
    ],
)  # fmt: skip
def test_only_the_certificate_of_the_same_chip_proves_a_report_forged(
    changes: dict[str, Any], decision: str, reason: str
) -> None:
    """A certificate of another chip or TCB version has another key, so it does not show that a report is forged."""
    one = Hierarchy(leaf="other", **changes)
    found = outcome(GENOA.evidence([]), endorser=Knows(one.certificate, one.ask, one.ark))
    assert (found.decision, found.reason) == (decision, reason)


class Issues(Nobody):
    """An endorser with authorities for every product."""

    def __init__(self, *authorities: Any) -> None:
        self.authorities = list(authorities)

    def issuers(self, product: Any, signer: Any, now: Any) -> list[Any]:
        return self.authorities


def test_authorities_that_did_not_issue_the_certificate() -> None:
    alone = GENOA.evidence([GENOA.certificate])
    assert outcome(alone).decision == "undecided"
    assert outcome(alone, endorser=Issues(GENOA.ask, GENOA.ark)).accepted  # control
    for authorities, named in (((MILAN.ask, MILAN.ark), "VCEK"), ((GENOA.ask, MILAN.ark), "ASK"), ((), "VCEK")):
        found = outcome(alone, endorser=Issues(*authorities))
        assert (found.decision, found.message) == ("refused", f"none of the certificates issued the {named}")


def test_the_chip_id_of_the_emulation_is_refused() -> None:
    found = outcome(by=Hierarchy(chip=EMULATED_CHIP_ID))
    assert failed(found) == {"chip-id"} and "software secure processor" in found.message


def test_a_vleks_report_names_no_chip() -> None:
    found = outcome(VLEK.evidence(), VLEK, policy={"profile": "default", "signer": ["VLEK"]})
    (check,) = (one for one in found.checks if one.name == "chip-id")
    assert (check.outcome, check.expected, check.found) == ("passed", "zero (64 bytes)", "zero (64 bytes)")
