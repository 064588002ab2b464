# SPDX-License-Identifier: Apache-2.0
"""AMD's revocation lists: which ASK or ASVK an ARK has revoked.

Source: AMD 57230. A leaf cannot be revoked by serial number, because all of AMD's leaves have serial number 0. A list
that the ARK signed proves a revocation for ever, but proves that there is none only until its nextUpdate.
"""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import SignatureAlgorithmOID

from sevsnp.attestation.certificates import first_line
from sevsnp.attestation.chain import Chain, verify_pss
from sevsnp.attestation.extensions import PARSER_ERRORS
from sevsnp.attestation.pem import CRL, is_pem, read_blocks

MAX_CRL = 1 << 20


class CrlError(Exception):
    """A revocation list is not usable: it is unreadable, the ARK did not sign it, or it is not in force."""


class Lists(NamedTuple):
    """Genuine revocation lists of one ARK, in force or not. ``problem`` says why none of them is in force."""

    found: tuple[x509.CertificateRevocationList, ...] = ()
    problem: str = ""


def read_crl(data: bytes, ark: x509.Certificate) -> x509.CertificateRevocationList:
    """Read a revocation list in DER or PEM that ``ark`` signed, in force or not. Raises :class:`CrlError`."""
    if len(data) > MAX_CRL:
        raise CrlError(f"{len(data)} bytes, expected at most {MAX_CRL}")
    try:
        return _read(data, ark)
    except (*PARSER_ERRORS, x509.ExtensionNotFound) as error:
        raise CrlError(f"unreadable: {first_line(error)}") from error


@lru_cache(maxsize=16)
def _read(data: bytes, ark: x509.Certificate) -> x509.CertificateRevocationList:
    if is_pem(data):
        block, *others = read_blocks(data, 16)
        if block.label != CRL or others:
            raise CrlError(f"PEM with {block.label[:40]!a}, expected one block {CRL}")
        data = block.decode()
    crl = x509.load_der_x509_crl(data)
    if crl.issuer.public_bytes() != ark.subject.public_bytes():
        raise CrlError("its issuer is not the ARK")
    usage = ark.extensions.get_extension_for_class(x509.KeyUsage).value
    digest = crl.signature_hash_algorithm
    if crl.signature_algorithm_oid != SignatureAlgorithmOID.RSASSA_PSS or not isinstance(digest, hashes.SHA384):
        raise CrlError("not signed with RSA-PSS and SHA-384")
    if not usage.crl_sign or not verify_pss(ark, crl.signature, crl.tbs_certlist_bytes):
        raise CrlError("its signature is not the ARK's")
    until = crl.next_update_utc
    if until is None or not crl.last_update_utc <= until:
        raise CrlError("without nextUpdate, or with a nextUpdate before its thisUpdate")
    return crl


def not_in_force(crl: x509.CertificateRevocationList, now: datetime) -> str:
    """Why a list of :func:`read_crl` is not in force at ``now`` (aware); empty if it is."""
    until = crl.next_update_utc
    if until is not None and crl.last_update_utc <= now <= until:
        return ""
    return f"in force from {crl.last_update_utc:%F} to {until:%F}" if until else "without nextUpdate"


def newest_in_force(
    lists: Iterable[x509.CertificateRevocationList], now: datetime
) -> x509.CertificateRevocationList | None:
    """The list with the latest lastUpdate of those in force at ``now`` (aware)."""
    return max((one for one in lists if not not_in_force(one, now)), key=lambda one: one.last_update_utc, default=None)


def is_revoked(crl: x509.CertificateRevocationList, chain: Chain) -> bool:
    """Whether the chain's ASK or ASVK is on the list."""
    return crl.get_revoked_certificate_by_serial_number(chain.ask.serial_number) is not None
