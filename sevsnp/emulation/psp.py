# SPDX-License-Identifier: Apache-2.0
"""The software secure processor: it uses AMD's formats but its own keys, and AMD vouches for none of it.

Every instance makes a new ARK → ASK → VCEK hierarchy; the private keys never leave its memory. The certificates are
marked as emulated by their names and by a critical extension that no other verifier knows.
"""

import os
import struct
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from sevsnp.attestation.report import EMULATED_CHIP_ID
from sevsnp.emulation.mark import EMULATION_OID
from sevsnp.emulation.report_encoder import ReportFields, append_signature, encode_report
from sevsnp.errors import UserError
from sevsnp.measurement.id_block import Identity, check_identity, read_identity
from sevsnp.vm_config.config import Launch, Product, Tcb
from sevsnp.vm_config.processor import Cpuid

VALIDITY = timedelta(hours=24)
_SKEW = timedelta(minutes=5)  # owner and host may be two machines whose clocks differ

SEV_GUEST = Path("/dev/sev-guest")
TSM_REPORT = Path("/sys/kernel/config/tsm/report")

_AMD = "1.3.6.1.4.1.3704.1"
_CPUID = {"Milan": Cpuid(0x19, 0x01, 1), "Genoa": Cpuid(0x19, 0x11, 1), "Turin": Cpuid(0x1A, 0x02, 1)}
# High enough for every minimum. A component above 127 also needs the longer form of the certificate's INTEGER.
_LEVEL = 200
# ECC, RAPL disabled, ciphertext hiding, alias check complete; neither SMT nor TSME.
_PLATFORM_INFO = 0x3C
_GUIDS = tuple(
    uuid.UUID(text).bytes  # RFC 4122 order; VCEK, ASK, ARK
    for text in (
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    )
)


class EmulatedPsp:
    """A running software secure processor; make one with :meth:`create`."""

    def __init__(
        self, product: Product, key: ec.EllipticCurvePrivateKey, chain: tuple[x509.Certificate, ...], tcb: Tcb
    ) -> None:
        self.product, self.tcb = product, tcb
        self.vcek, self.ask, self.ark = chain
        self.chip_id = hwid(product).ljust(64, b"\0")
        self._key = key
        self._report_id = os.urandom(32)

    @classmethod
    def create(cls, directory: Path, product: Product = "Genoa", now: datetime | None = None) -> "EmulatedPsp":
        """Make new keys and certificates, valid for 24 hours from ``now`` (default: the clock).

        Writes ``ark.pem`` (the root to give to the emulated verifier) and ``chain.pem`` (VCEK, ASK, ARK), mode 0644.
        Raises :class:`UserError` on a machine with a real secure processor.
        """
        (psp,) = cls.create_fleet(directory, 1, product, now)
        _write(
            directory / "chain.pem", b"".join(one.public_bytes(Encoding.PEM) for one in (psp.vcek, psp.ask, psp.ark))
        )
        return psp

    @classmethod
    def create_fleet(
        cls, directory: Path, number: int, product: Product = "Genoa", now: datetime | None = None
    ) -> list["EmulatedPsp"]:
        """As :meth:`create`, but several processors under one root, each with a VCEK of its own; no ``chain.pem``."""
        refuse_real_hardware()
        start = (now or datetime.now(UTC)) - _SKEW
        tcb = Tcb(_LEVEL, _LEVEL, _LEVEL, _LEVEL, _LEVEL if product == "Turin" else None)
        name = f"EMULATED - NOT AMD - {uuid.uuid4()}"
        ark_key, ask_key = _rsa_key(), _rsa_key()
        ark_name, ask_name, vcek_name = (_name(f"{name} {role}") for role in ("ARK", "ASK", "VCEK"))
        ark = _certify(_builder(ark_name, ark_name, ark_key.public_key(), start, authority=True), ark_key)
        ask = _certify(_builder(ask_name, ark_name, ask_key.public_key(), start, authority=True), ark_key)
        fleet = []
        for _ in range(number):
            key = ec.generate_private_key(ec.SECP384R1())
            builder = _builder(vcek_name, ask_name, key.public_key(), start, authority=False)
            for oid, value in _vcek_extensions(product, tcb):
                builder = builder.add_extension(
                    x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False
                )
            fleet.append(cls(product, key, (_certify(builder, ask_key), ask, ark), tcb))
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "ark.pem", ark.public_bytes(Encoding.PEM))
        return fleet

    @staticmethod
    def finish_launch(launch: Launch, measurement: bytes) -> Identity | None:
        """SNP_LAUNCH_FINISH: the launch's ID block, if any. Raises :class:`UserError` for another guest's ID block."""
        if not launch.id_block or not launch.id_auth:
            return None
        identity = read_identity(launch.id_block.path, launch.id_auth.path)
        check_identity(identity, measurement, launch.guest_policy)
        return identity

    def fields(
        self, report_data: bytes, *, launch: Launch, measurement: bytes, identity: Identity | None = None
    ) -> ReportFields:
        """The report fields for a guest that was launched with ``launch`` and has the launch digest ``measurement``.

        ``measurement`` has 48 bytes. ``identity`` is the result of :meth:`finish_launch`.
        """
        if launch.product != self.product:
            raise UserError(f"software secure processor of {self.product}: the launch is for {launch.product}")
        return ReportFields(
            **_identity_fields(identity),
            product=self.product,
            cpuid=_CPUID[self.product],
            policy=launch.guest_policy,
            report_data=report_data,
            measurement=measurement,
            host_data=launch.host_data,
            report_id=self._report_id,
            chip_id=self.chip_id,
            reported_tcb=self.tcb,
            committed_tcb=self.tcb,
            current_tcb=self.tcb,
            launch_tcb=self.tcb,
            platform_info=_PLATFORM_INFO,
        )

    def report(
        self, report_data: bytes, *, launch: Launch, measurement: bytes, identity: Identity | None = None
    ) -> bytes:
        """A signed report (1184 bytes, version 5) for VMPL 0 with the guest's REPORT_DATA (64 bytes)."""
        fields = self.fields(report_data, launch=launch, measurement=measurement, identity=identity)
        return self.sign(encode_report(fields))

    def sign(self, body: bytes) -> bytes:
        """The signed report (1184 bytes) whose first 672 bytes are ``body``."""
        return append_signature(body, *decode_dss_signature(self._key.sign(body, ec.ECDSA(hashes.SHA384()))))

    def certificate_table(self) -> bytes:
        """The chain as the host's certificate table in an extended report, padded to whole 4096-byte pages."""
        blobs = [one.public_bytes(Encoding.DER) for one in (self.vcek, self.ask, self.ark)]
        offset = 24 * (len(blobs) + 1)
        header = b""
        for guid, blob in zip(_GUIDS, blobs, strict=True):
            header += struct.pack("<16sII", guid, offset, len(blob))
            offset += len(blob)
        table = header + bytes(24) + b"".join(blobs)
        return table.ljust(-(-len(table) // 4096) * 4096, b"\0")


def _identity_fields(identity: Identity | None) -> dict[str, Any]:
    """The report fields that come from an ID block; without an ID block they are zero."""
    if identity is None:
        return {}
    return {
        "guest_svn": identity.block.guest_svn,
        "family_id": identity.block.family_id,
        "image_id": identity.block.image_id,
        "author_key": identity.auth.has_author,
        "id_key_digest": identity.id_key_digest,
        "author_key_digest": identity.author_key_digest,
    }


def hwid(product: Product) -> bytes:
    """The hardware id in the VCEK: 64 bytes, on Turin 8, as in AMD's certificates."""
    return EMULATED_CHIP_ID[:8] if product == "Turin" else EMULATED_CHIP_ID


def refuse_real_hardware() -> None:
    """Raise :class:`UserError` if this machine can have real evidence, or if that cannot be determined."""
    if SEV_GUEST.exists() or _real_tsm_provider():
        raise UserError(
            "this machine has a real SEV-SNP secure processor: the emulated one does not start here",
            "use platform snp, or run the emulation on another machine",
        )


def _real_tsm_provider() -> bool:
    if not TSM_REPORT.is_dir():
        return False
    # Only an entry of our own shows which provider configfs-tsm has.
    entry = TSM_REPORT / f"probe-{uuid.uuid4()}"
    try:
        entry.mkdir()
    except PermissionError:
        return True
    except OSError:
        return False  # ENXIO: the directory exists, but has no provider
    try:
        return (entry / "provider").read_text().strip() == "sev_guest"
    except OSError:
        return True
    finally:
        entry.rmdir()


def _rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=4096)


def _name(common_name: str) -> x509.Name:
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Emulated secure processor, not AMD")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name), organization])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    start: datetime,
    *,
    authority: bool,
) -> x509.CertificateBuilder:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _SKEW + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(
            # DER NULL: the extension needs no value, its presence is the mark.
            x509.UnrecognizedExtension(x509.ObjectIdentifier(EMULATION_OID), b"\x05\x00"),
            critical=True,
        )
    )
    if not authority:
        return builder
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return builder.add_extension(usage, critical=True)


def _certify(builder: x509.CertificateBuilder, key: rsa.RSAPrivateKey) -> x509.Certificate:
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    return builder.sign(key, hashes.SHA384(), rsa_padding=pss)


def _vcek_extensions(product: Product, tcb: Tcb) -> list[tuple[str, bytes]]:
    turin = product == "Turin"
    spls = {1: tcb.bootloader, 2: tcb.tee, 3: tcb.snp, 5: 0, 6: 0, 7: 0, 8: tcb.microcode}
    spls |= {9: tcb.fmc or 0} if turin else {4: 0}
    name = product.encode()
    return [
        (f"{_AMD}.1", _integer(1 if turin else 0)),
        (f"{_AMD}.2", bytes((0x16, len(name))) + name),
        *((f"{_AMD}.3.{number}", _integer(level)) for number, level in sorted(spls.items())),
        (f"{_AMD}.4", hwid(product)),
    ]


def _integer(value: int) -> bytes:
    body = value.to_bytes(1 if value < 0x80 else 2, "big")
    return bytes((0x02, len(body))) + body


def _write(path: Path, data: bytes) -> None:
    new = path.with_name(f".{path.name}.{uuid.uuid4()}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
    new.chmod(0o644)  # independent of the umask
    new.replace(path)
