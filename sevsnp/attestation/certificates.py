"""The certificates behind a report: the VCEK's extensions, the chain to an ARK, and the host's certificate table.

Sources: AMD 57230 (VCEK and KDS: OIDs 1.3.6.1.4.1.3704.1.*), AMD 56860 and the GHCB specification (certificate table).
AMD's chips certify with serial number 0 and without key identifiers, so general path builders refuse them: the three
steps are checked here by hand. Which ARK is trusted is decided by SHA-256 of its DER and by nothing else.
"""

import re
import struct
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from sevsnp.errors import UserError
from sevsnp.vm.config import PlatformName, Product, Tcb

TrustDomain = Literal["amd", "emulated"]

VCEK_GUID = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
ASK_GUID = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
ARK_GUID = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")

_AMD = "1.3.6.1.4.1.3704.1"
STRUCT_VERSION, PRODUCT_NAME, HWID, CSP_ID = f"{_AMD}.1", f"{_AMD}.2", f"{_AMD}.4", f"{_AMD}.5"
BOOTLOADER, TEE, SNP, MICROCODE, FMC = (f"{_AMD}.3.{number}" for number in (1, 2, 3, 8, 9))
RESERVED_SPLS = tuple(f"{_AMD}.3.{number}" for number in (4, 5, 6, 7))
_MAX_CERTIFICATES = 16
_MAX_BYTES = 1 << 20
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_PARSER_ERRORS = (
    ValueError, TypeError, OverflowError, UnsupportedAlgorithm,
    x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType,
)  # fmt: skip


class ChainError(Exception):
    """The certificates do not speak for the report; ``reason`` is a code of appraisal.Reason."""

    def __init__(self, reason: Literal["unknown-root", "certificates", "validity"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class TrustRoot:
    """What a verifier trusts: SHA-256 (32 bytes) of an ARK's DER → its product, or None where the root fixes none.

    ``required_extensions`` are the critical extensions (dotted OIDs) that all three certificates must carry; no other
    unknown critical extension is accepted.
    """

    domain: TrustDomain
    platform: PlatformName
    pins: tuple[tuple[bytes, Product | None], ...]
    required_extensions: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Chain:
    """The three certificates that speak for a report."""

    vcek: x509.Certificate
    ask: x509.Certificate
    ark: x509.Certificate


@dataclass(frozen=True)
class VcekExtensions:
    """What AMD certifies of a VCEK: for which chip (64 bytes, Turin 8), product name and TCB version it was derived."""

    struct_version: int
    product_name: str
    hwid: bytes
    tcb: Tcb


def load_certificates(data: bytes) -> list[x509.Certificate]:
    """The certificates of a PEM bundle, or the one of a DER file. Raises :class:`UserError`."""
    if len(data) > _MAX_BYTES:
        raise UserError(f"certificates: {len(data)} bytes, expected at most {_MAX_BYTES}")
    blocks = _PEM.findall(data)
    if len(blocks) > _MAX_CERTIFICATES:
        raise UserError(f"certificates: found {len(blocks)}, expected at most {_MAX_CERTIFICATES}")
    try:
        with warnings.catch_warnings():
            # Every VCEK has serial number 0, which RFC 5280 forbids and cryptography announces to refuse one day.
            warnings.filterwarnings("ignore", ".*serial number", CryptographyDeprecationWarning)
            if blocks:
                return [x509.load_pem_x509_certificate(block) for block in blocks]
            return [x509.load_der_x509_certificate(data)]
    except _PARSER_ERRORS as error:
        raise UserError(f"certificates: neither PEM nor DER: {str(error).splitlines()[0][:200]}") from error


def parse_certificate_table(table: bytes) -> dict[uuid.UUID, bytes]:
    """An extended report's certificate table: GUID → certificate bytes; empty for an empty or all-zero table.

    Entries are GUID (16 bytes, RFC 4122 order), offset and length (u32 little-endian), ended by an all-zero entry.
    """
    if len(table) > _MAX_BYTES:
        raise UserError(f"certificate table: {len(table)} bytes, expected at most {_MAX_BYTES}")
    entries: dict[uuid.UUID, bytes] = {}
    if not table:
        return entries
    for position in range(0, len(table) - 23, 24):
        guid, offset, length = struct.unpack_from("<16sII", table, position)
        if not any(guid):
            return entries
        name = uuid.UUID(bytes=guid)
        if name in entries or offset + length > len(table):
            raise UserError(f"certificate table: entry {name} is there twice or reaches outside the table")
        entries[name] = table[offset : offset + length]
    raise UserError("certificate table: no end")


def certificates_of_table(table: bytes) -> list[x509.Certificate]:
    """The VCEK, ASK and ARK of a certificate table, those that are there."""
    entries = parse_certificate_table(table)
    present = [entries[guid] for guid in (VCEK_GUID, ASK_GUID, ARK_GUID) if guid in entries]
    return [certificate for data in present for certificate in load_certificates(data)]


def find_chain(candidates: Sequence[x509.Certificate]) -> Chain:
    """Pick VCEK, ASK and ARK by key type and name. Two candidates for a place are refused, never chosen from."""
    unique = list({der(certificate): certificate for certificate in candidates}.values())
    leaves = [certificate for certificate in unique if isinstance(_public_key(certificate), ec.EllipticCurvePublicKey)]
    vcek = _only(leaves, "VCEK")
    ask = _only([found for found in unique if found is not vcek and _issued(found, vcek)], "ASK")
    ark = _only([found for found in unique if found is not vcek and found is not ask and _issued(found, ask)], "ARK")
    return Chain(vcek, ask, ark)


def root_product(chain: Chain, root: TrustRoot) -> Product | None:
    """The product of the pinned root that the chain's ARK is. Raises ChainError ``unknown-root`` where it is none."""
    fingerprint = chain.ark.fingerprint(hashes.SHA256())
    for pin, product in root.pins:
        if pin == fingerprint:
            return product
    raise ChainError("unknown-root", f"the ARK ({fingerprint.hex()}) is not a trusted root of {root.domain}")


def verify_chain(chain: Chain, root: TrustRoot, now: datetime) -> None:
    """Verify ARK → ARK → ASK → VCEK at the time ``now`` (aware). Raises ChainError; the pin is checked first."""
    root_product(chain, root)
    for name, certificate, issuer in (
        ("ARK", chain.ark, chain.ark), ("ASK", chain.ask, chain.ark), ("VCEK", chain.vcek, chain.ask),
    ):  # fmt: skip
        try:
            _verify_issued(name, certificate, issuer)
            _verify_extensions(name, certificate, root)
        except _PARSER_ERRORS as error:
            raise ChainError("certificates", f"{name}: {str(error)[:200]}") from error
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            span = f"{certificate.not_valid_before_utc:%F} to {certificate.not_valid_after_utc:%F}"
            raise ChainError("validity", f"{name}: valid from {span}, and it is {now:%F %H:%M}")
    key = _public_key(chain.vcek)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ChainError("certificates", "VCEK: expected a P-384 key")


def verify_signature(vcek: x509.Certificate, r: int, s: int, signed: bytes) -> bool:
    """Whether (r, s) is the VCEK's ECDSA P-384 / SHA-384 signature of ``signed``."""
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    key = _public_key(vcek)
    try:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError):
        return False
    return True


def read_vcek_extensions(vcek: x509.Certificate, product: Product) -> VcekExtensions:
    """AMD's extensions, all those of the product's structure version required. Raises ChainError."""
    try:
        found = {
            extension.oid.dotted_string: extension.value.value
            for extension in vcek.extensions
            if isinstance(extension.value, x509.UnrecognizedExtension)
        }
        tcb = Tcb(
            bootloader=_small_integer(found, BOOTLOADER),
            tee=_small_integer(found, TEE),
            snp=_small_integer(found, SNP),
            microcode=_small_integer(found, MICROCODE),
            fmc=_small_integer(found, FMC) if product == "Turin" else None,
        )
        if product != "Turin" and FMC in found:
            raise ValueError(f"extension {FMC} (FMC) on a {product} certificate")
        for oid in RESERVED_SPLS:
            if oid in found and _small_integer(found, oid):
                raise ValueError(f"extension {oid}: a reserved component is not zero")
        if CSP_ID in found:
            raise ValueError("a VLEK (it names a cloud provider), expected a VCEK")
        struct_version = _small_integer(found, STRUCT_VERSION)
        if struct_version != (1 if product == "Turin" else 0):
            raise ValueError(f"structure version {struct_version} on a {product} certificate")
        return VcekExtensions(struct_version, _ia5_string(found, PRODUCT_NAME), _hwid(found, product), tcb)
    except _PARSER_ERRORS as error:
        raise ChainError("certificates", f"VCEK: {str(error)[:200]}") from error


def der(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.DER)


def _public_key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except _PARSER_ERRORS:
        return None


def _issued(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    return issuer.subject.public_bytes() == subject.issuer.public_bytes()


def _only(found: list[x509.Certificate], name: str) -> x509.Certificate:
    if len(found) != 1:
        raise ChainError("certificates", f"{name}: found {len(found)} among the certificates, expected exactly one")
    return found[0]


def _verify_issued(name: str, certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    key = _public_key(issuer)
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != 4096 or key.public_numbers().e != 65537:
        raise ChainError("certificates", f"{name}: its issuer's key is not RSA-4096 with exponent 65537")
    digest = certificate.signature_hash_algorithm
    if certificate.signature_algorithm_oid != SignatureAlgorithmOID.RSASSA_PSS or not isinstance(digest, hashes.SHA384):
        raise ChainError("certificates", f"{name}: not signed with RSA-PSS and SHA-384")
    if not _issued(issuer, certificate):
        raise ChainError("certificates", f"{name}: its issuer's name is not that of the certificate above")
    try:
        key.verify(
            certificate.signature,
            certificate.tbs_certificate_bytes,
            padding.PSS(padding.MGF1(hashes.SHA384()), 48),
            hashes.SHA384(),
        )
    except InvalidSignature:
        raise ChainError("certificates", f"{name}: its signature is not its issuer's") from None


def _verify_extensions(name: str, certificate: x509.Certificate, root: TrustRoot) -> None:
    critical = {extension.oid.dotted_string for extension in certificate.extensions if extension.critical}
    known = {ExtensionOID.BASIC_CONSTRAINTS.dotted_string, ExtensionOID.KEY_USAGE.dotted_string}
    if strange := sorted(critical - known - root.required_extensions):
        raise ChainError("certificates", f"{name}: unknown critical extension {', '.join(strange)}")
    if missing := sorted(root.required_extensions - critical):
        raise ChainError("certificates", f"{name}: without the critical extension {', '.join(missing)}")
    try:
        authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        signs = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        authority = signs = False
    if name != "VCEK" and not (authority and signs):
        raise ChainError("certificates", f"{name}: not a certificate authority")
    if name == "VCEK" and authority:
        raise ChainError("certificates", "VCEK: a certificate authority, expected a leaf")


def _value(found: dict[str, bytes], oid: str) -> bytes:
    if oid not in found:
        raise ValueError(f"no extension {oid}")
    return found[oid]


def _small_integer(found: dict[str, bytes], oid: str) -> int:
    """A DER INTEGER from 0 to 255; 128 and more have a leading zero byte."""
    value = _value(found, oid)
    if value[:2] == b"\x02\x01" and len(value) == 3 and value[2] < 0x80:
        return value[2]
    if value[:3] == b"\x02\x02\x00" and len(value) == 4 and value[3] >= 0x80:
        return value[3]
    raise ValueError(f"extension {oid}: found {value[:16].hex()}, expected an INTEGER from 0 to 255")


def _ia5_string(found: dict[str, bytes], oid: str) -> str:
    value = _value(found, oid)
    if value[:1] != b"\x16" or len(value) < 3 or value[1] != len(value) - 2 or value[1] > 0x7F:
        raise ValueError(f"extension {oid}: found {value[:16].hex()}, expected an IA5String")
    return value[2:].decode("ascii")


def _hwid(found: dict[str, bytes], product: Product) -> bytes:
    value = _value(found, HWID)
    length = 8 if product == "Turin" else 64
    # Raw by length first: a raw id may itself begin with the bytes of a DER header.
    if len(value) == length:
        return value
    if len(value) == length + 2 and value[:2] == bytes((0x04, length)):
        return value[2:]
    raise ValueError(f"extension {HWID}: found {len(value)} bytes, expected {length} for {product}")
