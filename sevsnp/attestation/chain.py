# SPDX-License-Identifier: Apache-2.0
"""The certificate chain of a report, ARK → ASK → VCEK or ARK → ASVK → VLEK, and its signatures.

Source: AMD 57230. AMD's leaf certificates have serial number 0 and no key identifiers, so general path builders refuse
them. Therefore this module checks each step itself. Only the SHA-256 of an ARK's DER decides whether the ARK is
trusted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from sevsnp.attestation.certificates import der, first_line
from sevsnp.attestation.extensions import PARSER_ERRORS, Signer
from sevsnp.attestation.signed_algorithm import algorithm_problem
from sevsnp.vm_config.config import PlatformName, Product

TrustDomain = Literal["amd", "emulated"]


class ChainError(Exception):
    """The certificates do not vouch for the report; ``reason`` is the value of an ``outcome.Reason``."""

    def __init__(self, reason: Literal["unknown-root", "certificates", "validity"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class TrustRoot:
    """The root that a verifier trusts. Each pin is the SHA-256 (32 bytes) of an ARK's DER with its product.

    The product of a pin is None if the root serves any product. ``required_extensions`` are the critical extensions
    (dotted OIDs) that all three certificates must carry; no other unknown critical extension is accepted. ``vendor``
    is true for a root whose certificates have AMD's common names and which publishes revocation lists.
    """

    domain: TrustDomain
    platform: PlatformName
    pins: tuple[tuple[bytes, Product | None], ...]
    required_extensions: frozenset[str] = frozenset()
    vendor: bool = False

    def is_pinned(self, certificate: x509.Certificate) -> bool:
        return any(pin == fingerprint(certificate) for pin, _ in self.pins)


@dataclass(frozen=True)
class Chain:
    """The three certificates that vouch for a report: VCEK or VLEK, ASK or ASVK, ARK."""

    leaf: x509.Certificate
    ask: x509.Certificate
    ark: x509.Certificate

    @cached_property
    def _hash(self) -> int:
        return hash((self.leaf, self.ask, self.ark))

    def __hash__(self) -> int:
        # Cached, because the library computes a certificate's hash from the whole certificate each time.
        return self._hash


def leaves(candidates: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """The candidates that may be a VCEK or VLEK: those with an elliptic-curve key, without duplicates."""
    unique = dict.fromkeys(candidates)
    return [one for one in unique if isinstance(public_key(one), ec.EllipticCurvePublicKey)]


def issuer_among(
    certificate: x509.Certificate, candidates: Sequence[x509.Certificate], root: TrustRoot
) -> x509.Certificate | None:
    """The best candidate for the issuer of ``certificate``, or None if no candidate has the issuer's name.

    A candidate whose key made the signature comes first, then a pinned one. This function only chooses:
    :func:`verify_chain` must still verify the chosen candidate.
    """
    named = [one for one in dict.fromkeys(candidates) if one != certificate and _named(one, certificate)]
    named.sort(key=lambda one: (bool(issuing_problem(certificate, one)), not root.is_pinned(one)))
    return named[0] if named else None


@lru_cache(maxsize=1024)
def root_product(chain: Chain, root: TrustRoot) -> Product | None:
    """The product of the pin that matches the chain's ARK. Raises ChainError ``unknown-root`` if no pin matches."""
    found = fingerprint(chain.ark)
    for pin, product in root.pins:
        if pin == found:
            return product
    raise ChainError("unknown-root", f"the ARK ({found.hex()}) is not a trusted root of {root.domain}")


def verify_chain(chain: Chain, root: TrustRoot, now: datetime, signer: Signer = "VCEK") -> None:
    """Verify ARK → ARK → ASK → leaf at the time ``now`` (aware). Raises ChainError; the pin is checked first."""
    product = root_product(chain, root)
    if problem := _standing_problem(chain, root, product, signer):
        raise ChainError("certificates", problem)
    for name, certificate in (("ARK", chain.ark), ("ASK", chain.ask), (signer, chain.leaf)):
        if not is_valid_at(certificate, now):
            span = f"{certificate.not_valid_before_utc:%F} to {certificate.not_valid_after_utc:%F}"
            raise ChainError("validity", f"{name}: valid from {span}, and it is {now:%F %H:%M}")


def authorities_problem(
    ask: x509.Certificate, ark: x509.Certificate, root: TrustRoot, product: Product, signer: Signer, now: datetime
) -> str:
    """What is wrong with a pinned ARK and the ASK or ASVK below it at the time ``now``; empty if nothing is wrong."""
    chain = Chain(ask, ask, ark)
    try:
        if root_product(chain, root) not in (product, None):
            return "another product's"
    except ChainError as error:
        return str(error)
    for name, certificate, issuer in (("ARK", ark, ark), ("ASK", ask, ark)):
        if problem := _link_problem(name, certificate, issuer, root, product, signer):
            return f"{name}: {problem}"
        if not is_valid_at(certificate, now):
            return f"{name}: not valid at {now:%F %H:%M}"
    return ""


def verify_signature(leaf: x509.Certificate, r: int, s: int, signed: bytes) -> bool:
    """Whether (r, s) is the leaf's ECDSA P-384 / SHA-384 signature of ``signed``."""
    key = public_key(leaf)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return False
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def verify_pss(issuer: x509.Certificate, signature: bytes, signed: bytes) -> bool:
    """Whether ``signature`` is the issuer's RSA-PSS (SHA-384, MGF1 with SHA-384, salt 48) signature of ``signed``."""
    key = public_key(issuer)
    if not isinstance(key, rsa.RSAPublicKey):
        return False
    try:
        key.verify(signature, signed, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384())
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=1024)
def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's DER, 32 bytes."""
    return certificate.fingerprint(hashes.SHA256())


def is_valid_at(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether ``now`` (aware) is in the certificate's validity period; False if its dates cannot be parsed."""
    try:
        return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
    except PARSER_ERRORS:
        return False


def public_key(certificate: x509.Certificate) -> object:
    """The certificate's public key, or None if the key cannot be read.

    The library keeps the key in the certificate. A cache here would hash the whole certificate for each look-up.
    """
    try:
        return certificate.public_key()
    except PARSER_ERRORS:
        return None


@lru_cache(maxsize=1024)
def issuing_problem(certificate: x509.Certificate, issuer: x509.Certificate) -> str:
    """Why ``issuer`` did not issue ``certificate``; empty if it did."""
    key = public_key(issuer)
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096 or key.public_numbers().e != 65537:
        return "its issuer's key is not RSA-4096 with exponent 65537"
    try:
        digest = certificate.signature_hash_algorithm
        algorithm = certificate.signature_algorithm_oid
        if algorithm != SignatureAlgorithmOID.RSASSA_PSS or not isinstance(digest, hashes.SHA384):
            return "not signed with RSA-PSS and SHA-384"
        if problem := algorithm_problem(der(certificate), certificate.tbs_certificate_bytes):
            return problem
    except PARSER_ERRORS as error:
        return first_line(error)
    if not _named(issuer, certificate):
        return "its issuer's name is not that of the certificate above"
    if not verify_pss(issuer, certificate.signature, certificate.tbs_certificate_bytes):
        return "its signature was not made with its issuer's key"
    return ""


@lru_cache(maxsize=1024)
def _standing_problem(chain: Chain, root: TrustRoot, product: Product | None, signer: Signer) -> str:
    """What is wrong with a chain apart from the time; cached, because one chain serves many reports."""
    for name, certificate, issuer in (
        ("ARK", chain.ark, chain.ark), ("ASK", chain.ask, chain.ark), (signer, chain.leaf, chain.ask),
    ):  # fmt: skip
        problem = _link_problem(name, certificate, issuer, root, product, signer)
        if problem:
            return f"{name}: {problem}"
    key = public_key(chain.leaf)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return f"{signer}: expected a P-384 key"
    return ""


def _link_problem(
    name: str, certificate: x509.Certificate, issuer: x509.Certificate, root: TrustRoot, product: Product | None,
    signer: Signer,
) -> str:  # fmt: skip
    problem = issuing_problem(certificate, issuer)
    try:
        if not certificate.not_valid_before_utc <= certificate.not_valid_after_utc:
            problem = problem or "its validity ends before it begins"
        problem = problem or _extensions_problem(name, certificate, root)
        if root.vendor and not problem:
            problem = _name_problem(name, certificate, product, signer)
    except PARSER_ERRORS as error:
        problem = first_line(error)
    return problem


@lru_cache(maxsize=1024)
def _named(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    try:
        return issuer.subject.public_bytes() == subject.issuer.public_bytes()
    except PARSER_ERRORS:  # the library parses names only on access
        return False


def _name_problem(name: str, certificate: x509.Certificate, product: Product | None, signer: Signer) -> str:
    """What is wrong with a common name. AMD's names (57230) tell an ASK from an ASVK: a VCEK's chain from a VLEK's."""
    expected = {
        "ARK": f"ARK-{product}",
        "ASK": f"SEV-VLEK-{product}" if signer == "VLEK" else f"SEV-{product}",
    }.get(name, f"SEV-{signer}")
    found = [str(one.value) for one in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return "" if found == [expected] else f"its common name is {', '.join(found) or 'missing'}, expected {expected}"


def _extensions_problem(name: str, certificate: x509.Certificate, root: TrustRoot) -> str:
    critical = {extension.oid.dotted_string for extension in certificate.extensions if extension.critical}
    known = {ExtensionOID.BASIC_CONSTRAINTS.dotted_string, ExtensionOID.KEY_USAGE.dotted_string}
    if strange := sorted(critical - known - root.required_extensions):
        return f"unknown critical extension {', '.join(strange)}"
    if missing := sorted(root.required_extensions - critical):
        return f"without the critical extension {', '.join(missing)}"
    values = [extension.value for extension in certificate.extensions]
    authority = any(isinstance(value, x509.BasicConstraints) and value.ca for value in values)
    signs = any(isinstance(value, x509.KeyUsage) and value.key_cert_sign for value in values)
    if name in ("ARK", "ASK") and not (authority and signs):
        return "not a certificate authority"
    if name not in ("ARK", "ASK") and authority:
        return "a certificate authority, expected a leaf"
    return ""


def pem(certificates: Iterable[x509.Certificate]) -> bytes:
    """Certificates as a PEM bundle."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return b"".join(one.public_bytes(Encoding.PEM) for one in certificates)


__all__ = [
    "Chain", "ChainError", "TrustDomain", "TrustRoot", "der", "is_valid_at", "issuer_among", "issuing_problem",
    "leaves", "pem", "public_key", "root_product", "verify_chain", "verify_pss", "verify_signature",
]  # fmt: skip
