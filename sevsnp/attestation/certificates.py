# SPDX-License-Identifier: Apache-2.0
"""Read certificates: PEM, DER, or the certificate table that a host adds to an extended report.

Sources: the GHCB specification (certificate table; the GUIDs), AMD 57230. This module verifies nothing: see chain.py.
"""

import struct
import warnings
from functools import lru_cache

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from sevsnp.attestation.extensions import PARSER_ERRORS
from sevsnp.attestation.pem import CERTIFICATE, read_blocks
from sevsnp.errors import UserError

# In the byte order of RFC 4122, as in the table.
VCEK_GUID = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
VLEK_GUID = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1")
ASK_GUID = bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782")  # also used for an ASVK
ARK_GUID = bytes.fromhex("c0b406a4a803495297433fb6014cd0ae")
CRL_GUID = bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea")

_MAX_CERTIFICATES = 16
_MAX_ENTRIES = 64
_MAX_BYTES = 1 << 20
# AMD's certificates have less than 2 KiB. Names and extensions of a megabyte would take seconds to read.
_MAX_CERTIFICATE = 32 << 10

# What is larger is read anew each time, so that evidence of strangers cannot fill the memory of a long-lived verifier.
REMEMBERED_BYTES = 32 << 10

# The bytes of certificates that were read. cryptography gives them too, but first loads all that it has for keys and
# SSH: milliseconds that a verification as a command can do without.
_READ: dict[x509.Certificate, bytes] = {}
_MAX_READ = 1024


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM bundle, or the single certificate of a DER file. Raises :class:`UserError`."""
    return list(_load(data) if len(data) <= REMEMBERED_BYTES else _load.__wrapped__(data))


@lru_cache(maxsize=1024)
def _load(data: bytes) -> tuple[x509.Certificate, ...]:
    if len(data) > _MAX_BYTES:
        raise UserError(f"certificates: {len(data)} bytes, expected at most {_MAX_BYTES}")
    try:
        blocks = read_blocks(data, _MAX_CERTIFICATES)
        if blocks:
            found = tuple(read_certificate(block.decode()) for block in blocks if block.label == CERTIFICATE)
        else:
            found = (read_certificate(data),)
    except PARSER_ERRORS as error:
        raise UserError(f"certificates: neither PEM nor DER: {first_line(error)}") from error
    if not found:
        raise UserError(f"certificates: found a PEM block {blocks[0].label[:40]!a}, expected {CERTIFICATE}")
    return found


def read_certificate(data: bytes) -> x509.Certificate:
    """A certificate in DER. Raises one of PARSER_ERRORS."""
    if len(data) > _MAX_CERTIFICATE:
        raise ValueError(f"{len(data)} bytes, expected a certificate of at most {_MAX_CERTIFICATE}")
    with warnings.catch_warnings():
        # Every VCEK has serial number 0. RFC 5280 forbids that, and cryptography warns that it will refuse it.
        warnings.filterwarnings("ignore", ".*serial number", CryptographyDeprecationWarning)
        certificate = x509.load_der_x509_certificate(data)
    if len(_READ) >= _MAX_READ:
        _READ.clear()
    _READ[certificate] = data
    return certificate


def first_line(error: Exception) -> str:
    """The first line of an error's text, at most 200 characters and never empty: callers take "" for no problem."""
    return next((line for line in str(error).splitlines() if line.strip()), "no reason")[:200]


def parse_certificate_table(table: bytes) -> dict[bytes, bytes]:
    """An extended report's certificate table: GUID → certificate bytes; empty for an empty or all-zero table.

    An entry is a GUID (16 bytes, RFC 4122 order), an offset and a length (u32 little-endian). An all-zero entry ends
    the table. The number of entries and the sum of their lengths are limited, so that a table of many entries that
    overlap costs neither time nor memory.
    """
    if len(table) > _MAX_BYTES:
        raise UserError(f"certificate table: {len(table)} bytes, expected at most {_MAX_BYTES}")
    entries: dict[bytes, bytes] = {}
    if not table:
        return entries
    left = len(table)
    for position in range(0, len(table) - 23, 24):
        guid, offset, length = struct.unpack_from("<16sII", table, position)
        if not any(guid):
            return entries
        if guid in entries or offset + length > len(table):
            raise UserError(f"certificate table: entry {guid.hex()} occurs twice, or reaches outside the table")
        left -= length
        if left < 0 or len(entries) == _MAX_ENTRIES:
            raise UserError(f"certificate table: the entries overlap, or there are more than {_MAX_ENTRIES}")
        entries[guid] = table[offset : offset + length]
    raise UserError("certificate table: found no entry of zeros at the end")


def certificates_of_table(table: bytes) -> list[x509.Certificate]:
    """The VCEK or VLEK, ASK or ASVK, and ARK in a certificate table, as far as they are present."""
    entries = parse_certificate_table(table)
    present = [entries[guid] for guid in (VCEK_GUID, VLEK_GUID, ASK_GUID, ARK_GUID) if guid in entries]
    return [certificate for data in present for certificate in load_certificates(data)]


def crl_of_table(table: bytes) -> bytes | None:
    """The revocation list in a certificate table, or None."""
    return parse_certificate_table(table).get(CRL_GUID)


def der(certificate: x509.Certificate) -> bytes:
    """A certificate's bytes. Equal certificates have equal bytes."""
    if (data := _READ.get(certificate)) is not None:
        return data
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)
