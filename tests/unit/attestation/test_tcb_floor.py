# SPDX-License-Identifier: Apache-2.0
"""The minimum TCB version: required for a verdict; "any" is named as a risk; the printed command works as printed."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sevsnp.attestation import verifier
from sevsnp.attestation.outcome import REMEDY
from sevsnp.attestation.page import render_page
from sevsnp.commands import verify_report as cli
from sevsnp.emulation.verify import verify_emulated
from sevsnp.measurement.make_config import _minimum_tcb
from sevsnp.settings.values import parse_tcb
from sevsnp.vm_config.config import Tcb, read_vm_config, render_vm_config
from tests.support.evidence import REPORT_DATA, config, evidence, expected, now, root
from tests.support.hierarchy import LEVEL, NOW, Hierarchy
from tests.unit.attestation.test_forged_reports import GENOA, LOWER, MILAN, failed, outcome

TURIN = Hierarchy("Turin")
SETUP = "./doitw setup_verity MIN_TCB="


def pasted(command: str, by: Hierarchy) -> Any:
    """The floor that a printed command gives the VM config, read as the setup task reads it."""
    return _minimum_tcb(command.removeprefix(SETUP), by.product)


@pytest.mark.parametrize("by", [GENOA, MILAN, TURIN], ids=lambda one: one.product)
def test_evidence_is_refused_without_a_minimum_and_the_command_to_set_it_is_printed(by: Hierarchy) -> None:
    refused = outcome(by=by, minimum_tcb=None)
    assert (refused.decision, refused.reason, failed(refused)) == ("refused", "tcb-floor", {"tcb-floor"})
    assert refused.remedy == SETUP + by.level.setting() and ("fmc:3" in refused.remedy) is (by.product == "Turin")
    assert refused.to_json()["remedy"] == refused.remedy and refused.remedy in render_page(refused, config())
    floor = pasted(refused.remedy, by)
    assert floor == by.level
    accepted = outcome(by=by, minimum_tcb=floor)
    assert accepted.accepted and accepted.remedy == ""
    # It is a floor: one less in any part is refused.
    for name, value in vars(floor).items():
        if value:
            found = outcome(by=by, minimum_tcb=dataclasses.replace(floor, **{name: value + 1}))
            assert (found.decision, found.reason) == ("refused", "minimum-reported-tcb")


def test_the_printed_minimum_is_one_that_the_report_meets() -> None:
    # Started before an update of the firmware: reported above what the launch had.
    one = GENOA.evidence(launch_tcb=LOWER)
    refused = outcome(one, minimum_tcb=None)
    assert refused.remedy == SETUP + LOWER.setting() and LOWER != LEVEL
    assert outcome(one, minimum_tcb=pasted(refused.remedy, GENOA)).accepted


def test_no_minimum_is_printed_for_a_report_that_fails_another_check() -> None:
    for changes in ({"vmpl": 1}, {"measurement": bytes(48)}, {"report_data": bytes(64)}, {"reported_tcb": LOWER}):
        refused = outcome(GENOA.evidence(**changes), minimum_tcb=None)
        assert refused.decision == "refused" and refused.reason != "tcb-floor" and refused.remedy == ""
    other = outcome(Hierarchy(keys="-other").evidence(), minimum_tcb=None)
    assert (other.reason, other.remedy) == ("unknown-root", "")


def test_the_minimum_any_is_accepted_and_named_as_a_risk() -> None:
    found = outcome(minimum_tcb="any")
    assert found.accepted
    (road,) = found.to_json()["open"]
    assert "vulnerable microcode" in road and "MIN_TCB=any" in road
    assert "vulnerable microcode" in render_page(found, config())
    assert outcome().residual_risks == ()  # control: with a minimum there is nothing to say


def test_a_policy_must_state_all_three_minimum_tcb_versions() -> None:
    names = ("reported_tcb", "committed_tcb", "launch_tcb")
    word: dict[str, Any] = {"policy": dict.fromkeys(names, "vm-config-if-any")}
    assert outcome(minimum_tcb=None, **word).reason == "tcb-floor"
    # Each of the three has to be stated.
    for name in names:
        said: dict[str, Any] = {"policy": {other: {"any": "a test"} for other in names if other != name}}
        assert outcome(minimum_tcb=None, **said).reason == "tcb-floor"
    free = outcome(minimum_tcb=None, policy={name: {"any": "chips of our own"} for name in names})
    assert free.accepted and any("chips of our own" in road for road in free.residual_risks)
    table = {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 200}
    assert outcome(minimum_tcb=None, policy=dict.fromkeys(names, table)).accepted
    higher = {**table, "snp": 24}
    assert outcome(minimum_tcb="any", policy=dict.fromkeys(names, higher)).reason == "minimum-reported-tcb"


def test_a_report_of_version_zero_suggests_no_floor() -> None:
    zero = Hierarchy(tcb=Tcb(0, 0, 0, 0))
    refused = outcome(by=zero, minimum_tcb=None)
    assert (refused.reason, refused.remedy) == ("tcb-floor", "")


def test_the_emulation_needs_no_minimum_and_the_verdict_says_so() -> None:
    verdict = verify_emulated(evidence(), expected(minimum_tcb=None), now(), root()).to_json()
    assert verdict["accepted_as_emulated"] is True
    (road,) = verdict["open"]
    assert "on hardware one is required" in road
    chips = {"profile": "strict", "chip_id": {"any": "a test"}, "revocation": {"any": "a test"}}
    strict: dict[str, Any] = {"guest_policy": 0x3D20000, "policy": chips}
    one = evidence(policy=0x3D20000)
    assert verify_emulated(one, expected(**strict), now(), root())  # control: with a minimum
    with pytest.raises(verifier.Refused) as refused:
        verify_emulated(one, expected(minimum_tcb=None, **strict), now(), root())
    assert refused.value.reason == "tcb-floor" and refused.value.remedy.startswith(SETUP)


def written(directory: Path, minimum: Any) -> Path:
    made = config(platform="snp", minimum_tcb=minimum, platform_info_required=0, platform_info_forbidden=0)
    made = dataclasses.replace(made, source=directory / "vm.toml")
    made.source.write_text(render_vm_config(made))
    return made.source


def test_verify_report_prints_the_command_and_returns_its_exit_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hierarchy of the test's in place of AMD's: exit code 2 and the command, then 0 with its minimum."""
    monkeypatch.setattr(verifier, "_AMD", GENOA.root)
    (tmp_path / "report").write_bytes(GENOA.report())
    chain = b"".join(one.public_bytes(Encoding.PEM) for one in (GENOA.certificate, GENOA.ask, GENOA.ark))
    (tmp_path / "chain").write_bytes(chain)
    words = ["--input", f"{tmp_path}/report", "--certificates", f"{tmp_path}/chain", "--at", f"{NOW:%FT%TZ}"]
    words += ["--offline", "--report-data", REPORT_DATA.hex(), "--vm_definition"]

    def run(minimum: Any, *more: str) -> tuple[int, str]:
        code = cli.main([*words, str(written(tmp_path, minimum)), *more])
        return code, capsys.readouterr().out

    code, shown = run(None)
    assert code == cli.REFUSED and "REFUSED (tcb-floor)" in shown
    (line,) = re.findall(rf"^{re.escape(REMEDY)}: \./doitw setup_verity MIN_TCB=(\S+)$", shown, re.MULTILINE)
    assert parse_tcb(line)["microcode"] == 200
    code, shown = run(_minimum_tcb(line, "Genoa"))
    assert code == cli.ACCEPTED and "vulnerable" not in shown and REMEDY not in shown
    code, shown = run("any")
    assert code == cli.ACCEPTED and "vulnerable microcode" in shown
    code, shown = run("any", "--json")
    assert code == cli.ACCEPTED and any("vulnerable" in road for road in json.loads(shown)["open"])
    (tmp_path / "policy.toml").write_text('profile = "default"\n')
    assert run(None, "--policy", f"{tmp_path}/policy.toml")[0] == cli.REFUSED
    code, _ = run(_minimum_tcb(line, "Genoa"), "--policy", f"{tmp_path}/policy.toml")
    assert code == cli.ACCEPTED


def test_the_printed_command_for_a_vm_config_with_an_id_block_is_idblock(tmp_path: Path) -> None:
    (tmp_path / "idblock").mkdir()
    source = written(tmp_path / "idblock", None)
    wanted = verifier.Expected.of(read_vm_config(source), REPORT_DATA)
    assert wanted.made_by == "./doitw idblock:verity ID_KEY=FILE"
