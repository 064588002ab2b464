# SPDX-License-Identifier: Apache-2.0
"""A throw-away certificate hierarchy under AMD's names, pinned by its own trust root, with all keys to forge with.

RSA-4096 keys take seconds to make, so they are made once in a session; certificates are made for each test.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sevsnp.attestation import extensions as oids
from sevsnp.attestation.authentication import Evidence
from sevsnp.attestation.chain import TrustRoot
from sevsnp.attestation.report import SigningKey
from sevsnp.attestation.revocation import CrlError, not_in_force, read_crl
from sevsnp.emulation.psp import _integer
from sevsnp.emulation.report_encoder import ReportFields, append_signature, encode_report
from sevsnp.vm_config.config import Product, Tcb
from sevsnp.vm_config.processor import Cpuid
from tests.support.evidence import MEASUREMENT, REPORT_DATA

NOW = datetime(2026, 6, 1, tzinfo=UTC)
SERIALS = {"Milan": 0x10000, "Genoa": 0x20000, "Turin": 0x30000}
CPUIDS = {"Milan": Cpuid(0x19, 0x01, 1), "Genoa": Cpuid(0x19, 0x11, 1), "Turin": Cpuid(0x1A, 0x02, 1)}
LEVEL = Tcb(10, 0, 23, 200)
CHIP = bytes(range(1, 65))
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


@functools.cache
def rsa_key(name: str, size: int = 4096) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, size)


@functools.cache
def leaf_key(name: str = "leaf") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1() if name == "P-256" else ec.SECP384R1())


def amd_name(common: str) -> x509.Name:
    texts = {
        NameOID.ORGANIZATIONAL_UNIT_NAME: "Engineering", NameOID.COUNTRY_NAME: "US",
        NameOID.LOCALITY_NAME: "Santa Clara", NameOID.STATE_OR_PROVINCE_NAME: "CA",
        NameOID.ORGANIZATION_NAME: "Advanced Micro Devices", NameOID.COMMON_NAME: common,
    }  # fmt: skip
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in texts.items()])


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """Certificates and keys of one product; ``vlek`` for the provider's variant. ``keys`` names the set of keys."""

    product: Product = "Genoa"
    vlek: bool = False
    keys: str = ""
    tcb: Tcb = LEVEL
    chip: bytes = CHIP
    leaf: str = "leaf"
    leaf_rsa: bool = False
    leaf_days: tuple[int, int] = (-30, 365)
    extensions: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def level(self) -> Tcb:
        return dataclasses.replace(self.tcb, fmc=3) if self.product == "Turin" else self.tcb

    @property
    def chip_id(self) -> bytes:
        if self.vlek:
            return bytes(64)
        return self.chip[:8].ljust(64, b"\0") if self.product == "Turin" else self.chip

    def authority(self, name: str, issuer: str, key: str, signer: str, serial: int) -> x509.Certificate:
        return _authority(f"{name}-{self.product}", f"{issuer}-{self.product}", key + self.keys,
                          signer + self.keys, serial)  # fmt: skip

    @property
    def ark(self) -> x509.Certificate:
        return self.authority("ARK", "ARK", "ark", "ark", SERIALS[self.product])

    @property
    def ask(self) -> x509.Certificate:
        """The ASK, or the ASVK of a provider's hierarchy."""
        if self.vlek:
            return self.authority("SEV-VLEK", "ARK", "asvk", "ark", SERIALS[self.product] + 0x101)
        return self.authority("SEV", "ARK", "ask", "ark", SERIALS[self.product] + 1)

    @property
    def certificate(self) -> x509.Certificate:
        """The VCEK or VLEK."""
        return _leaf(self)

    @property
    def root(self) -> TrustRoot:
        return TrustRoot("amd", "snp", ((self.ark.fingerprint(hashes.SHA256()), self.product),), vendor=True)

    def fields(self, **changes: Any) -> ReportFields:
        """An honest report's fields, with changes."""
        one = ReportFields(
            product=self.product, cpuid=CPUIDS[self.product], policy=0x30000, report_data=REPORT_DATA,
            measurement=MEASUREMENT, host_data=bytes(32), report_id=b"r" * 32, chip_id=self.chip_id,
            reported_tcb=self.level, committed_tcb=self.level, current_tcb=self.level, launch_tcb=self.level,
            platform_info=0x3C, signing_key=SigningKey.VLEK if self.vlek else SigningKey.VCEK,
        )  # fmt: skip
        return dataclasses.replace(one, **changes)

    def sign(self, body: bytes) -> bytes:
        signature = leaf_key(self.leaf).sign(body, ec.ECDSA(hashes.SHA384()))
        return append_signature(body, *decode_dss_signature(signature))

    def report(self, **changes: Any) -> bytes:
        return self.sign(encode_report(self.fields(**changes)))

    def evidence(self, certificates: Sequence[x509.Certificate] | None = None, **changes: Any) -> Evidence:
        """A report and its chain, or the given certificates."""
        chain = (self.certificate, self.ask, self.ark) if certificates is None else certificates
        return Evidence(self.report(**changes), certificates=tuple(one.public_bytes(Encoding.PEM) for one in chain))

    def crl(
        self, revoked: Sequence[int] = (), *, days: tuple[int, int] = (-1, 30), key: str = "ark", issuer: str = "ARK"
    ) -> bytes:
        """A revocation list in DER."""
        made = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(amd_name(f"{issuer}-{self.product}"))
            .last_update(NOW + timedelta(days=days[0]))
            .next_update(NOW + timedelta(days=days[1]))
        )
        for serial in revoked:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - timedelta(days=1))
            made = made.add_revoked_certificate(one.build())
        return made.sign(rsa_key(key + self.keys), hashes.SHA384(), rsa_padding=PSS).public_bytes(Encoding.DER)


@functools.cache
def _authority(subject: str, issuer: str, key: str, signer: str, serial: int) -> x509.Certificate:
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateBuilder()
        .subject_name(amd_name(subject))
        .issuer_name(amd_name(issuer))
        .public_key(rsa_key(key).public_key())
        .serial_number(serial)
        .not_valid_before(NOW - timedelta(days=1000))
        .not_valid_after(NOW + timedelta(days=7000))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(rsa_key(signer), hashes.SHA384(), rsa_padding=PSS)
    )


@functools.cache
def _leaf(one: Hierarchy) -> x509.Certificate:
    signer = "VLEK" if one.vlek else "VCEK"
    issuer = f"SEV-VLEK-{one.product}" if one.vlek else f"SEV-{one.product}"
    key = rsa_key("leaf", 2048) if one.leaf_rsa else leaf_key(one.leaf)
    made = (
        x509.CertificateBuilder()
        .subject_name(amd_name(f"SEV-{signer}"))
        .issuer_name(amd_name(issuer))
        .public_key(key.public_key())
        .serial_number(7)  # AMD's are 0, which this library does not write
        .not_valid_before(NOW + timedelta(days=one.leaf_days[0]))
        .not_valid_after(NOW + timedelta(days=one.leaf_days[1]))
    )
    for oid, value in {**_extensions(one), **dict(one.extensions)}.items():
        if value is not None:
            extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
            made = made.add_extension(extension, critical=False)
    return made.sign(rsa_key(("asvk" if one.vlek else "ask") + one.keys), hashes.SHA384(), rsa_padding=PSS)


def _extensions(one: Hierarchy) -> dict[str, bytes]:
    text: Callable[[str], bytes] = lambda name: bytes((0x16, len(name))) + name.encode()  # noqa: E731
    turin, tcb = one.product == "Turin", one.level
    found = {
        oids.STRUCT_VERSION: _integer(1 if turin else 0), oids.PRODUCT_NAME: text(one.product),
        oids.BOOTLOADER: _integer(tcb.bootloader), oids.TEE: _integer(tcb.tee), oids.SNP: _integer(tcb.snp),
        oids.MICROCODE: _integer(tcb.microcode),
    }  # fmt: skip
    if turin:
        found[oids.FMC] = _integer(tcb.fmc or 0)
    if one.vlek:
        return {**found, oids.CSP_ID: text("a cloud")}
    return {**found, oids.HWID: one.chip[:8] if turin else one.chip}


def load_crl(data: bytes, ark: x509.Certificate, now: datetime) -> x509.CertificateRevocationList:
    """A list of the verifier's read_crl that is in force at ``now`` (aware). Raises CrlError."""
    crl = read_crl(data, ark)
    if problem := not_in_force(crl, now):
        raise CrlError(problem)
    return crl
