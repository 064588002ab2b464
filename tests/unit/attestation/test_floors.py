# SPDX-License-Identifier: Apache-2.0
"""Minimum TCB versions for single processors, and Turin's FMC in every comparison of TCB versions."""

import dataclasses
from typing import Any

import pytest

from sevsnp.attestation.rules import ChipTcb, TcbFloors, at_most, comparison, show, show_rule
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Tcb
from sevsnp.vm_config.floors import Floor, Processor, floor_for, parse_floors
from sevsnp.vm_config.processor import Cpuid
from tests.support.hierarchy import Hierarchy
from tests.unit.attestation.test_forged_reports import failed, outcome

TCBS = ("reported_tcb", "committed_tcb", "launch_tcb")
BERGAMO_CPUID, GENOA_CPUID = Cpuid(0x19, 0xA0, 2), Cpuid(0x19, 0x11, 1)
# Numbers of the tests' own: what is up to date on one processor is old on the other.
GENOA_FLOOR = {"cpuid": "0x19/0x11/1", "bootloader": 10, "tee": 0, "snp": 23, "microcode": 84}
BERGAMO_FLOOR = {**GENOA_FLOOR, "cpuid": "0x19/0xa0", "microcode": 25}
OLD = Hierarchy(tcb=Tcb(10, 0, 23, 25))
TURIN = Hierarchy("Turin")
TURIN_FLOOR = {"cpuid": "0x1a/0x02/1", "fmc": 3, "bootloader": 10, "tee": 0, "snp": 23, "microcode": 200}


def judged(by: Hierarchy, floors: Any, **changes: Any) -> set[str]:
    return failed(outcome(by.evidence(**changes), by, minimum_tcb=None, policy=dict.fromkeys(TCBS, floors)))


def test_a_genoa_at_bergamos_microcode_is_refused() -> None:
    both = [GENOA_FLOOR, BERGAMO_FLOOR]
    everywhere = {"minimum-reported-tcb", "minimum-committed-tcb", "minimum-launch-tcb"}
    assert judged(OLD, both, cpuid=BERGAMO_CPUID) == set()
    assert judged(OLD, both, cpuid=GENOA_CPUID) == everywhere
    # Control: one floor for all, which is Bergamo's, accepts it, and the verdict names what it does not know.
    one = {name: value for name, value in BERGAMO_FLOOR.items() if name != "cpuid"}
    found = outcome(OLD.evidence(cpuid=GENOA_CPUID), OLD, minimum_tcb=None, policy=dict.fromkeys(TCBS, one))
    assert found.accepted and any("names no CPUID" in note and "0x19/0x11/1" in note for note in found.notes)
    bound = outcome(OLD.evidence(cpuid=BERGAMO_CPUID), OLD, minimum_tcb=None, policy=dict.fromkeys(TCBS, both))
    assert bound.accepted and not any("names no CPUID" in note for note in bound.notes)


def test_a_processor_without_a_floor_is_refused() -> None:
    for cpuid in (Cpuid(0x19, 0x11, 2), Cpuid(0x19, 0x10, 1)):
        assert len(judged(OLD, [BERGAMO_FLOOR, {**GENOA_FLOOR, "microcode": 1}], cpuid=cpuid)) == 3
    assert len(judged(OLD, BERGAMO_FLOOR, version=2)) == 3  # a report that names no CPUID
    found = outcome(OLD.evidence(), OLD, minimum_tcb=None, policy={key: [BERGAMO_FLOOR] for key in TCBS})
    (check,) = (one for one in found.checks if one.name == "minimum-reported-tcb")
    assert check.found.endswith("microcode 25 on 0x19/0x11/1") and "0x19/0xa0: bootloader 10" in check.expected


def test_the_floor_of_a_stepping_goes_before_that_of_its_model() -> None:
    floors = parse_floors([{**GENOA_FLOOR, "cpuid": "25/17", "microcode": 1}, GENOA_FLOOR])
    assert floors == (
        Floor(Processor(0x19, 0x11), Tcb(10, 0, 23, 1)),
        Floor(Processor(0x19, 0x11, 1), Tcb(10, 0, 23, 84)),
    )
    for order in (floors, floors[::-1]):
        assert floor_for(order, GENOA_CPUID) == Tcb(10, 0, 23, 84)
        assert floor_for(order, Cpuid(0x19, 0x11, 0)) == Tcb(10, 0, 23, 1)
        assert floor_for(order, BERGAMO_CPUID) is None and floor_for(order, None) is None


@pytest.mark.parametrize(
    ("floors", "words"),
    [
        ([], "a list of tables"), ([7], "tables with cpuid"), ([{**GENOA_FLOOR, "cpuid": "Genoa"}], "as 0x19/0x11/1"),
        ([{**GENOA_FLOOR, "cpuid": 25}], "tables with cpuid"), ([GENOA_FLOOR, GENOA_FLOOR], "once; found"),
        ([{**GENOA_FLOOR, "fmc": 1}], "which is a Genoa"), ([{**GENOA_FLOOR, "cpuid": "0x1a/2"}], "which is a Turin"),
        ([{**GENOA_FLOOR, "cpuid": "0x17/0x31"}], "no known product"),
        ([{**GENOA_FLOOR, "snp": 256}], "0 to 255 for snp"),
        ([{**GENOA_FLOOR, "snp": True}], "0 to 255 for snp"),
        ([{**dict.fromkeys(GENOA_FLOOR, 0), "cpuid": "25/17"}], "a number above 0"),
    ],
)  # fmt: skip
def test_wrong_floors_are_refused_by_name(floors: Any, words: str) -> None:
    with pytest.raises(UserError, match="reported_tcb: found") as wrong:
        judged(OLD, floors)
    assert words in wrong.value.message


def test_turins_fmc_counts_in_every_comparison() -> None:
    assert judged(TURIN, [TURIN_FLOOR]) == set()  # control
    assert len(judged(TURIN, [{**TURIN_FLOOR, "fmc": 4}])) == 3
    bare = {name: value for name, value in TURIN_FLOOR.items() if name != "cpuid"}
    assert judged(TURIN, bare) == set() and len(judged(TURIN, {**bare, "fmc": 4})) == 3
    level = TURIN.level
    lower, higher = (dataclasses.replace(level, fmc=fmc) for fmc in (2, 4))
    # In the order of reported, committed and current; and in whether the firmware is provisional.
    loose = {key: {"any": "a test"} for key in TCBS}
    any_floor: dict[str, Any] = {"minimum_tcb": None, "policy": {**loose, "provisional_firmware": [True, False]}}
    for name in ("committed_tcb", "current_tcb"):
        changed: dict[str, Any] = {name: lower}
        assert failed(outcome(TURIN.evidence(**changed), TURIN, **any_floor)) == {"tcb-order"}
    strictly: dict[str, Any] = {"minimum_tcb": None, "policy": loose}
    assert failed(outcome(TURIN.evidence(current_tcb=higher), TURIN, **strictly)) == {"provisional-firmware"}
    # The VCEK is for one FMC.
    assert "tcb" in failed(outcome(TURIN.evidence(reported_tcb=lower), TURIN, **any_floor))
    assert failed(outcome(TURIN.evidence(launch_tcb=lower), TURIN, minimum_tcb=level)) == {"minimum-launch-tcb"}


def test_turins_fmc_is_shown() -> None:
    tcb = Tcb(1, 2, 3, 4, fmc=7)
    assert show(tcb) == "fmc 7 bootloader 1 tee 2 snp 3 microcode 4" and show(Tcb(1, 2, 3, 4)).startswith("bootloader")
    assert show(Tcb(1, 2, 3, 4, fmc=0)).startswith("fmc 0 ")
    assert show(ChipTcb(tcb, Cpuid(0x1A, 2, 1))) == f"{show(tcb)} on 0x1a/0x2/1" and show(ChipTcb(tcb, None)) == show(
        tcb
    )
    assert tcb.setting().endswith("fmc:7") and not Tcb(0, 0, 0, 0, fmc=1).is_zero()
    assert at_most(tcb, tcb) and not at_most(tcb, dataclasses.replace(tcb, fmc=6)) and not at_most(tcb, Tcb(9, 9, 9, 9))
    floors = TcbFloors((Floor(Processor(0x1A, 2), tcb),), "a file")
    assert show_rule(floors) == f"at least, by processor, 0x1a/0x2: {show(tcb)} (a file)"
    assert comparison(floors)(ChipTcb(tcb, Cpuid(0x1A, 2, 9))) and not comparison(floors)(tcb)
