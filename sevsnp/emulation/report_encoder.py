# SPDX-License-Identifier: Apache-2.0
"""Encode reports as the secure processor does; the inverse of the parser in sevsnp.attestation.report."""

import struct
from dataclasses import dataclass

from sevsnp.attestation.report import (
    ECDSA_P384_SHA384,
    NO_MIGRATION_AGENT,
    REPORT_SIZE,
    SIGNED_SIZE,
    FirmwareVersion,
    SigningKey,
)
from sevsnp.vm_config.config import Product, Tcb
from sevsnp.vm_config.processor import Cpuid

_FIRMWARE = FirmwareVersion(1, 58, 1)


@dataclass(frozen=True)
class ReportFields:
    """A report's content before it is signed; lengths and meanings as in sevsnp.attestation.report.Report."""

    product: Product
    cpuid: Cpuid
    policy: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    report_id: bytes
    chip_id: bytes
    reported_tcb: Tcb
    committed_tcb: Tcb
    current_tcb: Tcb
    launch_tcb: Tcb
    platform_info: int
    version: int = 5
    guest_svn: int = 0
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    vmpl: int = 0
    author_key: bool = False
    mask_chip_key: bool = False
    signing_key: SigningKey = SigningKey.VCEK
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    report_id_ma: bytes = NO_MIGRATION_AGENT
    firmware: FirmwareVersion = _FIRMWARE
    mitigations: int = 0


def encode_tcb(tcb: Tcb, product: Product) -> bytes:
    """A TCB_VERSION of 8 bytes in the product's layout."""
    if product == "Turin":
        return bytes((tcb.fmc or 0, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode))
    return bytes((tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode))


def encode_report(fields: ReportFields) -> bytes:
    """The bytes of a report that are signed: 672 (0x2A0)."""
    body = bytearray(SIGNED_SIZE)

    def put(offset: int, data: bytes, length: int) -> None:
        if len(data) != length:
            raise ValueError(f"report field at {offset:#x}: {len(data)} bytes, expected {length}")
        body[offset : offset + length] = data

    def number(offset: int, layout: str, value: int) -> None:
        struct.pack_into("<" + layout, body, offset, value)

    flags = int(fields.author_key) | int(fields.mask_chip_key) << 1 | fields.signing_key << 2
    for offset, layout, value in (
        (0x000, "I", fields.version),
        (0x004, "I", fields.guest_svn),
        (0x008, "Q", fields.policy),
        (0x030, "I", fields.vmpl),
        (0x034, "I", ECDSA_P384_SHA384),
        (0x040, "Q", fields.platform_info),
        (0x048, "I", flags),
    ):
        number(offset, layout, value)
    for offset, data, length in (
        (0x010, fields.family_id, 16),
        (0x020, fields.image_id, 16),
        (0x050, fields.report_data, 64),
        (0x090, fields.measurement, 48),
        (0x0C0, fields.host_data, 32),
        (0x0E0, fields.id_key_digest, 48),
        (0x110, fields.author_key_digest, 48),
        (0x140, fields.report_id, 32),
        (0x160, fields.report_id_ma, 32),
        (0x1A0, fields.chip_id, 64),
    ):
        put(offset, data, length)
    for offset, tcb in (
        (0x038, fields.current_tcb),
        (0x180, fields.reported_tcb),
        (0x1E0, fields.committed_tcb),
        (0x1F0, fields.launch_tcb),
    ):
        put(offset, encode_tcb(tcb, fields.product), 8)
    if fields.version >= 3:
        put(0x188, bytes((fields.cpuid.family, fields.cpuid.model, fields.cpuid.stepping)), 3)
    version = bytes((fields.firmware.build, fields.firmware.minor, fields.firmware.major, 0))
    put(0x1E8, version * 2, 8)
    if fields.version >= 5:
        number(0x1F8, "Q", fields.mitigations)
        number(0x200, "Q", fields.mitigations)
    return bytes(body)


def append_signature(body: bytes, r: int, s: int) -> bytes:
    """The whole report (1184 bytes): ``body``, then r and s (72 bytes little-endian each), then zeros."""
    return (body + r.to_bytes(72, "little") + s.to_bytes(72, "little")).ljust(REPORT_SIZE, b"\0")
