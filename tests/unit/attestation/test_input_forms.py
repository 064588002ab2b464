# SPDX-License-Identifier: Apache-2.0
"""The formats in which other programs store reports, each made here from a report of our own."""

import base64
import functools
import json
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from sevsnp.attestation import certificates as tables
from sevsnp.attestation.certificates import certificates_of_table
from sevsnp.attestation.hcl import Claims
from sevsnp.attestation.inspection import inspect
from sevsnp.attestation.report_input import NotAReport, read_certificates, read_input, rfc_order
from sevsnp.commands import verify_report as cli
from tests.support.hierarchy import NOW, Hierarchy

GENOA, TURIN = Hierarchy(), Hierarchy("Turin")
RAW = GENOA.report(mitigations=0x2A)


@functools.cache
def ders() -> dict[str, bytes]:
    named = (("VCEK", GENOA.certificate), ("ASK", GENOA.ask), ("ARK", GENOA.ark))
    return {name: one.public_bytes(Encoding.DER) for name, one in named}


def table(swapped: bool = False) -> bytes:
    guids = (tables.VCEK_GUID, tables.ASK_GUID, tables.ARK_GUID)
    offset, entries, content = 24 * 4, b"", b""
    for guid, data in zip(guids, ders().values(), strict=True):
        mixed = guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]
        entries += struct.pack("<16sII", mixed if swapped else guid, offset + len(content), len(data))
        content += data
    return entries + bytes(24) + content


def fields(raw: bytes, bytes_as: Any = list) -> dict[str, Any]:
    """A report's fields as the sev crate names them, by their offsets in AMD 56860."""
    turin = raw[0x188] == 0x1A

    def number(start: int, size: int) -> int:
        return int.from_bytes(raw[start : start + size], "little")

    def tcb(start: int) -> dict[str, Any]:
        part = raw[start : start + 8]
        if turin:
            return {"fmc": part[0], "bootloader": part[1], "tee": part[2], "snp": part[3], "microcode": part[7]}
        return {"fmc": None, "bootloader": part[0], "tee": part[1], "snp": part[6], "microcode": part[7]}

    def version(start: int) -> dict[str, int]:
        return {"major": raw[start + 2], "minor": raw[start + 1], "build": raw[start]}

    sizes = {"family_id": (0x10, 16), "image_id": (0x20, 16), "report_data": (0x50, 64), "measurement": (0x90, 48),
             "host_data": (0xC0, 32), "id_key_digest": (0xE0, 48), "author_key_digest": (0x110, 48),
             "report_id": (0x140, 32), "report_id_ma": (0x160, 32), "chip_id": (0x1A0, 64)}  # fmt: skip
    return {
        "version": number(0, 4), "guest_svn": number(4, 4), "policy": number(8, 8), "vmpl": number(0x30, 4),
        "sig_algo": number(0x34, 4), "current_tcb": tcb(0x38), "plat_info": {"0": number(0x40, 8)},
        "key_info": number(0x48, 4), "reported_tcb": tcb(0x180), "cpuid_fam_id": raw[0x188],
        "cpuid_mod_id": raw[0x189], "cpuid_step": raw[0x18A], "committed_tcb": tcb(0x1E0), "current": version(0x1E8),
        "committed": version(0x1EC), "launch_tcb": tcb(0x1F0), "launch_mit_vector": number(0x1F8, 8),
        "current_mit_vector": number(0x200, 8),
        "signature": {"r": bytes_as(raw[0x2A0:0x2E8]), "s": bytes_as(raw[0x2E8:0x330])},
        **{name: bytes_as(raw[start : start + size]) for name, (start, size) in sizes.items()},
    }  # fmt: skip


def textproto(raw: bytes) -> str:
    """As Go's prototext writes an Attestation: bytes with octal escapes."""

    def quoted(data: bytes) -> str:
        return '"' + "".join(chr(one) if 0x20 < one < 0x7F and chr(one) not in "\"'\\" else f"\\{one:03o}"
                             for one in data) + '"'  # fmt: skip

    its = fields(raw, bytes)
    eax = (raw[0x188] - 0xF) << 20 | (raw[0x189] >> 4) << 16 | 0xF00 | (raw[0x189] & 0xF) << 4 | raw[0x18A]
    lines = [f"  {name}: {quoted(value)}" for name, value in its.items() if isinstance(value, bytes)]
    lines += [f"  {name}: {its[name]}" for name in ("version", "guest_svn", "policy", "vmpl", "launch_mit_vector",
                                                    "current_mit_vector")]  # fmt: skip
    for name, start in (("current_tcb", 0x38), ("reported_tcb", 0x180), ("committed_tcb", 0x1E0),
                        ("launch_tcb", 0x1F0), ("platform_info", 0x40)):  # fmt: skip
        lines.append(f"  {name}: {int.from_bytes(raw[start : start + 8], 'little')}")
    lines += [f"  signature_algo: 1  signer_info: {raw[0x48]}", f"  cpuid1eax_fms: {eax}",
              f"  signature: {quoted(raw[0x2A0:])}"]  # fmt: skip
    for name, start in (("current", 0x1E8), ("committed", 0x1EC)):
        lines += [f"  {name}_{part}: {raw[start + at]}" for at, part in enumerate(("build", "minor", "major"))]
    chain = "\n".join(f"  {name.lower()}_cert: {quoted(data)}" for name, data in ders().items())
    body = "\n".join(lines)
    return f"report: {{\n{body}\n}}\ncertificate_chain {{\n{chain}\n}}\nproduct {{ name: SEV_PRODUCT_GENOA }}\n"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


RESPONSE = (struct.pack("<II24x", 0, len(RAW)) + RAW).ljust(4000, b"\0")
HCL = b"HCLA" + bytes(28) + RAW


def chain() -> list[dict[str, Any]]:
    return [{"cert_type": name, "data": list(data)} for name, data in ders().items()]


FORMS: dict[str, tuple[Callable[[], bytes], str]] = {
    "report and table": (lambda: RAW + table(), "raw with its certificate table"),
    "report and mixed table": (lambda: RAW + table(swapped=True), "raw with its certificate table"),
    "base64url": (lambda: base64.urlsafe_b64encode(RAW), "base64"),
    "base64url unpadded": (lambda: base64.urlsafe_b64encode(RAW).rstrip(b"="), "base64"),
    "base64 quoted": (lambda: f'"{b64(RAW)}"\n'.encode(), "base64"),
    "BOM": (lambda: b"\xef\xbb\xbf" + RAW.hex().encode(), "hex"),
    "UTF-16": (lambda: RAW.hex().encode("utf-16"), "hex"),
    "UTF-16 big-endian without a mark": (lambda: b64(RAW).encode("utf-16-be"), "base64"),
    "colons": (lambda: RAW.hex(":").upper().encode(), "hex"),
    "C": (lambda: ", ".join(f"0x{one:02x}" for one in RAW).encode(), "hex"),
    "HCL in base64": (lambda: b64(HCL).encode(), "hcl in base64"),
    "HCL in hex": (lambda: HCL.hex().encode(), "hcl in hex"),
    "ioctl in base64": (lambda: b64(RESPONSE).encode(), "ioctl in base64"),
    "report and table in base64": (lambda: b64(RAW + table()).encode(), "raw with its certificate table in base64"),
    "get_report": (lambda: json.dumps({"report": b64(RAW), "certificates": b64(table())}).encode(), "json"),
    "configfs-tsm": (
        lambda: json.dumps({"provider": "sev_guest", "outblob": b64(RAW), "auxblob": b64(table())}).encode(),
        "json",
    ),
    "trustee": (lambda: json.dumps({"attestation_report": fields(RAW), "cert_chain": chain()}).encode(), "json fields"),
    "snpguest": (lambda: json.dumps(fields(RAW, bytes.hex)).encode(), "json fields"),
    "go-sev-guest": (lambda: textproto(RAW).encode(), "textproto"),
}
WITH_CHAIN = {"report and table", "report and mixed table", "report and table in base64", "get_report", "configfs-tsm",
              "trustee", "go-sev-guest"}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_signed_bytes(name: str) -> None:
    made, form = FORMS[name]
    found = read_input(made(), "x")
    assert (found.report, found.form) == (RAW, form)
    every = [*certificates_of_table(found.certificate_table)]
    assert (len(every) + len(found.certificates) == 3) is (name in WITH_CHAIN)
    if name in WITH_CHAIN:  # the whole evidence is authentic, from the one file
        one = GENOA.evidence([])
        whole = type(one)(found.report, found.certificate_table, found.certificates)
        assert inspect(whole, NOW, GENOA.root).authentic is True
        assert inspect(one, NOW, GENOA.root).authentic is None  # control


def test_a_turin_report_in_fields_is_encoded_in_the_turin_layout() -> None:
    raw = TURIN.report()
    assert read_input(json.dumps(fields(raw)).encode(), "x").report == raw
    assert read_input(textproto(raw).encode(), "x").report == raw


DUMPS = [["xxd"], ["xxd", "-a"], ["xxd", "-p"], ["od"], ["od", "-t", "x1"], ["od", "-A", "x", "-t", "x1z"],
         ["od", "-A", "d", "-x"], ["od", "-v", "-t", "x4"], ["hexdump"], ["hexdump", "-C"]]  # fmt: skip


@pytest.mark.parametrize("argv", DUMPS, ids=" ".join)
def test_dumps_by_real_programs_are_read(argv: list[str], tmp_path: Path) -> None:
    if not shutil.which(argv[0]):
        pytest.skip(f"{argv[0]} is not on this machine")
    (tmp_path / "report").write_bytes(RAW)
    shown = subprocess.run([*argv, f"{tmp_path}/report"], capture_output=True, check=True, timeout=60).stdout
    assert read_input(shown, "x").report == RAW
    # A line that is lost is no report, and not a shorter one.
    lines = shown.splitlines(keepends=True)
    with pytest.raises(NotAReport):
        read_input(b"".join(lines[:2] + lines[3:]), "x")


def test_bytes_after_a_report_are_named() -> None:
    found = read_input(RAW + b"x" * 20, "x")
    assert found.report == RAW and found.notes == (
        "ignored 20 bytes after the report: the signature does not cover them",
    )
    assert "zero bytes" in read_input(RAW.ljust(4096, b"\0"), "x").notes[0]
    assert read_input(RAW, "x").notes == ()


NEAREST: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "an empty file"),
    "truncated": (lambda: RAW[:-1], "a raw report that ends after 1183 bytes, expected 1184"),
    "hex": (lambda: RAW[:-1].hex().encode(), "hex of 1183 bytes"),
    "base64": (lambda: base64.b64encode(RAW[:-2]), "base64 of 1182 bytes"),
    "JSON": (lambda: b'{"evidence": 1, "nonce": "x"}', "JSON without a report; it has evidence, nonce"),
    "a list": (lambda: b"[]", "JSON without a report"),
    "no bytes": (lambda: b'{"report": "!"}', "report: expected bytes in hex or base64"),
    "a field": (
        lambda: json.dumps({**fields(RAW), "measurement": "00"}).encode(),
        "measurement: found 1 bytes, expected 48",
    ),
    "too large": (
        lambda: json.dumps({**fields(RAW), "vmpl": 1 << 40}).encode(),
        "vmpl: 1099511627776 has more than 4 bytes",
    ),
    "PEM": (lambda: GENOA.ark.public_bytes(Encoding.PEM), "a certificate, expected a report"),
    "DER": (lambda: ders()["VCEK"], "a certificate, expected a report"),
    "TDX": (lambda: struct.pack("<HHI", 4, 2, 0x81) + bytes(600), "a TDX quote"),
    "an ioctl that failed": (
        lambda: struct.pack("<II24x", 0x16, 1184),
        "an ioctl's response of 32 bytes with status 0x16",
    ),
    "too long": (lambda: bytes((1 << 20) + 1), "more than 1048576 bytes"),
    "text": (lambda: b"<html>not found</html>", "found 22 bytes in no known form, expected a report"),
    "textproto": (
        lambda: textproto(RAW).replace("version: 5", 'version: "5').encode(),
        "a textproto that cannot be read",
    ),
}


@pytest.mark.parametrize("name", NEAREST)
def test_a_file_without_a_report_is_refused_with_the_nearest_format(name: str) -> None:
    made, words = NEAREST[name]
    with pytest.raises(NotAReport, match=r"^the file: ") as wrong:
        read_input(made(), "the file")
    assert words in wrong.value.message


HOSTILE = {
    "hex": b"0x" * (1 << 19),
    "zeros": b"0" * (1 << 20),
    "offsets": b"0000 00\n" * (1 << 17),
    "stars": b"*\n" * (1 << 19),
    "a far offset": b"00000000: 0000\n*\nffffffffffffffff: 00\n",
    "blanks": b" " * (1 << 20),
    "braces": b"report{" * (1 << 17),
    "quotes": b"report {\n" + b'"' * (1 << 19),
    "comments": b"#\n" * (1 << 18) + b"report {",
    "escapes": b'report { a: "' + b"\\" * (1 << 19),
    "deep": b'{"a":' * 200_000,
    "numbers": b'{"report": [' + b"1," * 400_000 + b"1]}",
    "digits": b'{"report": ' + b"9" * 500_000 + b"}",
    "names": b"report { " + b"a" * (1 << 19),
    "PEM": b'{"vcek": "' + b"-----BEGIN" * 100_000 + b'"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_input_takes_linear_work(name: str) -> None:
    """A hostile megabyte takes no more than 20 times the processor time of a tenth of it, and a few milliseconds."""

    def cost(data: bytes) -> float:
        start = time.process_time()
        with pytest.raises(NotAReport):
            read_input(data, "x")
        read_certificates(data)
        return time.process_time() - start

    data = HOSTILE[name]
    tenth = min(cost(data[: len(data) // 10]) for _ in range(2))
    assert cost(data) < 20 * tenth + 0.2


def test_certificates_in_the_formats_of_other_programs_are_read() -> None:
    pem = GENOA.certificate.public_bytes(Encoding.PEM).decode()
    chain = "".join(one.public_bytes(Encoding.PEM).decode() for one in (GENOA.ask, GENOA.ark))
    thim = {"vcekCert": pem, "tcbm": "DB18000000000004", "certificateChain": chain, "cacheControl": "86400"}
    assert read_certificates(json.dumps(thim).encode()) == (b"", (pem.encode(), chain.encode()))
    assert read_certificates(pem.encode()) == (b"", (pem.encode(),))
    assert read_certificates(ders()["ASK"]) == read_certificates(b64(ders()["ASK"]).encode()) == (b"", (ders()["ASK"],))
    assert read_certificates(table()) == read_certificates(table(swapped=True)) == (table(), ())
    assert read_certificates(table().hex().encode()) == (table(), ())
    # Control: without its GUIDs in order, the table has none of the certificates.
    assert certificates_of_table(table(swapped=True)) == [] and len(certificates_of_table(table())) == 3
    strange = struct.pack("<16sII", b"s" * 16, 48, 0) + bytes(24)
    assert rfc_order(strange) == strange


CLAIMS = json.dumps({"keys": [{"kid": "HCLAkPub", "kty": "RSA", "e": "AQAB", "n": base64.urlsafe_b64encode(
    b"\xc5" * 256).rstrip(b"=").decode()}], "vm-configuration": {"tpm-enabled": True}}).encode()  # fmt: skip


def hcl(report: bytes, claims: bytes = CLAIMS, kind: int = 2, hashed: int = 1, size: int | None = None) -> bytes:
    size = len(claims) if size is None else size
    request = struct.pack("<IIIII", 20 + size, 1, kind, hashed, size)
    return (b"HCLA" + struct.pack("<IIII12x", 2, 0, 2, 0) + report + request + claims).ljust(2600, b"\0")


def test_the_claims_of_an_hcl_report_are_shown_and_compared_with_report_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for hashed, algorithm in ((1, "sha256"), (2, "sha384"), (3, "sha512")):
        bound = Claims(CLAIMS, algorithm).bound()
        raw = GENOA.report(report_data=bound)
        found = read_input(hcl(raw, hashed=hashed), "x")
        assert (found.report, found.claims) == (raw, Claims(CLAIMS, algorithm))
        one = GENOA.evidence(report_data=bound)
        whole = type(one)(found.report, certificates=one.certificates, claims=found.claims)
        seen = inspect(whole, NOW, GENOA.root)
        assert seen.authentic is True, seen.reason
        key = seen.fields["runtime_claims"]["keys"]["HCLAkPub"]
        assert (key["type"], key["bits"]) == ("RSA", "2048")
        assert seen.fields["runtime_claims"]["claims"]["vm-configuration"] == {"tpm-enabled": True}
        # One changed byte of the claims, and one of the claims of another hash.
        for place in (0, len(CLAIMS) // 2, len(CLAIMS) - 1):
            other = bytearray(CLAIMS)
            other[place] ^= 1
            changed = read_input(hcl(raw, bytes(other), hashed=hashed), "x").claims
            refused = inspect(type(one)(raw, certificates=one.certificates, claims=changed), NOW, GENOA.root)
            assert refused.authentic is False and "the hash of the claims" in refused.reason
    (tmp_path / "report").write_bytes(hcl(GENOA.report(report_data=bytes(64))))
    from sevsnp.commands import inspect_report as inspect_cli

    assert inspect_cli.main(["--input", f"{tmp_path}/report", "--offline", "--json"]) in (2, 3)
    assert json.loads(capsys.readouterr().out)["checks"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (hcl(bytes(1184), kind=4), "a TDX report inside"),
        (hcl(bytes(1184), kind=3), "an HCL report of type 3 with hash type 1"),
        (hcl(bytes(1184), hashed=4), "hash type 4"),
        (hcl(bytes(1184), size=1 << 20), "bytes of claims, expected 1048576"),
        (hcl(bytes(1184), size=len(CLAIMS) - 2), "after its claims, expected zeros"),
        (
            hcl(bytes(1184))[: 32 + 1184 + 10].replace(b"\0" * 3 + b"\x02", b"1234"),
            "inside the header of",
        ),
        (b"HCLA" + bytes(100), "expected at least 1216"),
    ],
)
def test_an_hcl_report_that_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(NotAReport) as wrong:
        read_input(data, "x")
    assert words in wrong.value.message


def test_a_copy_of_the_directory_of_configfs_tsm(tmp_path: Path) -> None:
    (tmp_path / "outblob").write_bytes(RAW)
    options = cli.command_line().parse_args(["--input", str(tmp_path), "--vm_definition", "x"])
    assert cli.read_evidence(options).certificate_table == b""
    (tmp_path / "auxblob").write_bytes(table(swapped=True))
    found = cli.read_evidence(options)
    assert (found.report, found.certificate_table) == (RAW, table())
