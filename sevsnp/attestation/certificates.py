# SPDX-License-Identifier: Apache-2.0
"""Read certificates: PEM, DER, or the certificate table that a host adds to an extended report.

Sources: the GHCB specification (certificate table; the GUIDs), AMD 57230. This module verifies nothing: see chain.py.
"""

import re
import struct
import warnings
from functools import lru_cache

from cryptography import x509
from cryptography.utils import CryptographyDeprecationWarning

from sevsnp.attestation.extensions import PARSER_ERRORS
from sevsnp.errors import UserError

# In the byte order of RFC 4122, as in the table.
VCEK_GUID = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
VLEK_GUID = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1")
ASK_GUID = bytes.fromhex("4ab7b379bbac4fe4a02f05aef327c782")  # also used for an ASVK
ARK_GUID = bytes.fromhex("c0b406a4a803495297433fb6014cd0ae")
CRL_GUID = bytes.fromhex("92f81bc358114d3d97ffd19f88dc67ea")

_MAX_CERTIFICATES = 16
_MAX_BYTES = 1 << 20
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM bundle, or the single certificate of a DER file. Raises :class:`UserError`."""
    return list(_load(data))


@lru_cache(maxsize=64)
def _load(data: bytes) -> tuple[x509.Certificate, ...]:
    if len(data) > _MAX_BYTES:
        raise UserError(f"certificates: {len(data)} bytes, expected at most {_MAX_BYTES}")
    blocks = _PEM.findall(data)
    if len(blocks) > _MAX_CERTIFICATES:
        raise UserError(f"certificates: found {len(blocks)}, expected at most {_MAX_CERTIFICATES}")
    try:
        with warnings.catch_warnings():
            # Every VCEK has serial number 0. RFC 5280 forbids that, and cryptography warns that it will refuse it.
            warnings.filterwarnings("ignore", ".*serial number", CryptographyDeprecationWarning)
            if blocks:
                return tuple(x509.load_pem_x509_certificate(block) for block in blocks)
            return (x509.load_der_x509_certificate(data),)
    except PARSER_ERRORS as error:
        raise UserError(f"certificates: neither PEM nor DER: {str(error).splitlines()[0][:200]}") from error


def parse_certificate_table(table: bytes) -> dict[bytes, bytes]:
    """An extended report's certificate table: GUID → certificate bytes; empty for an empty or all-zero table.

    An entry is a GUID (16 bytes, RFC 4122 order), an offset and a length (u32 little-endian). An all-zero entry ends
    the table.
    """
    if len(table) > _MAX_BYTES:
        raise UserError(f"certificate table: {len(table)} bytes, expected at most {_MAX_BYTES}")
    entries: dict[bytes, bytes] = {}
    if not table:
        return entries
    for position in range(0, len(table) - 23, 24):
        guid, offset, length = struct.unpack_from("<16sII", table, position)
        if not any(guid):
            return entries
        if guid in entries or offset + length > len(table):
            raise UserError(f"certificate table: entry {guid.hex()} is there twice or reaches outside the table")
        entries[guid] = table[offset : offset + length]
    raise UserError("certificate table: no end")


def certificates_of_table(table: bytes) -> list[x509.Certificate]:
    """The VCEK or VLEK, ASK or ASVK, and ARK in a certificate table, as far as they are present."""
    entries = parse_certificate_table(table)
    present = [entries[guid] for guid in (VCEK_GUID, VLEK_GUID, ASK_GUID, ARK_GUID) if guid in entries]
    return [certificate for data in present for certificate in load_certificates(data)]


def crl_of_table(table: bytes) -> bytes | None:
    """The revocation list in a certificate table, or None."""
    return parse_certificate_table(table).get(CRL_GUID)


def der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)
