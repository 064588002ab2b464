"""Parsers of untrusted bytes: whatever comes in, out comes a value or the documented error. Longer with --full."""

import dataclasses
import json
import os
import warnings
from collections.abc import Callable

import pytest
from cryptography.utils import CryptographyDeprecationWarning
from hypothesis import given, settings
from hypothesis import strategies as st

from sevsnp.attestation import certificates as certs
from sevsnp.attestation.appraisal import Evidence, appraise
from sevsnp.attestation.certificates import der
from sevsnp.attestation.extensions import ExtensionError, named_product, read_extensions
from sevsnp.attestation.id_block import IdAuth, IdBlock, Identity, check_identity
from sevsnp.attestation.inspection import inspect
from sevsnp.attestation.report import parse_report
from sevsnp.attestation.revocation import CrlError, load_crl
from sevsnp.errors import UserError
from tests.unit.evidence import expected, psp
from tests.unit.hierarchy import NOW, Hierarchy

GENOA = Hierarchy()
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "150"))
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


def only(error: type[Exception], work: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CryptographyDeprecationWarning)
        try:
            work()
        except error as found:
            assert str(found)


@fuzz
@given(damaged(GENOA.report()))
def test_reports(data: bytes) -> None:
    only(UserError, lambda: parse_report(data, "Genoa"))


@fuzz
@given(damaged(psp().certificate_table()[:5000]))
def test_certificate_tables(data: bytes) -> None:
    only(UserError, lambda: certs.certificates_of_table(data))
    only(UserError, lambda: certs.crl_of_table(data))


@fuzz
@given(damaged(der(GENOA.certificate)))
def test_certificates(data: bytes) -> None:
    def read() -> None:
        for one in certs.load_certificates(data):
            named_product(one)
            only(ExtensionError, lambda one=one: read_extensions(one, "Genoa"))  # type: ignore[misc]

    only(UserError, read)


@fuzz
@given(damaged(GENOA.crl([1, 2, 3])))
def test_revocation_lists(data: bytes) -> None:
    only(CrlError, lambda: load_crl(data, GENOA.ark, NOW))


@fuzz
@given(damaged(bytes(96)), damaged(bytes(4096)))
def test_id_blocks(block: bytes, auth: bytes) -> None:
    only(UserError, lambda: IdBlock.decode(block))
    only(UserError, lambda: IdAuth.decode(auth))

    def whole() -> None:
        check_identity(Identity(IdBlock.decode(block), IdAuth.decode(auth)), bytes(48), 0x30000)

    only(UserError, whole)


WANTED = expected(platform="snp", platform_info_required=0, platform_info_forbidden=0)


@fuzz
@given(
    damaged(GENOA.report()), damaged(der(GENOA.certificate)), damaged(der(GENOA.ask)), damaged(der(GENOA.ark)),
    st.integers(0, 15),
)  # fmt: skip
def test_whole_evidence(report: bytes, leaf: bytes, ask: bytes, ark: bytes, honest: int) -> None:
    """Nothing that is damaged is accepted, and nothing raises."""
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
