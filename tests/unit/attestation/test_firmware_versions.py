# SPDX-License-Identifier: Apache-2.0
"""The secure processor's firmware: the current and the committed version are both compared, as numbers, not as text."""

import dataclasses
from typing import Any

import pytest

from sevsnp.attestation.appraisal import Evidence, appraise
from sevsnp.emulation.report_encoder import encode_report
from tests.support.evidence import expected
from tests.support.hierarchy import NOW, Hierarchy

GENOA = Hierarchy()
Version = tuple[int, int, int]
CURRENT, COMMITTED = 0x1E8, 0x1EC


def evidence(current: Version, committed: Version) -> Evidence:
    """A signed report with these versions (major, minor, build). The report has the bytes in the other order."""
    body = bytearray(encode_report(GENOA.fields()))
    for place, version in ((CURRENT, current), (COMMITTED, committed)):
        body[place : place + 3] = bytes(reversed(version))
    return dataclasses.replace(GENOA.evidence(), report=GENOA.sign(bytes(body)))


def failed(current: Version, committed: Version, **policy: Any) -> set[str]:
    wanted = expected(platform="snp", policy=policy, platform_info_required=0, platform_info_forbidden=0)
    found = appraise(evidence(current, committed), wanted, NOW, GENOA.root)
    return {str(check.name) for check in found.checks if check.outcome == "failed"}


FLOOR = {"at_least": "1.55.38"}
PROVISIONAL = {"provisional-firmware"}


@pytest.mark.parametrize("low", [(1, 55, 37), (1, 54, 99), (0, 99, 99)])
@pytest.mark.parametrize("other", [(1, 55, 38), (1, 55, 39), (1, 56, 0), (2, 0, 0)])
def test_the_minimum_applies_to_the_current_and_the_committed_version(low: Version, other: Version) -> None:
    """The host may return to the committed firmware, so a newer current version is not enough; nor the reverse."""
    assert failed(other, other, firmware=FLOOR) == set()  # control
    for current, committed in ((low, other), (other, low)):
        both = failed(current, committed, firmware=FLOOR, provisional_firmware=[True, False])
        assert both == {"minimum-firmware"}
    assert failed(low, low, firmware=FLOOR) == {"minimum-firmware"}


@pytest.mark.parametrize("current", [(1, 55, 41), (1, 56, 40), (2, 55, 40), (1, 55, 39)])
def test_firmware_that_is_not_committed_is_provisional(current: Version) -> None:
    """Even if the TCB versions are equal: a new build may have the same security version number."""
    committed = (1, 55, 40)
    assert failed(committed, committed) == set()  # control
    assert failed(current, committed) == PROVISIONAL
    assert failed(current, committed, provisional_firmware=[True, False]) == set()
    assert failed(committed, committed, provisional_firmware=[True]) == PROVISIONAL
