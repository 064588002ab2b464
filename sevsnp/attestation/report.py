# SPDX-License-Identifier: Apache-2.0
"""The SNP attestation report: 1184 signed bytes, read strictly and kept raw.

Source: AMD 56860 table 23 (ATTESTATION_REPORT), tables 3–5 (TCB_VERSION), and its guest policy. Integers are
little-endian. The parser requires zero in every byte that must be zero, so it never skips a field that it does not
know.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb
from sevsnp.vm_config.processor import Cpuid, product_of

REPORT_SIZE = 1184
SIGNED_SIZE = 0x2A0
VERSIONS = (2, 3, 4, 5)
ECDSA_P384_SHA384 = 1
NO_MIGRATION_AGENT = b"\xff" * 32

# The CHIP_ID in every report of the software secure processor. No real chip has this CHIP_ID.
EMULATED_CHIP_ID = b"EMULATED-PSP-NOT-AMD".ljust(64, b"\0")

POLICY_MIGRATE_MA = 1 << 18
POLICY_DEBUG = 1 << 19
_POLICY_RESERVED_ONE = 1 << 17
_POLICY_KNOWN = (1 << 26) - 1

# Bits by their names in AMD 56860 (guest policy, PLATFORM_INFO), in lower case.
GUEST_POLICY_BITS = {
    "smt": 16, "migrate_ma": 18, "debug": 19, "single_socket": 20, "cxl_allow": 21, "mem_aes_256_xts": 22,
    "rapl_dis": 23, "ciphertext_hiding_dram": 24, "page_swap_disable": 25,
}  # fmt: skip
PLATFORM_INFO_BITS = {
    "smt_en": 0, "tsme_en": 1, "ecc_en": 2, "rapl_dis": 3, "ciphertext_hiding_dram_en": 4,
    "alias_check_complete": 5, "tio_en": 7,
}  # fmt: skip


class SigningKey(IntEnum):
    """SIGNING_KEY: which key signed the report."""

    VCEK = 0
    VLEK = 1
    NONE = 7


_SIGNING_KEYS = {int(one): one for one in SigningKey}


class FirmwareVersion(NamedTuple):
    """The firmware version of the secure processor, such as 1.55 build 40."""

    major: int
    minor: int
    build: int


@dataclass(frozen=True)
class Report:
    """A report. ``raw`` is all 1184 bytes; every other field is parsed from them.

    ``policy`` and ``platform_info`` are 64 bits, ``report_data`` and ``chip_id`` 64 bytes, ``measurement`` and the key
    digests 48, ``host_data``, ``report_id`` and ``report_id_ma`` 32, ``family_id`` and ``image_id`` 16.
    ``product`` follows from the CPUID fields. Version 2 has no CPUID fields, so there it is the product that the
    caller claims. The mitigation vectors exist in version 5; before that they are None. ``signature_r`` and
    ``signature_s`` are numbers.
    """

    raw: bytes
    version: int
    product: Product
    cpuid: Cpuid | None
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    current_tcb: Tcb
    platform_info: int
    author_key: bool
    mask_chip_key: bool
    signing_key: SigningKey
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    reported_tcb: Tcb
    chip_id: bytes
    committed_tcb: Tcb
    current_version: FirmwareVersion
    committed_version: FirmwareVersion
    launch_tcb: Tcb
    launch_mitigations: int | None
    current_mitigations: int | None
    signature_r: int
    signature_s: int

    @property
    def guest_abi(self) -> tuple[int, int]:
        """The minimum ABI version of the firmware (major, minor) that the guest policy requires."""
        return self.policy >> 8 & 0xFF, self.policy & 0xFF

    @property
    def processor(self) -> str:
        """The market name of the product: Bergamo/Siena instead of Genoa, whose keys they share."""
        siena = self.cpuid is not None and (self.cpuid.family, self.cpuid.model & 0xF0) == (0x19, 0xA0)
        return "Bergamo/Siena" if siena else self.product

    @property
    def signed(self) -> bytes:
        """The bytes that the signature covers, 0x000–0x29F."""
        return self.raw[:SIGNED_SIZE]


def parse_report(raw: bytes, claimed_product: Product) -> Report:
    """Read a report of version 2 to 5. ``claimed_product`` is used only for version 2, which names no product.

    Raises :class:`UserError` for another length or version, a reserved value, or a byte that must be zero and is not.
    """
    if len(raw) != REPORT_SIZE:
        raise UserError(f"report: found {len(raw)} bytes, expected {REPORT_SIZE}")
    raw = bytes(raw)
    (
        version, guest_svn, policy, family_id, image_id, vmpl, algorithm, current_tcb, platform_info, flags,
        report_data, measurement, host_data, id_key_digest, author_key_digest, report_id, report_id_ma, reported_tcb,
        family, model, stepping, chip_id, committed_tcb, current_build, current_minor, current_major, committed_build,
        committed_minor, committed_major, launch_tcb, launch_mitigations, current_mitigations,
    ) = _LAYOUT.unpack_from(raw)  # fmt: skip
    if version > max(VERSIONS):
        raise UserError(
            f"report: found version {version}, newer than {max(VERSIONS)}, the newest known",
            "a newer version of this verifier may know it",
        )
    if version not in VERSIONS:
        raise UserError(f"report: found version {version}, expected one of {VERSIONS}")
    for start, end in _RESERVED + (_RESERVED_BY_VERSION[version]):
        _require_zero(raw, start, end)
    if algorithm != ECDSA_P384_SHA384:
        raise UserError(f"report: found signature algorithm {algorithm}, expected 1 (ECDSA P-384 with SHA-384)")
    cpuid = None if version < 3 else Cpuid(family, model, stepping)
    product = product_of(cpuid) if cpuid else claimed_product
    return Report(
        raw=raw,
        version=version,
        product=product,
        cpuid=cpuid,
        guest_svn=guest_svn,
        policy=_policy(policy),
        family_id=family_id,
        image_id=image_id,
        vmpl=vmpl,
        signature_algorithm=algorithm,
        current_tcb=decode_tcb(current_tcb, product),
        platform_info=platform_info,
        author_key=bool(flags & 1),
        mask_chip_key=bool(flags & 2),
        signing_key=_signing_key(flags),
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key_digest=id_key_digest,
        author_key_digest=author_key_digest,
        report_id=report_id,
        report_id_ma=report_id_ma,
        reported_tcb=decode_tcb(reported_tcb, product),
        chip_id=chip_id,
        committed_tcb=decode_tcb(committed_tcb, product),
        current_version=FirmwareVersion(current_major, current_minor, current_build),
        committed_version=FirmwareVersion(committed_major, committed_minor, committed_build),
        launch_tcb=decode_tcb(launch_tcb, product),
        launch_mitigations=launch_mitigations if version >= 5 else None,
        current_mitigations=current_mitigations if version >= 5 else None,
        signature_r=int.from_bytes(raw[0x2A0:0x2D0], "little"),
        signature_s=int.from_bytes(raw[0x2E8:0x318], "little"),
    )


@lru_cache(maxsize=256)
def decode_tcb(data: bytes, product: Product) -> Tcb:
    """Read a TCB_VERSION (8 bytes) in its product's layout. Raises :class:`UserError` for a nonzero reserved byte."""
    if product == "Turin":
        fmc, bootloader, tee, snp, *reserved, microcode = data
    else:
        (bootloader, tee, *reserved, snp, microcode), fmc = data, None
    if any(reserved):
        raise UserError(f"report: TCB version {data.hex()}: reserved bytes are not zero in {product}'s layout")
    return Tcb(bootloader=bootloader, tee=tee, snp=snp, microcode=microcode, fmc=fmc)


# Table 23 from VERSION (0x000) to CURRENT_MIT_VECTOR (0x200). A version is its build, minor and major byte.
_LAYOUT = struct.Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8s3B21x64s8s3Bx3Bx8sQQ")
# r and s have 72 bytes each. The upper 24 bytes are zero, because P-384 numbers have 48 bytes.
_RESERVED = ((0x04C, 0x050), (0x18B, 0x1A0), (0x1EB, 0x1EC), (0x1EF, 0x1F0),
             (0x2D0, 0x2E8), (0x318, REPORT_SIZE))  # fmt: skip
_RESERVED_BY_VERSION = {
    2: ((0x188, 0x18B), (0x1F8, SIGNED_SIZE)),
    3: ((0x1F8, SIGNED_SIZE),),
    4: ((0x1F8, SIGNED_SIZE),),
    5: ((0x208, SIGNED_SIZE),),
}


def _require_zero(raw: bytes, start: int, end: int) -> None:
    if raw.count(0, start, end) != end - start:
        raise UserError(f"report: bytes {start:#x} to {end - 1:#x} must be zero")


def _policy(policy: int) -> int:
    if policy & ~_POLICY_KNOWN or not policy & _POLICY_RESERVED_ONE:
        raise UserError(f"report: guest policy {policy:#x}: bits 63:26 must be zero and bit 17 one")
    return policy


def _signing_key(flags: int) -> SigningKey:
    if flags >> 5:
        raise UserError(f"report: flags {flags:#x}: bits 31:5 must be zero")
    value = flags >> 2
    if value not in _SIGNING_KEYS:
        raise UserError(f"report: signing key {value}: a reserved value")
    return _SIGNING_KEYS[value]
