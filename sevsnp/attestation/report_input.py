# SPDX-License-Identifier: Apache-2.0
"""Read a report in any of its usual file forms, and return the 1184 raw bytes of the report.

Sources: Linux include/uapi/linux/sev-guest.h (snp_report_resp), Documentation/ABI/testing/configfs-tsm-report
(outblob), Azure's guest attestation documents (the report inside the vTPM's HCL report). snpguest writes raw bytes.
"""

import base64
import binascii
import re
import struct
from typing import NamedTuple

from sevsnp.attestation.report import REPORT_SIZE
from sevsnp.errors import UserError
from sevsnp.system.files import each_key_once

_MAX_INPUT = 1 << 20
_RESPONSE = struct.Struct("<II24s")  # snp_report_resp: status, report_size, reserved
_RESPONSE_SIZE = 4000
_HCL = struct.Struct("<4sIIII12s")  # signature, version, report size, request type, status, reserved
_HCL_MAGIC = b"HCLA"
_FORMS = "raw, hex, base64, get_report's JSON, a configfs-tsm outblob, an ioctl response, or an HCL report"


class Input(NamedTuple):
    """The contents of a file: the raw report, the certificate table (empty if absent), and the form of the file."""

    report: bytes
    certificate_table: bytes
    form: str


def read_input(data: bytes, name: str) -> Input:
    """The report in ``data``, in any known form; ``name`` names the file in errors.

    This function checks only the form and returns the report's bytes unchanged. Raises :class:`UserError`.
    """
    if len(data) > _MAX_INPUT:
        raise UserError(f"{name}: more than {_MAX_INPUT} bytes")
    if len(data) == REPORT_SIZE:
        return Input(data, b"", "raw")
    if data.startswith(_HCL_MAGIC):
        return Input(_from_hcl(data, name), b"", "hcl")
    text = data.strip()
    if text[:1] == b"{":
        return _from_json(text, name)
    if re.fullmatch(rb"(0x)?[0-9A-Fa-f\s]+", text) and len(digits := re.sub(rb"\s", b"", text)) % 2 == 0:
        found = bytes.fromhex(digits.decode().removeprefix("0x"))
        if len(found) == REPORT_SIZE:
            return Input(found, b"", "hex")
    if found := _from_base64(text):
        return Input(found, b"", "base64")
    if found := _from_response(data):
        return Input(found, b"", "ioctl")
    raise UserError(f"{name}: found {len(data)} bytes that are no report", f"give a report: {_FORMS}")


def _from_base64(text: bytes) -> bytes:
    try:
        found = base64.b64decode(re.sub(rb"\s", b"", text), validate=True)
    except (ValueError, binascii.Error):
        return b""
    return found if len(found) == REPORT_SIZE else b""


def _from_response(data: bytes) -> bytes:
    """The report in a sev-guest ioctl's response. The buffer has 4000 bytes; some tools cut it after the report."""
    if not _RESPONSE.size + REPORT_SIZE <= len(data) <= _RESPONSE_SIZE:
        return b""
    status, size, reserved = _RESPONSE.unpack_from(data)
    rest = data[_RESPONSE.size + REPORT_SIZE :]
    if status or size != REPORT_SIZE or any(reserved) or any(rest):
        return b""
    return data[_RESPONSE.size : _RESPONSE.size + REPORT_SIZE]


def _from_hcl(data: bytes, name: str) -> bytes:
    if len(data) < _HCL.size + REPORT_SIZE:
        raise UserError(f"{name}: an HCL report of {len(data)} bytes, expected at least {_HCL.size + REPORT_SIZE}")
    return data[_HCL.size : _HCL.size + REPORT_SIZE]


def _from_json(text: bytes, name: str) -> Input:
    import json

    try:
        document = json.loads(text, object_pairs_hook=each_key_once)
        report = base64.b64decode(document["report"], validate=True)
        table = base64.b64decode(document.get("certificates") or "", validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        raise UserError(f"{name}: JSON, but not get_report's", f"give a report: {_FORMS}") from None
    return Input(report, table, "json")
