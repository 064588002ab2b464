# SPDX-License-Identifier: Apache-2.0
"""MIN_TCB for single processors: the setting, the VM config, and its effect in the verifier."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sevsnp.commands import verify_report
from sevsnp.errors import UserError
from sevsnp.measurement.make_config import _minimum_tcb
from sevsnp.settings.values import minimum_tcb
from sevsnp.vm_config.config import Tcb, parse_vm_config, read_vm_config, render_vm_config
from sevsnp.vm_config.fixed import check_fixed
from sevsnp.vm_config.floors import Floor, Processor, floors_of_setting
from sevsnp.vm_config.processor import Cpuid
from tests.support.hierarchy import Hierarchy
from tests.unit.attestation.test_forged_reports import failed, outcome
from tests.unit.vm_config.test_vm_config import make

GENOA, BERGAMO = Processor(0x19, 0x11, 1), Processor(0x19, 0xA0, 2)
TEXT = "cpuid:0x19/0x11/1,bootloader:7,snp:23,microcode:84,cpuid:0x19/0xa0/2,snp:23,microcode:25"
FLOORS = (Floor(GENOA, Tcb(7, 0, 23, 84)), Floor(BERGAMO, Tcb(0, 0, 23, 25)))
CHIP = Hierarchy(tcb=Tcb(7, 0, 23, 30))  # enough for a Bergamo, not for a Genoa


def test_the_setting() -> None:
    assert minimum_tcb(TEXT) == TEXT and floors_of_setting(TEXT) == FLOORS
    assert _minimum_tcb(TEXT, "Genoa") == FLOORS and floors_of_setting("snp:8") == ()
    assert floors_of_setting("CPUID:25/17,snp:1") == (Floor(Processor(0x19, 0x11), Tcb(0, 0, 1, 0)),)
    assert floors_of_setting("cpuid:0x1a/2/1,fmc:1") == (Floor(Processor(0x1A, 2, 1), Tcb(0, 0, 0, 0, 1)),)
    assert ",".join(floor.setting() for floor in floors_of_setting(TEXT)) == TEXT.replace(
        "7,snp", "7,tee:0,snp").replace("2,snp", "2,bootloader:0,tee:0,snp")  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["cpuid:", "cpuid:0x19/0x11/1", "cpuid:0x19,snp:1", "cpuid:0x19/0x11/1,snp:0", "cpuid:0x19/0x11/1/1,snp:1",
     "snp:1,cpuid:0x19/0x11/1,snp:1", f"{TEXT},cpuid:0x19/0x11/2,snp:0", "cpuid:0x19/0x11/1,cpuid:0x19/0xa0/2,snp:1",
     "cpuid:0x19/0x11/1,any", f"{TEXT},"],
)  # fmt: skip
def test_malformed_values_of_the_setting_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        minimum_tcb(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{TEXT},cpuid:25/17/1,snp:1", "found 0x19/0x11/1 twice"),
        ("cpuid:0x19/0x01/1,snp:1", "0x19/0x1/1 is one of Milan, expected PRODUCT=Genoa"),
        ("cpuid:0x17/0x31/0,snp:1", "expected a known processor"),
        ("cpuid:0x19/0x11/1,snp:1,fmc:1", "which is a Genoa"),
    ],
)
def test_values_that_do_not_fit_the_product_are_refused(text: str, words: str) -> None:
    assert minimum_tcb(text)
    with pytest.raises(UserError, match=words) as refused:
        _minimum_tcb(text, "Genoa")
    assert refused.value.message.startswith(f"MIN_TCB={text}: ")


def test_the_vm_config(tmp_path: Path) -> None:
    source = tmp_path / "vm-config.toml"
    config = make(source, "Genoa")
    config = dataclasses.replace(config, reference=dataclasses.replace(config.require_reference(), minimum_tcb=FLOORS))
    source.write_text(render_vm_config(config))
    read = read_vm_config(source)
    assert read.require_reference().minimum_tcb == FLOORS and read.policy == config.policy
    check_fixed(read, {"MIN_TCB": TEXT})
    first, second = TEXT.split(",cpuid:")
    check_fixed(read, {"MIN_TCB": f"cpuid:{second.replace('0xa0', '160')},{first}"})
    for other in ("snp:23", "any", "", TEXT.replace("84", "85"), first):
        with pytest.raises(UserError, match=r"MIN_TCB=.*was made for MIN_TCB=cpuid:0x19/0x11/1,"):
            check_fixed(read, {"MIN_TCB": other})
    document = tomllib.loads(source.read_text())
    for wrong, words in (
        ([{**FLOORS[0].document(), "cpuid": "0x1a/0x2/1", "fmc": 1}], "processors of Genoa, and 0x1a/0x2/1 is"),
        ([{**FLOORS[0].document(), "snp": 256}], "a number from 0 to 255 for snp"), ([], "a list of tables"),
    ):  # fmt: skip
        document["reference"]["minimum_tcb"] = wrong
        with pytest.raises(UserError, match=rf"reference\.minimum_tcb: expected {words}"):
            parse_vm_config(document, source)


# The CPUID in the report, and the checks that refuse a chip whose microcode is between the two floors.
TOO_LOW = {"minimum-reported-tcb", "minimum-committed-tcb", "minimum-launch-tcb"}


@pytest.mark.parametrize(
    ("cpuid", "wrong"),
    [(Cpuid(0x19, 0xA0, 2), set()), (Cpuid(0x19, 0x11, 1), TOO_LOW), (Cpuid(0x19, 0xA0, 1), TOO_LOW)],
)
def test_the_verdict(cpuid: Cpuid, wrong: set[str]) -> None:
    found = outcome(CHIP.evidence(cpuid=cpuid), CHIP, minimum_tcb=FLOORS)
    assert failed(found) == wrong and found.accepted is not bool(wrong)
    # Control: one floor for all of them takes the Genoa, too.
    assert outcome(CHIP.evidence(cpuid=cpuid), CHIP, minimum_tcb=FLOORS[1].tcb).accepted


def test_the_command() -> None:
    assert verify_report._minimum_tcb(TEXT) == [floor.document() for floor in FLOORS]
    named: Any = verify_report._minimum_tcb("snp:8")
    assert named["snp"] == 8
    with pytest.raises(UserError, match="--min-tcb: found"):
        verify_report._minimum_tcb("cpuid:0x17/0x31/0,snp:1")
