# SPDX-License-Identifier: Apache-2.0
"""Inspect a report: decode every bit, and check whether a pinned root vouches for it. It is not accepted or refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sevsnp.attestation.authentication import Endorser, Evidence, Nobody, authenticate, read_report
from sevsnp.attestation.chain import TrustRoot
from sevsnp.attestation.checklist import Checklist, Stop
from sevsnp.attestation.hcl import check_claims, describe_claims
from sevsnp.attestation.outcome import Check, Reason
from sevsnp.attestation.product import readings
from sevsnp.attestation.report import (
    EMULATED_CHIP_ID,
    GUEST_POLICY_BITS,
    NO_MIGRATION_AGENT,
    PLATFORM_INFO_BITS,
    Report,
    SigningKey,
)
from sevsnp.attestation.rules import Anything
from sevsnp.errors import UserError
from sevsnp.vm_config.config import Product, Tcb

# The checks of an inspection. It has no policy, so the other checks of an appraisal are not its business.
_ABOUT = (
    Reason.REPORT_FORMAT, Reason.CERTIFICATES, Reason.UNKNOWN_ROOT, Reason.VALIDITY, Reason.SIGNATURE, Reason.PRODUCT,
    Reason.SIGNING_KEY, Reason.CHIP_ID, Reason.TCB, Reason.REVOCATION, Reason.RUNTIME_CLAIMS,
)  # fmt: skip


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    ``authentic`` is None if certificates could not be obtained; ``reason`` says why ``authentic`` is not True.
    ``product`` is empty if neither the report nor a certificate names it; ``possible_products`` then has those whose
    layout the report's bytes fit.
    """

    authentic: bool | None
    reason: str
    product: str
    signer: str
    trust_domain: str
    fields: Mapping[str, Any]
    checks: Sequence[Check]
    notes: tuple[str, ...] = ()
    possible_products: tuple[str, ...] = ()

    @property
    def emulated(self) -> bool:
        """Whether the report itself claims to come from a software secure processor. This is not a proof."""
        return bytes.fromhex(str(self.fields.get("chip_id", ""))).startswith(EMULATED_CHIP_ID[:8])

    def to_json(self) -> dict[str, Any]:
        return {
            "authentic": bool(self.authentic),
            "undecided": self.authentic is None,
            "reason": self.reason,
            "product": self.product,
            "possible_products": list(self.possible_products),
            "signer": self.signer,
            "trust_domain": self.trust_domain,
            **({"emulated": True, "confidential": False} if self.emulated else {"emulated": False}),
            "notes": list(self.notes),
            "fields": dict(self.fields),
            "checks": [check.to_json() for check in self.checks if check.reason_name in _ABOUT],
        }


def inspect(
    evidence: Evidence,
    now: datetime,
    root: TrustRoot,
    endorser: Endorser | None = None,
    product: Product | None = None,
) -> Inspection:
    """Read and authenticate evidence at the time ``now`` (aware). Never raises for evidence.

    ``product`` is the caller's word for a report that does not name its product. A certificate that does counts more.
    """
    log = Checklist(root.domain)
    report: Report | None = None
    fields: dict[str, Any] = {}
    try:
        source = endorser or Nobody()
        report, sent = read_report(log, evidence, product, now, source)
        fields = describe(report)
        if report.signing_key == SigningKey.NONE:
            log.stop(Reason.SIGNING_KEY, "the report says that it is not signed")
        nobody_asks = Anything("checked where a revocation list is available")
        found = authenticate(log, report, sent, evidence, root, now, source, nobody_asks)
        fields["certificate"] = {
            "product_name": found.leaf.product_name,
            "tcb": _tcb(found.leaf.tcb),
            "hardware_id": found.leaf.hwid.hex() if found.leaf.hwid else "",
            "csp": found.leaf.csp or "",
            "valid_from": f"{found.chain.leaf.not_valid_before_utc:%FT%TZ}",
            "valid_until": f"{found.chain.leaf.not_valid_after_utc:%FT%TZ}",
        }
        check_claims(log, report, evidence.claims)
        if evidence.claims:
            fields["runtime_claims"] = describe_claims(evidence.claims)
        log.stop_on_failure()
        authentic: bool | None = True
        reason = ""
    except Stop:
        decision, _, reason = log.decide()
        authentic = None if decision == "undecided" else False
    possible: tuple[str, ...] = (report.product,) if report else ()
    if report is None:
        fields, possible = _undetermined(evidence.report)
    return Inspection(
        authentic, reason, report.processor if report else "", str(fields.get("signing_key", "")), root.domain, fields,
        log.checks(), evidence.notes, possible,
    )  # fmt: skip


def _undetermined(raw: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of a report whose product is not known, and the products that it may be of; empty for no report."""
    try:
        found = readings(raw)
    except UserError:
        return {}, ()
    fields = describe(next(iter(found.values())))
    for name in ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb"):
        # Milan and Genoa have the same layout.
        said = {product: _tcb(getattr(one, name)) for product, one in found.items()}
        if len({str(one) for one in said.values()}) > 1:
            fields[name] = said
    return fields, tuple(found)


def describe(report: Report) -> dict[str, Any]:
    """Every field of a report by its name in AMD 56860: bytes in hex, bits by name."""
    cpuid = report.cpuid
    return {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": {
            "raw": f"{report.policy:#x}",
            "abi_major": report.guest_abi[0],
            "abi_minor": report.guest_abi[1],
            **_bits(report.policy, GUEST_POLICY_BITS),
        },
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "vmpl": report.vmpl,
        "signature_algo": "ECDSA P-384 with SHA-384",
        "current_tcb": _tcb(report.current_tcb),
        "platform_info": {
            "raw": f"{report.platform_info:#x}",
            **_bits(report.platform_info, PLATFORM_INFO_BITS),
            "unnamed": f"{report.platform_info & ~sum(1 << bit for bit in PLATFORM_INFO_BITS.values()):#x}",
        },
        "author_key_en": report.author_key,
        "mask_chip_key": report.mask_chip_key,
        "signing_key": report.signing_key.name,
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "migration_agent": report.report_id_ma != NO_MIGRATION_AGENT,
        "reported_tcb": _tcb(report.reported_tcb),
        "cpuid": {"family": cpuid.family, "model": cpuid.model, "stepping": cpuid.stepping} if cpuid else None,
        "chip_id": report.chip_id.hex(),
        "committed_tcb": _tcb(report.committed_tcb),
        "current_version": _version(report, "current_version"),
        "committed_version": _version(report, "committed_version"),
        "launch_tcb": _tcb(report.launch_tcb),
        "launch_mit_vector": None if report.launch_mitigations is None else f"{report.launch_mitigations:#x}",
        "current_mit_vector": None if report.current_mitigations is None else f"{report.current_mitigations:#x}",
        "signature": {"r": f"{report.signature_r:096x}", "s": f"{report.signature_s:096x}"},
    }


def _bits(value: int, names: Mapping[str, int]) -> dict[str, bool]:
    return {name: bool(value >> position & 1) for name, position in names.items()}


def _tcb(tcb: Tcb) -> dict[str, int]:
    return {name: value for name, value in vars(tcb).items() if value is not None}


def _version(report: Report, name: str) -> str:
    found = getattr(report, name)
    return f"{found.major}.{found.minor}.{found.build}"
