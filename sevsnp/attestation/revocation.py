# SPDX-License-Identifier: Apache-2.0
"""AMD's revocation lists: which ASK or ASVK an ARK has revoked.

Source: AMD 57230. A leaf cannot be revoked by serial number, because all of AMD's leaves have serial number 0.
"""

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import SignatureAlgorithmOID

from sevsnp.attestation.chain import Chain, verify_pss
from sevsnp.attestation.extensions import PARSER_ERRORS

MAX_CRL = 1 << 20


class CrlError(Exception):
    """A revocation list is not usable: it is unreadable, the ARK did not sign it, or it is not in force."""


def load_crl(data: bytes, ark: x509.Certificate, now: datetime) -> x509.CertificateRevocationList:
    """Read a DER revocation list that ``ark`` signed and that is in force at ``now``. Raises :class:`CrlError`."""
    if len(data) > MAX_CRL:
        raise CrlError(f"{len(data)} bytes, expected at most {MAX_CRL}")
    try:
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
        if until is None or not crl.last_update_utc <= now <= until:
            raise CrlError(f"in force from {crl.last_update_utc:%F} to {until:%F}" if until else "without nextUpdate")
    except (*PARSER_ERRORS, x509.ExtensionNotFound) as error:
        raise CrlError(f"unreadable: {str(error).splitlines()[0][:200] if str(error) else 'no reason'}") from error
    return crl


def is_revoked(crl: x509.CertificateRevocationList, chain: Chain) -> bool:
    """Whether the chain's ASK or ASVK is on the list."""
    return crl.get_revoked_certificate_by_serial_number(chain.ask.serial_number) is not None
