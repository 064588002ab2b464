# SPDX-License-Identifier: Apache-2.0
"""The files that an attestation keeps: an accepted result replaces them, a refusal does not; read back unchanged."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.attestation.appraisal import Refused
from sevsnp.attestation.report_input import read_input
from sevsnp.emulation.verify import appraise_emulated, verify_emulated
from sevsnp.errors import UserError
from sevsnp.owner.kept import Conversation, keep, places, read
from tests.support.evidence import REPORT_DATA, config, evidence, expected, now, root

KEY = "ssh-ed25519 " + "A" * 68


@functools.cache
def talk() -> Conversation:
    found = evidence()
    bound = {"tls_key": "11" * 32}
    return Conversation("luks", found.report, found.certificate_table, b"n" * 32, REPORT_DATA, now(), (KEY,), bound)


def kept(directory: Path) -> dict[str, Path]:
    appraisal = appraise_emulated(evidence(), expected(), now(), root())
    return keep(directory, talk(), appraisal, appraisal.to_json(), config())


def test_kept_evidence_is_the_same_when_read_again(tmp_path: Path) -> None:
    where = kept(tmp_path)
    again = read(tmp_path, emulated=True)
    assert again == replace(talk(), at=talk().at.replace(microsecond=0))
    assert read(tmp_path, emulated=False) is None
    # As get_report's document, for verify_report --input.
    assert read_input(where["evidence"].read_bytes(), "evidence").report == talk().report
    document = json.loads(where["evidence"].read_text())
    assert (document["emulated"], document["confidential"]) == (True, False)
    assert where["host_keys"].read_text() == KEY + "\n"
    assert all("emulated" in path.name for what, path in where.items() if what != "host_keys")


def test_the_files_of_another_trust_domain_are_removed(tmp_path: Path) -> None:
    for path in places(tmp_path, emulated=False).values():
        path.write_text("of hardware")
    where = kept(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(where.values())


def test_a_refusal_keeps_its_evidence_and_appraisal(tmp_path: Path) -> None:
    found = evidence()
    with pytest.raises(Refused) as refused:
        verify_emulated(found, expected(report_data=b"x" * 64), now(), root())
    appraisal = refused.value.appraisal
    assert appraisal and not appraisal.accepted and appraisal.checks == refused.value.checks
    keep(tmp_path, talk(), appraisal, refused.value.to_json(), config())
    assert json.loads(places(tmp_path, emulated=True)["verdict"].read_text())["reason"] == "report-data"


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"workflow": 1}', b"\xff", b'{"report": "\\u0000"}'])
def test_damaged_evidence_is_refused_with_its_name(tmp_path: Path, damage: bytes) -> None:
    path = kept(tmp_path)["evidence"]
    path.write_bytes(damage)
    with pytest.raises(UserError, match="not the evidence of an attestation") as refused:
        read(tmp_path, emulated=True)
    assert refused.value.hint == f"remove it: rm {path}"
