"""A verdict says what it leaves open, and what it did not compare."""

from sevsnp.emulation.verify import verify_emulated
from sevsnp.vm.config import Tcb
from tests.unit.evidence import evidence, expected, now, root


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
    nothing = outcomes(minimum_tcb=Tcb(0, 0, 0, 0), platform_info_required=0, platform_info_forbidden=0)
    assert {nothing[name] for name in names} == {nothing["platform-info.smt-en"]} == {"not-compared"}


def test_a_weaker_profile_is_named() -> None:
    verdict = verify_emulated(evidence(), expected(), now(), root())
    assert any("profile default: weaker than strict" in note for note in verdict.to_json()["notes"])
    assert verdict.to_json()["profile"] == "default"
