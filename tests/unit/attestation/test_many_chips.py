# SPDX-License-Identifier: Apache-2.0
"""A hundred chips in turn: each certificate chain is read and verified once, not for each report of its chip."""

import dataclasses

from sevsnp.attestation import authentication, certificates, chain, extensions
from tests.support.hierarchy import Hierarchy
from tests.unit.attestation.test_forged_reports import outcome

CHIPS = 100
REMEMBERED = (
    authentication._whole_chain, authentication._load, authentication._extensions, certificates._load,
    chain.root_product, chain.fingerprint, chain.issuing_problem, chain._standing_problem, chain._named,
    extensions.read_extensions,
)  # fmt: skip


def test_the_chains_of_a_hundred_chips_are_remembered() -> None:
    fleet = [dataclasses.replace(Hierarchy(), chip=number.to_bytes(64, "big")) for number in range(1, CHIPS + 1)]
    evidence, root = [one.evidence() for one in fleet], fleet[0].root
    assert all(one.root == root for one in fleet[:2])

    def read_anew() -> dict[str, int]:
        before = [one.cache_info().misses for one in REMEMBERED]
        for by, one in zip(fleet, evidence, strict=True):
            found = outcome(one, by)
            assert found.accepted, found.message
        misses = [one.cache_info().misses - known for one, known in zip(REMEMBERED, before, strict=True)]
        return {f"{one.__module__}.{one.__name__}": missed for one, missed in zip(REMEMBERED, misses, strict=True)}

    first, second = read_anew(), read_anew()
    assert first["sevsnp.attestation.authentication._whole_chain"] == CHIPS and set(second.values()) == {0}, second


def test_large_evidence_is_not_kept() -> None:
    one = Hierarchy().evidence()
    large = dataclasses.replace(one, certificates=(*one.certificates[:2], one.certificates[2] + b"\n" * (64 << 10)))
    before = certificates._load.cache_info(), authentication._whole_chain.cache_info()
    assert outcome(large).accepted
    after = certificates._load.cache_info(), authentication._whole_chain.cache_info()
    assert after[1] == before[1] and after[0].misses - before[0].misses <= 2
    assert outcome(one).accepted and authentication._whole_chain.cache_info() != before[1]  # control
