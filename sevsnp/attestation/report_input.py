# SPDX-License-Identifier: Apache-2.0
"""Read a report in any of its usual file forms, and return the 1184 raw bytes of the report and what comes with it.

Sources: Linux include/uapi/linux/sev-guest.h (snp_report_resp), Documentation/ABI/testing/configfs-tsm-report (outblob,
auxblob), the GHCB specification (certificate table behind an extended report). The forms in hcl.py and
input_documents.py have their sources there. snpguest writes raw bytes.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

from sevsnp.attestation import certificates
from sevsnp.attestation.hcl import MAGIC, Claims, read_hcl
from sevsnp.attestation.input_documents import Parts, certificates_of, parse_json, read_json, read_textproto
from sevsnp.attestation.input_text import as_text, of_base64, of_dump, of_hex
from sevsnp.attestation.report import REPORT_SIZE
from sevsnp.errors import UserError

MAX_INPUT = 1 << 20
_RESPONSE = struct.Struct("<II24s")  # snp_report_resp: status, report_size, reserved
_RESPONSE_SIZE = 4000
_NEWEST_VERSION = 16  # bytes that begin like a report of this version or an older one are taken for a report
_TDX_QUOTE = struct.Struct("<HHI")  # version, type of key, type of TEE: 0x81 is TDX
FORMS = (
    "raw, raw with its certificate table, an ioctl's response, an HCL report; each of them also as hex, as base64, as "
    "a dump of xxd, od or hexdump; the JSON of get_report, configfs-tsm, trustee or snpguest; go-sev-guest's textproto"
)


class Input(NamedTuple):
    """The contents of a file.

    ``report`` has 1184 bytes; ``certificate_table`` is empty if it is absent; ``certificates`` are PEM or DER.
    ``form`` names the form of the file, ``notes`` what in it was not used. ``claims`` come with an HCL report.
    """

    report: bytes
    certificate_table: bytes
    form: str
    certificates: tuple[bytes, ...] = ()
    claims: Claims | None = None
    notes: tuple[str, ...] = ()


class NotAReport(UserError):
    """The file has no report in a known form: the evidence is wrong, and not the command line."""


def read_input(data: bytes, name: str) -> Input:
    """The report in ``data``, in any known form; ``name`` names the file in errors.

    This function checks only the form and returns the report's bytes unchanged. Raises :class:`NotAReport`, which names
    the form that is nearest.
    """
    if len(data) > MAX_INPUT:
        raise NotAReport(f"{name}: more than {MAX_INPUT} bytes")
    try:
        if found := _binary(data, name):
            return found
        text = as_text(data)
        for form, read in _TEXTS if text else ():
            if (parts := read(text)) and (found := _binary(parts.report, name)):
                return found._replace(
                    form=parts.form or (form if found.form == "raw" else f"{found.form} in {form}"),
                    certificate_table=rfc_order(parts.table) or found.certificate_table,
                    certificates=parts.certificates,
                )
    except ValueError as error:
        raise NotAReport(f"{name}: {error}", f"give a report: {FORMS}") from None
    except UserError as error:
        raise NotAReport(error.message, f"give a report: {FORMS}") from None
    raise NotAReport(f"{name}: {_nearest(data, text)}", f"give a report: {FORMS}")


def read_certificates(data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """A file of certificates: the certificate table in it (else empty), and PEM or DER certificates.

    It takes also the two as hex or base64, and the JSON of Azure's THIM service.
    """
    if b"-----BEGIN CERTIFICATE-----" in data and data.lstrip()[:1] != b"{":
        return b"", (data,)
    if data[:2] == b"\x30\x82":
        return b"", (data,)
    text = as_text(data)
    if text.startswith("{"):
        try:
            table, found = certificates_of(parse_json(text))
        except ValueError:
            table, found = b"", ()
        if table or found:
            return rfc_order(table), found
    if text and (inner := of_hex(text) or of_base64(text)):
        return (b"", (inner,)) if inner[:2] == b"\x30\x82" else (rfc_order(inner), ())
    return rfc_order(data), ()


_GUIDS = (certificates.VCEK_GUID, certificates.VLEK_GUID, certificates.ASK_GUID, certificates.ARK_GUID,
          certificates.CRL_GUID)  # fmt: skip
_SWAPPED = {guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]: guid for guid in _GUIDS}


def rfc_order(table: bytes) -> bytes:
    """A certificate table with its known GUIDs in RFC 4122 order; some tools write them in Microsoft's mixed order."""
    if table[:16] not in _SWAPPED:
        return table
    changed = bytearray(table)
    for position in range(0, len(table) - 23, 24):
        guid = bytes(changed[position : position + 16])
        if not any(guid):
            break
        changed[position : position + 16] = _SWAPPED.get(guid, guid)
    return bytes(changed)


def _binary(data: bytes, name: str) -> Input | None:
    """The report in bytes of one of the binary forms, or None. Raises :class:`UserError` for a broken HCL report."""
    if len(data) == REPORT_SIZE:
        return Input(data, b"", "raw")
    if data.startswith(MAGIC):
        report, claims = read_hcl(data, name)
        return Input(report, b"", "hcl", claims=claims)
    if report := _from_response(data):
        return Input(report, b"", "ioctl")
    if not _begins_like_a_report(data) or len(data) < REPORT_SIZE:
        return None
    report, rest = data[:REPORT_SIZE], data[REPORT_SIZE:]
    if rest[:16] in _GUIDS or rest[:16] in _SWAPPED:
        return Input(report, rfc_order(rest), "raw with its certificate table")
    what = "zero bytes" if not any(rest) else "bytes"
    note = f"ignored {len(rest)} {what} after the report: the signature does not cover them"
    return Input(report, b"", "raw", notes=(note,))


def _begins_like_a_report(data: bytes) -> bool:
    return len(data) >= 4 and 1 < int.from_bytes(data[:4], "little") <= _NEWEST_VERSION


def _from_response(data: bytes) -> bytes:
    """The report in a sev-guest ioctl's response. The buffer has 4000 bytes; some tools cut it after the report."""
    if not _RESPONSE.size + REPORT_SIZE <= len(data) <= _RESPONSE_SIZE:
        return b""
    status, size, reserved = _RESPONSE.unpack_from(data)
    rest = data[_RESPONSE.size + REPORT_SIZE :]
    if status or size != REPORT_SIZE or any(reserved) or any(rest):
        return b""
    return data[_RESPONSE.size : _RESPONSE.size + REPORT_SIZE]


def _json(text: str) -> Parts | None:
    return read_json(parse_json(text)) if text.startswith("{") else None


def _of(read: Callable[[str], bytes]) -> Callable[[str], Parts | None]:
    return lambda text: Parts(found) if (found := read(text)) else None


# The forms of text, in the order in which they are tried: a dump is also hex to some readers, and hex is also base64.
_TEXTS: tuple[tuple[str, Callable[[str], Parts | None]], ...] = (
    ("json", _json),
    ("textproto", read_textproto),
    ("dump", _of(of_dump)),
    ("hex", _of(of_hex)),
    ("base64", _of(of_base64)),
)


def _nearest(data: bytes, text: str) -> str:
    """What the file is instead, or the form that it resembles most."""
    if not data:
        return "an empty file, expected a report"
    if _begins_like_a_report(data):
        return f"a raw report that ends after {len(data)} bytes, expected {REPORT_SIZE}"
    if len(data) >= _TDX_QUOTE.size and _TDX_QUOTE.unpack_from(data)[2] == 0x81 and data[1] == 0:
        return "a TDX quote, expected a report of SEV-SNP"
    if data[:2] == b"\x30\x82" or "-----BEGIN CERTIFICATE" in text:
        return "a certificate, expected a report; certificates are given with --certificates FILE"
    if data[4:8] == REPORT_SIZE.to_bytes(4, "little"):
        status = int.from_bytes(data[:4], "little")
        return f"an ioctl's response of {len(data)} bytes with status {status:#x} and no report"
    if text.startswith(("{", "[")):
        document = parse_json(text)
        keys = ", ".join(sorted(map(str, document))[:8]) if isinstance(document, dict) else ""
        return f"JSON without a report{f'; it has {keys[:200]}' if keys else ''}"
    for form, read in (("a dump", of_dump), ("hex", of_hex), ("base64", of_base64)):
        if text and (found := read(text)):
            return f"{form} of {len(found)} bytes, expected a report of {REPORT_SIZE}"
    return f"found {len(data)} bytes in no known form, expected a report"
