# SPDX-License-Identifier: Apache-2.0
"""The certificates and revocation lists in a directory, sorted by what is in each file and not by the file's name.

So the directories of other tools can be used as they are: snpguest's (ark.pem, ask.pem, vcek.pem, crl.der), AMD's
cert_chain, and trustee's offline store (vcek/CHIP_ID/bl03_tee00_snp08_ucode115_vcek.der). Nothing in them is trusted.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509

from sevsnp.attestation.certificates import certificates_of_table, crl_of_table, read_certificate
from sevsnp.attestation.extensions import PARSER_ERRORS
from sevsnp.attestation.pem import CERTIFICATE, CRL, is_pem, read_blocks
from sevsnp.errors import UserError

_MAX_FILES, _MAX_DEPTH, _MAX_FILE, _MAX_ALL = 4096, 4, 1 << 20, 64 << 20
_MAX_BLOCKS = 64
_SHOWN = 8


@dataclass
class Contents:
    """What a directory has: certificates without duplicates, revocation lists in DER, and what was passed over."""

    certificates: list[x509.Certificate] = field(default_factory=list)
    lists: list[bytes] = field(default_factory=list)
    passed_over: list[tuple[Path, str]] = field(default_factory=list)

    def describe(self, directory: Path) -> list[str]:
        """Lines that say what is used and what was passed over, with the reasons; a limited number of lines."""
        lines = [f"{directory}: {len(self.certificates)} certificates, {len(self.lists)} revocation lists"]
        for path, reason in self.passed_over[:_SHOWN]:
            lines.append(f"{ascii(str(path))[1:-1]}: ignored: {reason}")
        if more := len(self.passed_over) - _SHOWN:
            lines += [f"{directory}: {more} more files were ignored"] if more > 0 else []
        return lines


def read_directory(path: Path) -> Contents:
    """Everything usable below ``path``, at most four directories deep. Hidden files are ignored.

    Raises :class:`UserError` for a directory that cannot be read, and for one with too many or too large files.
    """
    found, left = Contents(), _MAX_ALL
    unique: dict[x509.Certificate, None] = {}
    for number, (name, problem) in enumerate(_files(path, _MAX_DEPTH)):
        if number == _MAX_FILES:
            raise UserError(f"{path}: more than {_MAX_FILES} files, expected a directory of certificates only")
        data = b""
        if not problem:
            data, problem = _read(name)
        left -= len(data)
        if left < 0:
            raise UserError(f"{path}: more than {_MAX_ALL} bytes, expected a directory of certificates only")
        certificates, lists, reason = _sort(data) if not problem else ([], [], problem)
        unique.update(dict.fromkeys(certificates))
        found.lists += lists
        if reason:
            found.passed_over.append((name, reason))
    found.certificates += unique
    return found


def _files(directory: Path, depth: int) -> Iterator[tuple[Path, str]]:
    """The files below a directory in the order of their names, each with the reason why it cannot be read, or ""."""
    try:
        paths = sorted(directory.iterdir())
    except OSError as error:
        raise UserError(f"{directory}: cannot read: {error.strerror}") from error
    for path in (one for one in paths if not one.name.startswith(".")):
        # A link to a directory could lead back to it.
        if path.is_dir() and not path.is_symlink():
            if depth:
                yield from _files(path, depth - 1)
            else:
                yield path, f"nested more than {_MAX_DEPTH} directories deep"
        else:
            yield path, "" if path.is_file() else "not a regular file"


def _read(path: Path) -> tuple[bytes, str]:
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX_FILE + 1)
    except OSError as error:
        return b"", f"cannot read: {error.strerror}"
    return (data, "") if len(data) <= _MAX_FILE else (b"", f"more than {_MAX_FILE} bytes")


def _sort(data: bytes) -> tuple[list[x509.Certificate], list[bytes], str]:
    """The certificates and the revocation lists in a file, and why something in it was passed over; "" if nothing."""
    if is_pem(data):
        return _sort_pem(data)
    for parse in (_certificate, _crl, _table):
        try:
            return *parse(data), ""
        except (*PARSER_ERRORS, UserError):
            continue
    if _is_der(data) and _is_private(data):
        return [], [], "a private key"
    return [], [], "neither a certificate nor a revocation list"


def _sort_pem(data: bytes) -> tuple[list[x509.Certificate], list[bytes], str]:
    certificates: list[x509.Certificate] = []
    lists: list[bytes] = []
    reasons: dict[str, None] = {}  # in their order, without duplicates
    try:
        for block in read_blocks(data, _MAX_BLOCKS):
            if block.private:
                reasons["a private key"] = None
            elif block.label == CERTIFICATE:
                certificates.append(read_certificate(block.decode()))
            elif block.label == CRL:
                lists += _crl(block.decode())[1]
            else:
                reasons[f"a PEM block {block.label[:40]!a}"] = None
    except PARSER_ERRORS:
        reasons["a broken PEM block"] = None
    return certificates, lists, ", ".join(reasons)


def _certificate(data: bytes) -> tuple[list[x509.Certificate], list[bytes]]:
    return [read_certificate(data)], []


def _crl(data: bytes) -> tuple[list[x509.Certificate], list[bytes]]:
    x509.load_der_x509_crl(data)
    return [], [data]


def _table(data: bytes) -> tuple[list[x509.Certificate], list[bytes]]:
    certificates, crl = certificates_of_table(data), crl_of_table(data)
    if not certificates and crl is None:
        raise ValueError("an empty certificate table")
    return certificates, [] if crl is None else [crl]


def _is_der(data: bytes) -> bool:
    return data[:1] == b"\x30"


def _is_private(data: bytes) -> bool:
    """Whether DER is a private key in PKCS#8, SEC1 or PKCS#1: a SEQUENCE that begins with an INTEGER below 4.

    The key itself is not decoded.
    """
    head = 2 if data[1:2] < b"\x80" else 2 + (data[1] & 0x7F)
    return data[head : head + 2] == b"\x02\x01" and data[head + 2 : head + 3] < b"\x04"
