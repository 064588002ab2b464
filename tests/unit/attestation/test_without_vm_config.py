# SPDX-License-Identifier: Apache-2.0
"""Verification without a VM config: in three lines of Python, and as a command."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sevsnp.attestation import HardwareVerdict, Policy, Refused, Undecided, appraise, verifier, verify
from sevsnp.attestation.authentication import Nobody
from sevsnp.attestation.page import render_page
from sevsnp.attestation.rules import Anything, OneOf, Unstated
from sevsnp.commands import verify_report as cli
from sevsnp.errors import UserError
from tests.support.evidence import MEASUREMENT, REPORT_DATA, real_data
from tests.support.hierarchy import NOW, Hierarchy
from tests.unit.attestation.test_floors import GENOA_FLOOR
from tests.unit.attestation.test_real_reports import REAL, real_config

GENOA = Hierarchy()
STATED: dict[str, Any] = {"measurement": MEASUREMENT, "report_data": REPORT_DATA, "minimum_tcb": [GENOA_FLOOR]}


def judged(wanted: Policy, /, **changes: Any) -> Any:
    one = GENOA.evidence(**changes)
    return appraise(one.report, wanted, certificates=one.certificates, at=NOW, endorser=Nobody())


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hierarchy of the test's in place of AMD's."""
    monkeypatch.setattr(verifier, "_AMD", GENOA.root)


def test_a_genuine_report_in_three_lines() -> None:
    one, wanted, report_data = real_config(*REAL[0][:4])
    digest = wanted.require_reference().launch_digest
    chain = [real_data(name).read_bytes() for name in ("milan-v2/vcek.der", "amd-chains/ask_ark_milan.pem")]
    at = datetime(2026, 6, 1, tzinfo=UTC)
    floor = {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 115}
    policy = Policy.of("legacy-milan", measurement=digest, report_data=report_data, minimum_tcb=floor)
    verdict = verify(one.report, policy, certificates=chain, at=at, endorser=Nobody())
    assert isinstance(verdict, HardwareVerdict) and verdict.report.product == "Milan"
    other = Policy.of("legacy-milan", measurement=bytes(48), report_data=report_data, minimum_tcb=floor)
    with pytest.raises(Refused) as refused:
        verify(one.report, other, certificates=chain, at=at, endorser=Nobody())
    assert refused.value.reason == "measurement"
    with pytest.raises(Undecided):
        verify(one.report, policy, at=at, endorser=Nobody())
    with pytest.raises(Refused, match="ends after 1183 bytes"):
        verify(one.report[:-1], policy, certificates=chain, at=at, endorser=Nobody())


def test_checks_that_need_a_vm_config_are_named(ours: None) -> None:
    found = judged(Policy.of(**STATED))
    assert found.accepted, found.message
    free = {check.name for check in found.checks if "there is no VM config" in check.reason}
    assert free == {"platform", "guest-firmware", "guest-policy", "guest-svn", "family-id", "image-id", "host-data",
                    "id-key-digest", "author-key-digest"}  # fmt: skip
    assert any("no VM config" in risk for risk in found.residual_risks)
    page = render_page(found, None)
    assert "Accepted" in page and "<dt>Launch</dt>" not in page


@pytest.mark.parametrize(
    ("changes", "stated", "reason"),
    [
        ({"measurement": bytes(48)}, {}, "measurement"), ({"report_data": b"x" * 64}, {}, "report-data"),
        ({"vmpl": 1}, {}, "vmpl"), ({"policy": 0xB0000}, {}, "debug-policy"),
        ({"policy": 0x70000}, {}, "migration-policy"),
        ({"platform_info": 0x38}, {}, "platform-info.ecc-en"), ({"report_id_ma": bytes(32)}, {}, "report-id-ma"),
        ({"host_data": b"x" * 32}, {"host_data": "00" * 32}, "host-data"), ({}, {"minimum_tcb": None}, "tcb-floor"),
        ({}, {"minimum_tcb": {**GENOA_FLOOR, "snp": 24}}, "minimum-reported-tcb"),
        ({}, {"product": "Turin"}, "allowed-product"),
        ({}, {"guest_policy": 0x20000}, "guest-policy"),
    ],
)  # fmt: skip
def test_all_other_checks_are_made_without_a_vm_config(
    changes: dict[str, Any], stated: dict[str, Any], reason: str, ours: None
) -> None:
    assert judged(Policy.of(**STATED)).accepted  # control
    wanted = {key: value for key, value in {**STATED, **stated}.items() if value is not None}
    found = judged(Policy.of(**wanted), **changes)
    assert (found.decision, found.troubles()[0].name) == ("refused", reason)
    if reason == "tcb-floor":
        assert found.remedy == f"--min-tcb {GENOA.level.setting()}"


def test_several_measurements_are_allowed_and_required_fields_are_demanded(ours: None) -> None:
    several = {**STATED, "measurement": ["ab" * 48, MEASUREMENT.hex().upper()], "vmpl": [0, 1]}
    assert judged(Policy.of(**several), vmpl=1).accepted
    for missing in ("measurement", "report_data"):
        with pytest.raises(UserError, match=f"{missing}: missing"):
            Policy.of(**{key: value for key, value in STATED.items() if key != missing})
    with pytest.raises(UserError, match="measurement: found 'vm-config', expected a value"):
        Policy.of(**{**STATED, "measurement": "vm-config"})
    with pytest.raises(UserError, match="chip_id: missing"):
        Policy.of("strict", **STATED)
    with pytest.raises(UserError, match="one of strict"):
        Policy.of("lenient", **STATED)
    loose = Policy.of(**{**STATED, "minimum_tcb": {"any": "chips of our own"}, "launch_tcb": GENOA_FLOOR})
    assert loose.reported_tcb == Anything("chips of our own") and loose.launch_tcb != loose.committed_tcb
    bare = Policy.of(measurement=MEASUREMENT, report_data=REPORT_DATA)
    assert bare.reported_tcb == Unstated(demanded=False) and bare.vmpl == OneOf((0,))


def test_a_policy_file(tmp_path: Path, ours: None) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(f'profile = "default"\nmeasurement = ["{MEASUREMENT.hex()}"]\nminimum_tcb = {{ any = "a test" }}\n')
    assert judged(Policy.read(path, report_data=REPORT_DATA)).accepted
    assert not judged(Policy.read(path, report_data=REPORT_DATA, measurement=bytes(47) + b"\1")).accepted


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], ours: None) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    (tmp_path / "report").write_bytes(GENOA.report())
    chain = b"".join(one.public_bytes(Encoding.PEM) for one in (GENOA.certificate, GENOA.ask, GENOA.ark))
    (tmp_path / "chain").write_bytes(chain)
    (tmp_path / "policy.toml").write_text(f'profile = "default"\nmeasurement = "{MEASUREMENT.hex()}"\n')
    line = ["--input", f"{tmp_path}/report", "--certificates", f"{tmp_path}/chain", "--at", f"{NOW:%FT%TZ}"]
    line += ["--offline", "--report-data", REPORT_DATA.hex()]
    listed = ["--measurement", f"{'ab' * 48},{MEASUREMENT.hex()}"]
    floor = ["--min-tcb", GENOA.level.setting()]
    assert cli.main([*line, *listed]) == 2
    shown = capsys.readouterr().out
    assert f"\n{cli_remedy()}: --min-tcb {GENOA.level.setting()}\n" in shown
    assert cli.main([*line, *listed, *floor]) == 0
    assert "ACCEPTED: AMD hardware runs a guest with an accepted measurement" in capsys.readouterr().out
    assert cli.main([*line, *listed, "--min-tcb", "any", "--json"]) == 0
    assert any("--min-tcb any" in risk for risk in json.loads(capsys.readouterr().out)["open"])
    assert cli.main([*line, "--measurement", "ab" * 48, *floor]) == 2
    assert cli.main([*line, "--policy", f"{tmp_path}/policy.toml", *floor]) == 0
    assert cli.main([*line, "--policy", "legacy-milan", *listed, *floor]) == 2  # a Genoa
    capsys.readouterr()
    for wrong, words in (
        ([], "found no expected guest"), ([*listed, "--min-tcb", "snp"], "--min-tcb: found 'snp'"),
        (["--measurement", "ab"], "96 hex digits"), ([*listed, "--vm_definition", "x"], "not with --vm_definition"),
        ([*listed, "--policy", "nowhere"], "no such policy"), ([*listed, "--policy", "strict"], "chip_id: missing"),
    ):  # fmt: skip
        assert cli.main([*line, *wrong]) == 64
        assert words in capsys.readouterr().err


def cli_remedy() -> str:
    from sevsnp.attestation.outcome import REMEDY

    return REMEDY
