# SPDX-License-Identifier: Apache-2.0
"""Parsers of untrusted bytes: for any input they return a value or raise the documented error. Longer with --full."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.utils import CryptographyDeprecationWarning
from hypothesis import given, settings
from hypothesis import strategies as st

from sevsnp.attestation.appraisal import Evidence, appraise
from sevsnp.attestation.certificates import der
from sevsnp.attestation.inspection import inspect
from tests.support.cpu_limit import cpu_limit
from tests.support.evidence import ROOT, expected
from tests.support.fuzz_targets import TARGETS
from tests.support.hierarchy import NOW, Hierarchy
from tests.support.replacing import replaced_once

GENOA = Hierarchy()
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
# Processor time for one input of a few kilobytes; larger ones are in test_work_limits.py.
SECONDS = 2.0
fuzz = settings(max_examples=EXAMPLES, deadline=None, derandomize="FUZZ_EXAMPLES" not in os.environ)


def damaged(honest: bytes) -> st.SearchStrategy[bytes]:
    """Honest bytes with a few replaced, cut short, or grown; and bytes of any kind."""
    edits = st.lists(st.tuples(st.integers(0, len(honest) - 1), st.binary(min_size=1, max_size=4)), max_size=4)

    def apply(changes: tuple[list[tuple[int, bytes]], int, bytes]) -> bytes:
        made = bytearray(honest)
        for place, data in changes[0]:
            made[place : place + len(data)] = data
        return bytes(made[: changes[1]]) + changes[2]

    cut = st.one_of(st.just(len(honest)), st.integers(0, len(honest)))
    return st.one_of(st.binary(max_size=2000), st.tuples(edits, cut, st.binary(max_size=4)).map(apply))


@pytest.mark.parametrize("name", TARGETS)
@fuzz
@given(st.data())
def test_parsers(name: str, data: st.DataObject) -> None:
    chosen = data.draw(st.one_of(*map(damaged, TARGETS[name].seeds)))
    with cpu_limit(SECONDS):
        TARGETS[name](chosen)


@pytest.mark.parametrize("name", TARGETS)
def test_every_parser_accepts_one_of_its_seeds(name: str) -> None:
    """If a parser refused all its seeds at once, fuzzing would find nothing."""

    def taken(seed: bytes) -> bool:
        try:
            TARGETS[name].work(seed)
        except TARGETS[name].error as error:
            # A service never answers all questions with one body, and no SVSM is at hand.
            return name == "service" or "no SVSM info" in str(error)
        return True

    assert any(map(taken, TARGETS[name].seeds))


@pytest.mark.full
@pytest.mark.parametrize("name", TARGETS)
def test_parsers_by_coverage(name: str, tmp_path: Path) -> None:
    """Inputs are kept and changed further if they reach new code; FUZZ_SECONDS for each parser."""
    if not importlib.util.find_spec("atheris"):
        pytest.skip("no atheris here: pip install atheris")
    seconds = int(os.environ.get("FUZZ_SECONDS", "10"))
    words = [sys.executable, "-m", "tests.support.atheris_run", name, str(tmp_path), f"-max_total_time={seconds}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=seconds + 300,
                          check=False)  # fmt: skip
    found = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert done.returncode == 0 and found and int(found[1]) > 100, (done.stdout + done.stderr)[-3000:]


def test_atheris_finds_a_planted_fault(tmp_path: Path) -> None:
    """Control: a parser that fails for certain bytes is detected."""
    pytest.importorskip("atheris")
    script = (
        "import sys; from tests.unit import atheris_run as run\n"
        "from tests.support.fuzz_targets import Target\n"
        "run.TARGETS['broken'] = Target(lambda: (b'abc',), lambda data: 1 // (data[:1] != b'b'), KeyError)\n"
        "run.main('broken', sys.argv[1], '-max_total_time=60')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, timeout=300)
    assert done.returncode and b"ZeroDivisionError" in done.stdout + done.stderr


def with_year(certificate: bytes, year: bytes) -> bytes:
    return replaced_once(certificate, b"20530101", year + b"0101")


@pytest.mark.parametrize("place", ["dates", "issuer", "subject"])
def test_faults_in_certificate_fields_that_are_parsed_late_are_refused(place: str) -> None:
    """Names and dates are parsed only when they are used. The attacker's leaf certificate signs the report here."""
    days = (datetime(2053, 1, 1, tzinfo=UTC) - NOW).days
    leaf = der(Hierarchy(leaf_days=(-30, days)).certificate)
    changed = {
        "dates": lambda: with_year(leaf, b"0000"),
        "issuer": lambda: leaf.replace(b"Santa", b"Sant\xff", 1),  # no UTF-8
        "subject": lambda: b"Sant\xff".join(leaf.rsplit(b"Santa", 1)),
    }[place]()
    assert changed != leaf and len(changed) == len(leaf)
    rest = der(GENOA.ask), der(GENOA.ark)
    honest = GENOA.report()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        assert appraise(Evidence(honest, certificates=(leaf, *rest)), WANTED, NOW, GENOA.root).accepted  # control
        for certificates in ((changed, *rest), (changed, der(GENOA.certificate), *rest), (changed,)):
            one = Evidence(honest, certificates=certificates)
            found = appraise(one, WANTED, NOW, GENOA.root)
            assert not found.accepted or der(GENOA.certificate) in certificates
            assert found.decision in ("refused", "undecided") or len(certificates) == 4
            inspect(one, NOW, GENOA.root)


WANTED = expected(platform="snp", platform_info_required=0, platform_info_forbidden=0)


@fuzz
@given(
    # Deferred, or keys would be made whenever tests are collected.
    st.deferred(lambda: damaged(GENOA.report())), st.deferred(lambda: damaged(der(GENOA.certificate))),
    st.deferred(lambda: damaged(der(GENOA.ask))), st.deferred(lambda: damaged(der(GENOA.ark))),
    st.integers(0, 15),
)  # fmt: skip
def test_damaged_evidence_is_never_accepted_and_never_raises(
    report: bytes, leaf: bytes, ask: bytes, ark: bytes, honest: int
) -> None:
    """No damaged evidence is accepted, and no exception is raised."""
    whole = GENOA.evidence()
    chain = [one if honest >> place & 1 else other for place, (one, other) in enumerate(
        zip((der(GENOA.certificate), der(GENOA.ask), der(GENOA.ark)), (leaf, ask, ark), strict=True))]  # fmt: skip
    one = Evidence(whole.report if honest & 8 else report, certificates=tuple(chain))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        found = appraise(one, WANTED, NOW, GENOA.root)
        json.dumps(found.to_json())
        json.dumps(inspect(one, NOW, GENOA.root).to_json())
    same = one.report == whole.report and chain == [der(GENOA.certificate), der(GENOA.ask), der(GENOA.ark)]
    assert same or not found.accepted or one.report == whole.report


def flipped(one: Evidence, bit: int) -> Evidence:
    raw = bytearray(one.report)
    raw[bit // 8] ^= 1 << bit % 8
    return dataclasses.replace(one, report=bytes(raw))


@pytest.mark.parametrize("start", range(8))
def test_flipped_bits_sampled(start: int) -> None:
    one = GENOA.evidence()
    assert appraise(one, WANTED, NOW, GENOA.root).accepted  # control
    for bit in range(start, 0x2A0 * 8, 61):
        assert appraise(flipped(one, bit), WANTED, NOW, GENOA.root).decision == "refused"
