# SPDX-License-Identifier: Apache-2.0
"""Reports in every file format in which programs store them, and files that contain no report."""

import base64
import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sevsnp.attestation.report_input import read_input
from sevsnp.errors import UserError
from tests.support.evidence import real_data
from tests.support.texts import UNICODE

RAW = bytes.fromhex(real_data("milan-v2/report.hex").read_text())
RESPONSE = struct.pack("<II24x", 0, len(RAW)) + RAW
JSON = json.dumps({"report": base64.b64encode(RAW).decode(), "certificates": base64.b64encode(b"table").decode()})

FORMS = {
    "raw": [RAW],
    "hex": [RAW.hex().encode(), b"0x" + RAW.hex().upper().encode() + b"\n", RAW.hex(" ", 16).encode(),
            b"\n".join(RAW.hex().encode()[start : start + 64] for start in range(0, 2 * len(RAW), 64))],
    "base64": [base64.b64encode(RAW), base64.encodebytes(RAW)],
    "ioctl": [RESPONSE, RESPONSE.ljust(4000, b"\0")],
    "hcl": [b"HCLA" + bytes(28) + RAW, b"HCLA" + bytes(28) + RAW + bytes(100)],
    "json": [JSON.encode(), json.dumps({"report": base64.b64encode(RAW).decode()}).encode()],
}  # fmt: skip


@pytest.mark.parametrize(("form", "number"), [(form, n) for form, all_ in FORMS.items() for n in range(len(all_))])
def test_every_form_gives_the_same_bytes(form: str, number: int) -> None:
    found = read_input(FORMS[form][number], "report")
    assert (found.report, found.form) == (RAW, form)
    assert found.certificate_table == (b"table" if form == "json" and not number else b"")


@pytest.mark.parametrize(
    "data",
    [b"", b"HCLA" + bytes(28) + RAW + b"runtime data",
     b"{}", b"[]", b'{"report": 1}', b'{"report": "!"}', b"{" * 100_000,
     RAW[:-1],
     RAW.hex().encode()[:-1],
     base64.b64encode(RAW[:-1]), struct.pack("<II24x", 0x16, len(RAW)) + RAW, struct.pack("<II24x", 0, 1) + RAW,
     RESPONSE.ljust(3999, b"\0") + b"\1", RESPONSE + bytes(4000), b"HCLA" + RAW, b"<html>", bytes(1 << 21)],
)  # fmt: skip
def test_a_file_without_a_report_is_refused_with_the_reason(data: bytes) -> None:
    with pytest.raises(UserError, match="the file"):
        read_input(data, "the file")


def test_a_raw_report_is_passed_on_whatever_its_bytes_are() -> None:
    # Also one whose bytes look like text: its length says what it is.
    for raw in (b"7" * 1184, b"{" * 1184, b"HCLA" * 296):
        assert read_input(raw, "x").report == raw


HONEST = st.sampled_from([data for all_ in FORMS.values() for data in all_])
DAMAGED = st.tuples(HONEST, st.integers(0, 4000), st.binary(max_size=8)).map(
    lambda one: one[0][: one[1]] + one[2] + one[0][one[1] + len(one[2]) :]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=5000), st.text(UNICODE, max_size=3000).map(str.encode), DAMAGED))
def test_fuzz(data: bytes) -> None:
    try:
        assert len(read_input(data, "x").report) >= 0
    except UserError as error:
        assert str(error).startswith("x: ")


def test_vectors() -> None:
    assert read_input(real_data("milan-v2/report.hex").read_bytes(), "x").form == "hex"
    assert read_input(real_data("milan-v2-debug/report.bin").read_bytes(), "x").form == "raw"
