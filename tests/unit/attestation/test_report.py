# SPDX-License-Identifier: Apache-2.0
import dataclasses
import hashlib
import struct
from pathlib import Path

import pytest

from sevsnp.attestation.report import REPORT_SIZE, SigningKey, parse_report
from sevsnp.attestation.report_data import read_public_key, report_data, ssh_report_data
from sevsnp.emulation.report_encoder import append_signature, encode_report
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb
from sevsnp.vm_config.processor import Cpuid, product_of
from tests.support.evidence import MEASUREMENT, REPORT_DATA, launch, psp, real_data


def honest(**changes: object) -> bytes:
    fields = psp().fields(REPORT_DATA, launch=launch(), measurement=MEASUREMENT)
    return append_signature(encode_report(dataclasses.replace(fields, **changes)), 5, 7)  # type: ignore[arg-type]


def edited(offset: int, data: bytes, report: bytes | None = None) -> bytes:
    raw = report or honest()
    return raw[:offset] + data + raw[offset + len(data) :]


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_encoder_and_parser_agree(version: int) -> None:
    distinct = {
        "version": version, "guest_svn": 3, "policy": 0x3001F, "family_id": b"f" * 16, "image_id": b"i" * 16, "vmpl": 2,
        "platform_info": 0x27, "author_key": True, "mask_chip_key": True, "signing_key": SigningKey.VLEK,
        "host_data": b"h" * 32, "id_key_digest": b"1" * 48, "author_key_digest": b"2" * 48, "report_id": b"3" * 32,
        "report_id_ma": b"4" * 32, "reported_tcb": Tcb(1, 2, 3, 4), "committed_tcb": Tcb(5, 6, 7, 8),
        "current_tcb": Tcb(9, 10, 11, 12), "launch_tcb": Tcb(13, 14, 15, 16), "chip_id": bytes(range(64)),
        "cpuid": Cpuid(0x19, 0xA0, 2),
    }  # fmt: skip
    report = parse_report(honest(**distinct), "Genoa")
    for name, value in distinct.items():
        if name != "cpuid" or version > 2:
            assert getattr(report, name) == value, name
    assert (report.signature_r, report.signature_s) == (5, 7)
    assert (report.report_data, report.measurement) == (REPORT_DATA, MEASUREMENT)
    assert (report.launch_mitigations is None) == (version < 5)
    assert report.product == "Genoa" and (report.cpuid is None) == (version == 2)


def test_turin_layout() -> None:
    tcb = Tcb(bootloader=2, tee=3, snp=4, microcode=5, fmc=1)
    tcbs = dict.fromkeys(("reported_tcb", "committed_tcb", "current_tcb", "launch_tcb"), tcb)
    raw = honest(product="Turin", cpuid=Cpuid(0x1A, 2, 1), **tcbs)
    assert raw[0x180:0x188] == bytes((1, 2, 3, 4, 0, 0, 0, 5))
    assert parse_report(raw, "Genoa").reported_tcb == tcb  # the report's own CPUID decides, not the claim


RESERVED = [*range(0x4C, 0x50), *range(0x18B, 0x1A0), 0x1EB, 0x1EF, *range(0x208, 0x2A0),
            *range(0x2D0, 0x2E8), *range(0x318, 0x4A0)]  # fmt: skip


def test_reserved_bytes_must_be_zero() -> None:
    parse_report(honest(), "Genoa")  # control
    for offset in RESERVED:
        with pytest.raises(UserError, match="must be zero"):
            parse_report(edited(offset, b"\1"), "Genoa")
    for version, offset in ((2, 0x188), (2, 0x1F8), (3, 0x1F8), (3, 0x207)):
        parse_report(honest(version=version), "Genoa")  # control
        with pytest.raises(UserError, match="must be zero"):
            parse_report(edited(offset, b"\1", honest(version=version)), "Genoa")


@pytest.mark.parametrize(
    ("offset", "data", "words"),
    [
        (0x000, b"\1", "version 1"),
        (0x000, b"\6", "version 6, newer than 5"),
        (0x034, b"\2", "signature algorithm 2"),
        (0x048, b"\x20", "bits 31:5"),
        (0x048, b"\x08", "signing key 2"),
        (0x182, b"\1", "reserved bytes"),
        (0x188, b"\x17", "no known product"),
        (0x008, struct.pack("<Q", 0x30000 | 1 << 26), "guest policy"),
        (0x008, struct.pack("<Q", 0x10000), "guest policy"),
    ],
)
def test_reserved_values_are_refused(offset: int, data: bytes, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_report(edited(offset, data), "Genoa")


@pytest.mark.parametrize("size", [0, 1, REPORT_SIZE - 1, REPORT_SIZE + 1, 4000])
def test_exact_length(size: int) -> None:
    with pytest.raises(UserError, match="expected 1184"):
        parse_report(honest().ljust(size, b"\0")[:size], "Genoa")


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [(0x19, 1, "Milan"), (0x19, 0x11, "Genoa"), (0x19, 0xA0, "Genoa"), (0x1A, 2, "Turin"), (0x1A, 0x11, "Turin")],
)
def test_products(family: int, model: int, product: Product) -> None:
    assert product_of(Cpuid(family, model, 0)) == product


@pytest.mark.parametrize(
    ("path", "product", "version", "policy"),
    [
        ("milan-v2/report.hex", "Milan", 2, 0x30000),
        ("milan-v2-debug/report.bin", "Milan", 2, 0xB0000),
        ("genoa-v3/report.bin", "Genoa", 3, 0x3001F),
    ],
)
def test_vectors(path: str, product: Product, version: int, policy: int) -> None:
    report = parse_report(read_vector(real_data(path)), product)
    assert (report.version, report.policy, report.product) == (version, policy, product)


def read_vector(path: Path) -> bytes:
    return bytes.fromhex(path.read_text()) if path.suffix == ".hex" else path.read_bytes()


def test_report_data_is_framed() -> None:
    label = b"openend2e-sevsnp ssh host keys v1\0"
    frames = b"".join(len(part).to_bytes(8, "big") + part for part in (b"n" * 32, b"a", b"b"))
    assert ssh_report_data(b"n" * 32, [b"b", b"a"]) == hashlib.sha512(label + frames).digest()
    assert len({report_data("x", parts) for parts in ([b"ab"], [b"a", b"b"], [b"", b"ab"], [b"ab", b""])}) == 4
    assert report_data("x", [b"y"]) != report_data("xy", [b""])


def test_report_data_binds_every_key_and_the_nonce() -> None:
    keys, nonce = [b"one", b"two"], b"n" * 32
    assert ssh_report_data(nonce, keys) == ssh_report_data(nonce, keys[::-1])
    others = [ssh_report_data(nonce, [b"one"]), ssh_report_data(b"m" * 32, keys), ssh_report_data(nonce, [*keys, b"3"])]
    assert ssh_report_data(nonce, keys) not in others
    for bad_nonce, bad_keys in ((b"n" * 31, keys), (nonce, []), (nonce, [b"one", b"one"]), (nonce, [b""])):
        with pytest.raises(ValueError):
            ssh_report_data(bad_nonce, bad_keys)


def test_public_key_lines() -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl root@guest"
    assert read_public_key(line)[:15] == b"\0\0\0\x0bssh-ed25519"
    for bad in ("", "ssh-ed25519", "ssh-rsa " + line.split()[1], "-----BEGIN OPENSSH PRIVATE KEY-----", "a !!!"):
        with pytest.raises(ValueError, match="OpenSSH"):
            read_public_key(bad)
