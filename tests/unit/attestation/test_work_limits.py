# SPDX-License-Identifier: Apache-2.0
"""Untrusted bytes that would take long to parse: every parser of the fuzz tests has a limit of processor time."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from sevsnp.attestation.certificate_files import read_directory
from sevsnp.attestation.certificates import load_certificates, parse_certificate_table, read_certificate
from sevsnp.attestation.chain import pem
from sevsnp.attestation.pem import Block, read_blocks
from sevsnp.attestation.revocation import CrlError, read_crl
from sevsnp.errors import UserError
from sevsnp.qemu.disk_format import DiskFormat, check_whole
from tests.support.cpu_limit import TooMuchWork, cpu_limit
from tests.support.fuzz_targets import TARGETS
from tests.support.hierarchy import Hierarchy

GENOA = Hierarchy()
SIZE = 512 << 10
# Seconds of processor time for half a megabyte. Linear work takes a hundredth of it, quadratic work a minute.
LIMIT = 3.0

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"


def _filled(unit: bytes, size: int = SIZE) -> bytes:
    return (unit * (size // len(unit) + 1))[:size]


def _table(entries: int, length: int) -> bytes:
    """A certificate table of many entries that all have the same bytes, the rest of the table."""
    start = 24 * (entries + 1)
    heads = (struct.pack("<16sII", number.to_bytes(16, "big"), start, length) for number in range(1, entries + 1))
    return b"".join(heads) + bytes(24) + bytes(length)


HOSTILE: dict[str, Callable[[], bytes]] = {
    "begin lines": lambda: _filled(_BEGIN),
    "begin lines, one end": lambda: _filled(_BEGIN) + _END,
    "pairs": lambda: _filled(_BEGIN + _END),
    "long labels": lambda: _filled(b"-----BEGIN " + b"A" * 60),
    "dashes": lambda: _filled(b"-"),
    "line ends": lambda: _filled(b"\n"),
    "digits": lambda: _filled(b"1"),
    "blanks and digits": lambda: _filled(b"1 \n"),
    "brackets": lambda: _filled(b"["),
    "braces": lambda: _filled(b'{"a":'),
    "keys": lambda: b'{"report": ' + _filled(b"9") + b"}",
    "a key of dots": lambda: _filled(b"a.")[:-1] + b" = 1",
    "keys of dots": lambda: b"".join(b"x%d." % number + b"a." * 48 + b"a = 1\n" for number in range(600)),
    "tables of dots": lambda: b"".join(b"[x%d." % number + b"a." * 48 + b"a]\n" for number in range(600)),
    "tables in one": lambda: b"".join(b"[[a]]\n" for _ in range(20000)),
    "a TOML number": lambda: b"format = " + b"1" * 5000,
    "a TOML number in hex": lambda: b"format = 0x" + b"f" * 100_000,
    "arrays": lambda: b"a = " + _filled(b"["),
    "sequences": lambda: _filled(b"\x30\x80"),
    "lengths": lambda: _filled(b"\x30\x84\x7f\xff\xff\xff"),
    "zeros": lambda: bytes(SIZE),
    "ones": lambda: b"\xff" * SIZE,
    "a table of one": lambda: _table(10000, SIZE // 2),
    "a report and begin lines": lambda: GENOA.report() + _filled(_BEGIN),
    "a report and a table of one": lambda: GENOA.report() + _table(10000, SIZE // 2),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_every_parser_has_a_limit(name: str) -> None:
    data = HOSTILE[name]()
    for target in TARGETS.values():
        with cpu_limit(LIMIT):
            target(data)


def test_control_quadratic_work_exceeds_the_limit() -> None:
    """Control: the regular expression that once searched for PEM blocks, and copies of overlapping entries."""
    pattern = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
    with pytest.raises(TooMuchWork), cpu_limit(LIMIT):
        pattern.findall(HOSTILE["begin lines"]())


def test_pem_with_other_text_around_it_is_read() -> None:
    one = pem([GENOA.certificate])
    for text in (one, one.replace(b"\n", b"\r\n"), b"Bag Attributes: none\n" + one + b"\n# end\n", one.rstrip()):
        assert load_certificates(text) == [GENOA.certificate]
    key = b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n"
    assert load_certificates(key + one) == [GENOA.certificate]  # the key is not decoded
    assert [block.label for block in read_blocks(key + one, 2)] == ["RSA PRIVATE KEY", "CERTIFICATE"]
    for wrong in (
        one.replace(b"-----END", b"----END"),
        one.replace(b"END CERTIFICATE", b"END X509 CRL"),
        _BEGIN + one,
        one.replace(b"\n", b"!\n", 3),  # characters that a lenient decoder would skip
        one[:-10],
        b"-----BEGIN " + b"A" * 70 + b"-----\n" + one,
        key,
        GENOA.crl(),
    ):
        with pytest.raises(UserError, match="certificates: "):
            load_certificates(wrong)


def test_no_block_is_hidden_in_another_one() -> None:
    """The outer block is not decoded, so the inner block would be overlooked."""
    outer = (b"-----BEGIN PRIVATE KEY-----\n", b"-----END PRIVATE KEY-----\n")
    assert [block.label for block in read_blocks(outer[0] + outer[1] + _BEGIN + _END, 2)] == [
        "PRIVATE KEY", "CERTIFICATE",
    ]  # fmt: skip
    for wrong in (outer[0] + _BEGIN + outer[1], outer[0] + _BEGIN + _END + outer[1]):
        with pytest.raises(ValueError, match="a BEGIN line without its END line"):
            read_blocks(wrong, 4)
    with pytest.raises(ValueError, match="more than 1 PEM blocks"):
        read_blocks((_BEGIN + _END) * 2, 1)
    with pytest.raises(ValueError, match="CERTIFICATE: not base64"):
        Block("CERTIFICATE", b"AA!A=").decode()


def test_limits_of_a_certificate_table() -> None:
    honest = _table(64, 0)
    assert len(parse_certificate_table(honest)) == 64
    for wrong in (_table(65, 0), _table(2, 4096)):
        with pytest.raises(UserError, match="overlap, or there are more than 64"):
            parse_certificate_table(wrong)
    # One entry may have everything behind the header, but for the header itself.
    assert list(parse_certificate_table(_table(1, 4096)).values()) == [bytes(4096)]


@pytest.mark.parametrize(
    ("read", "most"),
    [
        (load_certificates, 1 << 20), (parse_certificate_table, 1 << 20), (read_certificate, 32 << 10),
        (lambda data: read_crl(data, Hierarchy().ark), 1 << 20),
    ],
    ids=["certificates", "table", "certificate", "revocation list"],
)  # fmt: skip
def test_inputs_over_their_size_limit_are_refused(read: Callable[[bytes], object], most: int) -> None:
    """One byte too many is refused because of the size. The largest allowed size is not."""
    with pytest.raises((UserError, CrlError, ValueError), match=f"expected .*at most {most}$"):
        read(bytes(most + 1))
    try:
        read(bytes(most))
    except (UserError, CrlError, ValueError) as error:
        assert f"at most {most}" not in str(error)


def test_a_certificate_of_a_megabyte_is_not_read() -> None:
    body = b"\x30\x83" + (100_000).to_bytes(3, "big") + bytes(100_000)
    with pytest.raises(UserError, match="expected a certificate of at most"):
        load_certificates(body)


def test_a_directory_of_slow_files_is_read_within_the_limit(tmp_path: Path) -> None:
    for number, make in enumerate(HOSTILE.values()):
        (tmp_path / f"{number}.pem").write_bytes(make()[: 1 << 20])
    with cpu_limit(LIMIT):
        found = read_directory(tmp_path)
    assert found.certificates == [] and len(found.passed_over) == len(HOSTILE)


def test_a_vmdk_full_of_line_ends_is_checked_within_the_limit(tmp_path: Path) -> None:
    """In the descriptor of the VMDK, words are searched for."""
    image = tmp_path / "image.vmdk"
    head = b"KDMV" + bytes(8) + struct.pack("<QQQQ", 1, 1, 1, 136)
    image.write_bytes(head.ljust(512, b"\0") + b"\n" * 0x20000)
    with cpu_limit(LIMIT), pytest.raises(UserError, match="VMDK whose data are in other files"):
        check_whole(image, DiskFormat.VMDK)
    pattern = re.compile(rb"^\s*(?:rw|rdonly|noaccess)\s+\d+\s+(\w+)[^\n\0]*", re.MULTILINE)
    with pytest.raises(TooMuchWork), cpu_limit(LIMIT):  # control: the expression that also took line ends
        pattern.findall(b"\n" * 0x20000)
