# SPDX-License-Identifier: Apache-2.0
"""Reports in the documents of other programs: JSON, and go-sev-guest's textproto.

Some of them have the report's fields and not its bytes. Then the bytes are put together again; what the document has
lost or changed shows in the signature, which covers the bytes. Sources: AMD 56860 table 23 (layout); the sev crate
(field names of trustee's and snpguest's JSON), go-sev-guest's sevsnp.proto, Azure's THIM service (vcekCert).
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from sevsnp.attestation.input_text import of_base64, of_hex
from sevsnp.attestation.report import REPORT_SIZE
from sevsnp.system.files import each_key_once


class Parts(NamedTuple):
    """What a document has: the bytes of a report in one of the binary forms, a certificate table, certificates."""

    report: bytes
    table: bytes = b""
    certificates: tuple[bytes, ...] = ()
    form: str = ""


# Where documents keep the report's bytes, the certificate table, and single certificates.
_REPORTS = ("report", "attestation_report", "attestationReport", "outblob", "snp_report", "quote", "hcl_report")
_TABLES = ("certificates", "auxblob", "certs", "cert_table", "certificate_table")
_SINGLE = ("vcek", "vlek", "vcekCert", "certificateChain", "cert_chain", "vcek_cert", "vlek_cert", "ask_cert",
           "ark_cert", "ask", "asvk", "ark")  # fmt: skip


def parse_json(text: str) -> Any:
    """A JSON document; None for other text. A doubled key makes it no document."""
    try:
        return json.loads(text, object_pairs_hook=each_key_once)
    except (ValueError, RecursionError):
        return None


def read_json(document: Any) -> Parts | None:
    """The parts of a JSON document, or None if it has no report. Raises ValueError for a field of wrong form."""
    if not isinstance(document, dict):
        return None
    if "plat_info" in document or "platform_info" in document:  # the fields of the report itself
        return Parts(encode_fields(document), form="json fields")
    for name in _REPORTS:
        value = document.get(name)
        if isinstance(value, dict):
            return Parts(encode_fields(value), *_endorsements(document), "json fields")
        if value:
            return Parts(as_bytes(name, value), *_endorsements(document))
    for value in document.values():  # one level deeper: {"evidence": {…}}
        if isinstance(value, dict) and any(name in value for name in _REPORTS):
            return read_json(value)
    return None


def certificates_of(document: Any) -> tuple[bytes, tuple[bytes, ...]]:
    """The certificate table and the certificates of a JSON document without a report, such as THIM's."""
    return _endorsements(document) if isinstance(document, dict) else (b"", ())


def _endorsements(document: dict[str, Any]) -> tuple[bytes, tuple[bytes, ...]]:
    table, single = b"", []
    for name in (*_TABLES, *_SINGLE):
        value = document.get(name)
        if not value:
            continue
        if isinstance(value, list) and all(isinstance(one, dict) for one in value):
            # trustee: [{"cert_type": "VCEK", "data": […]}]
            found = [as_bytes(f"{name}.data", one.get("data")) for one in value]
            single += [one for one, its in zip(found, value, strict=True) if its.get("cert_type") != "CRL"]
        elif name in _TABLES:
            table = as_bytes(name, value)
        else:
            single.append(as_bytes(name, value))
    return table, tuple(single)


def as_bytes(name: str, value: Any) -> bytes:
    """A value of a document as bytes: PEM, hex, base64 or a list of numbers. Raises ValueError, which names it."""
    if isinstance(value, str):
        if "-----BEGIN" in value:
            return value.encode("utf-8", "replace")
        if found := of_hex(value) or of_base64(value):
            return found
    elif isinstance(value, list) and all(type(one) is int and 0 <= one <= 255 for one in value):
        return bytes(value)
    raise ValueError(f"{name}: expected bytes in hex or base64, or a list of numbers")


_INTEGERS = {"version": (0, 4), "guest_svn": (4, 4), "policy": (8, 8), "vmpl": (0x30, 4), "sig_algo": (0x34, 4),
             "signature_algo": (0x34, 4), "plat_info": (0x40, 8), "platform_info": (0x40, 8), "key_info": (0x48, 4),
             "signer_info": (0x48, 4), "author_key_en": (0x48, 4), "_author_key_en": (0x48, 4),
             "cpuid_fam_id": (0x188, 1), "cpuid_mod_id": (0x189, 1), "cpuid_step": (0x18A, 1),
             "current_build": (0x1E8, 1), "current_minor": (0x1E9, 1), "current_major": (0x1EA, 1),
             "committed_build": (0x1EC, 1), "committed_minor": (0x1ED, 1), "committed_major": (0x1EE, 1),
             "launch_mit_vector": (0x1F8, 8), "current_mit_vector": (0x200, 8)}  # fmt: skip
_BYTES = {"family_id": (0x10, 16), "image_id": (0x20, 16), "report_data": (0x50, 64), "measurement": (0x90, 48),
          "host_data": (0xC0, 32), "id_key_digest": (0xE0, 48), "author_key_digest": (0x110, 48),
          "report_id": (0x140, 32), "report_id_ma": (0x160, 32), "chip_id": (0x1A0, 64)}  # fmt: skip
_TCBS = {"current_tcb": 0x38, "reported_tcb": 0x180, "committed_tcb": 0x1E0, "launch_tcb": 0x1F0}
_VERSIONS = {"current": 0x1E8, "committed": 0x1EC}


def encode_fields(fields: dict[str, Any]) -> bytes:
    """The report (1184 bytes) with these fields, by the names in the sev crate or go-sev-guest. Raises ValueError."""
    raw = bytearray(REPORT_SIZE)
    for name, value in fields.items():
        if value is None:
            continue
        if name in _INTEGERS:
            _put(raw, name, value, *_INTEGERS[name])
        elif name in _BYTES:
            offset, size = _BYTES[name]
            raw[offset : offset + size] = _sized(name, value, size)
        elif name in _TCBS:
            _put_tcb(raw, name, value, _TCBS[name])
        elif name in _VERSIONS and isinstance(value, dict):
            for place, part in enumerate(("build", "minor", "major")):
                _put(raw, f"{name}.{part}", value.get(part), _VERSIONS[name] + place, 1)
        elif name == "cpuid1eax_fms":
            _put_cpuid(raw, value)
        elif name == "signature":
            _put_signature(raw, value)
    return bytes(raw)


def _number(name: str, value: Any) -> int:
    """A number; a struct of one field around it (a bit field of the sev crate) counts as the number."""
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    if isinstance(value, str) and re.fullmatch(r"0x[0-9a-fA-F]{1,16}|[0-9]{1,20}", value):
        value = int(value, 0 if value.startswith("0x") else 10)
    if type(value) not in (int, bool) or value < 0:
        raise ValueError(f"{name}: expected a number")
    return int(value)


def _put(raw: bytearray, name: str, value: Any, offset: int, size: int) -> None:
    number = _number(name, value)
    if number >> 8 * size:
        raise ValueError(f"{name}: {number} has more than {size} bytes")
    raw[offset : offset + size] = number.to_bytes(size, "little")


def _sized(name: str, value: Any, size: int) -> bytes:
    found = value if isinstance(value, bytes) else as_bytes(name, value)
    if len(found) != size:
        raise ValueError(f"{name}: found {len(found)} bytes, expected {size}")
    return found


def _put_tcb(raw: bytearray, name: str, value: Any, offset: int) -> None:
    """A TCB version: a number, or its components; an ``fmc`` says that they are in Turin's order."""
    if not isinstance(value, dict) or "bootloader" not in value:
        _put(raw, name, value, offset, 8)
        return
    places = {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}
    if value.get("fmc") is not None:
        places = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
    for part, place in places.items():
        _put(raw, f"{name}.{part}", value.get(part), offset + place, 1)


def _put_cpuid(raw: bytearray, value: Any) -> None:
    """Family, model and stepping from CPUID Fn0000_0001_EAX (AMD 25481)."""
    eax = _number("cpuid1eax_fms", value)
    raw[0x188] = (eax >> 8 & 0xF) + (eax >> 20 & 0xFF)
    raw[0x189] = eax >> 12 & 0xF0 | eax >> 4 & 0xF
    raw[0x18A] = eax & 0xF


def _put_signature(raw: bytearray, value: Any) -> None:
    if isinstance(value, dict):
        for place, part in enumerate(("r", "s")):
            raw[0x2A0 + 72 * place : 0x2A0 + 72 * (place + 1)] = _sized(f"signature.{part}", value.get(part), 72)
    else:
        raw[0x2A0:] = _sized("signature", value, 512)


_TOKEN = re.compile(
    r"""\s*(?:([A-Za-z_][A-Za-z0-9_]*)\s*:?      # a name, or the name of a value of an enumeration
    |([{}<>])
    |("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(0x[0-9a-fA-F]+|[0-9]+)
    |\#[^\n]*)\s*[,;]?""",
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|x[0-9a-fA-F]{1,2}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_MOST_TOKENS = 2000


def read_textproto(text: str) -> Parts | None:
    """The parts of go-sev-guest's Attestation or Report as textproto, or None. Raises ValueError for a wrong field."""
    if not re.match(r"(?:#[^\n]*\n\s*)*(?:report\s*:?\s*[{<]|version\s*:|certificate_chain\s*:?\s*[{<])", text):
        return None
    message = _message(_tokens(text), 0)
    fields = message.get("report", message)
    if not isinstance(fields, dict) or "measurement" not in fields:
        return None
    chain = message.get("certificate_chain")
    certificates = tuple(one for name, one in chain.items() if name in _SINGLE and isinstance(one, bytes) and one) \
        if isinstance(chain, dict) else ()  # fmt: skip
    return Parts(encode_fields(fields), certificates=certificates, form="textproto")


def _tokens(text: str) -> Iterator[tuple[str, Any]]:
    position = count = 0
    while position < len(text):
        found = _TOKEN.match(text, position)
        if not found or (count := count + 1) > _MOST_TOKENS:
            raise ValueError("a textproto that cannot be read")
        position = found.end()
        name, brace, quoted, number = found.groups()
        if name or brace:
            yield ("name" if name else "brace"), name or {"<": "{", ">": "}"}.get(brace, brace)
        elif quoted:
            yield "value", _unescaped(quoted[1:-1].encode())
        elif number:
            yield "value", int(number, 0 if number.startswith("0x") else 10)


def _unescaped(text: bytes) -> bytes:
    def one(found: re.Match[bytes]) -> bytes:
        code = found[1]
        if code[:1].isdigit():
            return bytes((int(code, 8) & 0xFF,))
        if code[:1] == b"x" and len(code) > 1:
            return bytes((int(code[1:], 16),))
        return _ESCAPED.get(code, code)

    return _ESCAPE.sub(one, text)


def _message(tokens: Iterator[tuple[str, Any]], depth: int) -> dict[str, Any]:
    """A message up to its closing brace; values of one name that stand side by side are joined, as protobuf does."""
    found: dict[str, Any] = {}
    name = ""
    for kind, value in tokens:
        if kind == "name":
            name = value
        elif kind == "value" and name:
            before = found.get(name)
            if before is not None and not (isinstance(before, bytes) and isinstance(value, bytes)):
                raise ValueError(f"{name} occurs twice")
            found[name] = before + value if isinstance(before, bytes) else value
        elif value == "{" and name and depth < 8:
            found[name] = _message(tokens, depth + 1)
            name = ""
        elif value == "}" and depth:
            return found
        else:
            raise ValueError("a textproto that cannot be read")
    return found
