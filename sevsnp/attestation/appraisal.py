"""The appraisal of evidence: one order of checks for every trust root, each check named, none optional.

Evidence that cannot be read is refused like evidence that is wrong; a :class:`UserError` is left for what the verifier
itself was given wrongly. A report's field is either compared or listed with the reason why it is not.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NoReturn, TypeVar

from cryptography import x509

from sevsnp.attestation import certificates as certs
from sevsnp.attestation import report as snp
from sevsnp.attestation.certificates import Chain, ChainError, TrustDomain, TrustRoot, VcekExtensions
from sevsnp.attestation.report import Report, SigningKey
from sevsnp.errors import UserError
from sevsnp.vm.config import Launch, Reference, Tcb, VmConfig

T = TypeVar("T")
Outcome = Literal["passed", "failed", "not-compared", "not-reached"]


class Reason(StrEnum):
    """Why evidence is refused; also the names of the checks."""

    REPORT_FORMAT = "report-format"
    CERTIFICATES = "certificates"
    UNKNOWN_ROOT = "unknown-root"
    VALIDITY = "validity"
    SIGNATURE = "signature"
    PRODUCT = "product"
    PLATFORM = "platform"
    SIGNING_KEY = "signing-key"
    MASK_CHIP_KEY = "mask-chip-key"
    CHIP_ID = "chip-id"
    TCB = "tcb"
    TCB_ORDER = "tcb-order"
    MINIMUM_TCB = "minimum-tcb"
    DEBUG_POLICY = "debug-policy"
    MIGRATION_POLICY = "migration-policy"
    GUEST_POLICY = "guest-policy"
    PLATFORM_INFO = "platform-info"
    VMPL = "vmpl"
    GUEST_SVN = "guest-svn"
    FAMILY_ID = "family-id"
    IMAGE_ID = "image-id"
    HOST_DATA = "host-data"
    ID_KEY = "id-key-digest"
    AUTHOR_KEY = "author-key-digest"
    MIGRATION_AGENT = "report-id-ma"
    MEASUREMENT = "measurement"
    REPORT_DATA = "report-data"


# Fields that no check looks at. A field is here for a reason, or it has a check above.
NOT_COMPARED = {
    "report-id": "random for each start of a guest; freshness comes from REPORT_DATA",
    "cpuid-stepping": "the VCEK already names the chip",
    "current-version, committed-version": "the TCB versions compared above are what AMD counts up for security fixes",
    "launch-mitigations, current-mitigations": "only in version 5; the VM config states no minimum",
}


@dataclass(frozen=True)
class Evidence:
    """What a guest hands over: the report, the host's certificate table, and further PEM or DER certificates.

    All of it is untrusted; certificates are transport only.
    """

    report: bytes
    certificate_table: bytes = b""
    certificates: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Expected:
    """What the evidence must say: the VM config's launch and reference values, and REPORT_DATA (64 bytes)."""

    launch: Launch
    reference: Reference
    report_data: bytes

    def __post_init__(self) -> None:
        # A report that the host itself asks for has REPORT_DATA zero: expecting that would bind nothing.
        if len(self.report_data) != 64 or not any(self.report_data):
            raise UserError("expected REPORT_DATA: 64 bytes, not all zero")

    @classmethod
    def of(cls, config: VmConfig, report_data: bytes) -> "Expected":
        return cls(config.launch, config.require_reference(), report_data)


@dataclass(frozen=True)
class Check:
    """One check and how it came out; ``detail`` says what was found, or why nothing was compared."""

    name: str
    outcome: Outcome
    detail: str = ""

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "outcome": self.outcome, "detail": self.detail}


class Refused(Exception):
    """The evidence is refused: ``reason`` for programs, the message for people, ``checks`` with every outcome."""

    def __init__(self, reason: Reason, message: str, trust_domain: TrustDomain, checks: tuple[Check, ...]) -> None:
        super().__init__(message)
        self.reason, self.message, self.trust_domain, self.checks = reason, message, trust_domain, checks

    def to_json(self) -> dict[str, Any]:
        return {
            "trust_domain": self.trust_domain,
            "accepted": False,
            "reason": str(self.reason),
            "message": self.message,
            "checks": [check.to_json() for check in self.checks],
        }


@dataclass(frozen=True)
class Appraisal:
    """All checks passed under some trust root. It is not a verdict: what makes one is the root it was made with."""

    report: Report
    checks: tuple[Check, ...]
    open_roads: tuple[str, ...]


# What a verdict must not keep quiet about.
ACPI_OPEN = "ACPI is on: its tables come from the host unmeasured, and their AML code runs in the guest's kernel"


def appraise(evidence: Evidence, expected: Expected, now: datetime, root: TrustRoot) -> Appraisal:
    """Compare ``evidence`` with ``expected`` under ``root`` at the time ``now`` (aware). Raises :class:`Refused`."""
    if now.tzinfo is None:
        raise ValueError("now: expected an aware datetime")
    log = _Log(root.domain)
    report = log.attempt(Reason.REPORT_FORMAT, lambda: snp.parse_report(evidence.report, expected.launch.product))
    candidates = log.attempt(Reason.CERTIFICATES, lambda: _load(evidence))
    log.passed(Reason.REPORT_FORMAT, f"version {report.version}, every reserved byte zero")
    chain = log.attempt(Reason.CERTIFICATES, lambda: certs.find_chain(candidates))
    # The root comes first: evidence of another trust domain is refused for that and for nothing that it says.
    log.attempt(Reason.CERTIFICATES, lambda: certs.verify_chain(chain, root, now))
    log.passed(Reason.UNKNOWN_ROOT, f"ARK is a pinned root of {root.domain}")
    log.passed(Reason.CERTIFICATES, "ARK, ASK and VCEK are signed, named and constrained as they must be")
    log.passed(Reason.VALIDITY, f"all three are valid at {now:%Y-%m-%dT%H:%M:%SZ}")
    if not certs.verify_signature(chain.vcek, report.signature_r, report.signature_s, report.signed):
        log.refuse(Reason.SIGNATURE, "the report is not signed by the VCEK")
    log.passed(Reason.SIGNATURE, "ECDSA P-384 with SHA-384 over the raw report")
    vcek = log.attempt(Reason.CERTIFICATES, lambda: certs.read_vcek_extensions(chain.vcek, report.product))
    _check_identity(log, report, chain, vcek, expected, root)
    _check_fields(log, report, expected)
    return Appraisal(report, log.finish(), (ACPI_OPEN,) if expected.reference.acpi else ())


class _Log:
    """The outcomes so far. ``require`` goes on after a failure, so that a refusal lists all that is wrong."""

    def __init__(self, domain: TrustDomain) -> None:
        self.domain = domain
        self.checks: dict[Reason, Check] = {}
        self.first: tuple[Reason, str] | None = None

    def passed(self, reason: Reason, detail: str = "") -> None:
        self.checks[reason] = Check(reason, "passed", detail)

    def not_compared(self, reason: Reason, why: str) -> None:
        self.checks[reason] = Check(reason, "not-compared", why)

    def refuse(self, reason: Reason, message: str) -> NoReturn:
        """Refuse at once: what follows would not mean anything."""
        self.checks[reason] = Check(reason, "failed", message)
        raise Refused(reason, message, self.domain, self._all())

    def require(self, reason: Reason, holds: bool, message: str) -> None:
        if holds:
            self.passed(reason)
        else:
            self.checks[reason] = Check(reason, "failed", message)
            self.first = self.first or (reason, message)

    def stop_on_failure(self) -> None:
        if self.first:
            raise Refused(*self.first, self.domain, self._all())

    def finish(self) -> tuple[Check, ...]:
        """Every check, none failed; refuses where one failed, and where one was never made."""
        self.stop_on_failure()
        for reason in Reason:
            if reason not in self.checks:
                self.refuse(reason, f"{reason}: never checked")
        return self._all()

    def attempt(self, reason: Reason, step: Callable[[], T]) -> T:
        """A step that reads or verifies evidence; its error refuses the evidence."""
        try:
            return step()
        except UserError as error:
            self.refuse(reason, error.message)
        except ChainError as error:
            self.refuse(Reason(error.reason), str(error))

    def _all(self) -> tuple[Check, ...]:
        made = [self.checks.get(reason, Check(reason, "not-reached")) for reason in Reason]
        return (*made, *(Check(name, "not-compared", why) for name, why in NOT_COMPARED.items()))


def _load(evidence: Evidence) -> list[x509.Certificate]:
    found = certs.certificates_of_table(evidence.certificate_table)
    return found + [one for data in evidence.certificates for one in certs.load_certificates(data)]


def _check_identity(
    log: _Log, report: Report, chain: Chain, vcek: VcekExtensions, expected: Expected, root: TrustRoot
) -> None:
    """Whose report it is: the platform, product and chip that the VCEK is certified for."""
    product, launch = expected.launch.product, expected.launch
    certified = certs.root_product(chain, root) or product
    named = vcek.product_name.split("-")[0]  # "Milan-B0" carries its stepping
    log.require(
        Reason.PRODUCT,
        report.product == product == certified == named,
        f"report {report.product}, VCEK {vcek.product_name}, root {certified}, expected {product}",
    )
    log.require(
        Reason.PLATFORM,
        launch.platform == root.platform,
        f"the VM config is for platform {launch.platform}, this verifier for {root.platform}",
    )
    log.stop_on_failure()  # the TCB layout depends on the product
    log.require(
        Reason.SIGNING_KEY,
        report.signing_key == SigningKey.VCEK,
        f"the report names {report.signing_key.name} as its signing key, expected VCEK",
    )
    log.require(Reason.MASK_CHIP_KEY, not report.mask_chip_key, "the platform masks its chip key")
    problem = _chip_id_problem(report, vcek, root)
    log.require(Reason.CHIP_ID, not problem, problem)
    log.require(
        Reason.TCB,
        vcek.tcb == report.reported_tcb,
        f"REPORTED_TCB {_show(report.reported_tcb)}, the VCEK is for {_show(vcek.tcb)}",
    )


def _chip_id_problem(report: Report, vcek: VcekExtensions, root: TrustRoot) -> str:
    if report.chip_id != vcek.hwid.ljust(64, b"\0"):  # Turin's id has 8 bytes; the report pads it
        return f"CHIP_ID {report.chip_id.hex()}, the VCEK is for {vcek.hwid.hex()}"
    if not any(report.chip_id):
        return "CHIP_ID is masked (all zero)"
    # Depth only: what keeps emulated evidence out is the trust root.
    if root.domain == "amd" and report.chip_id.startswith(snp.EMULATED_CHIP_ID[:8]):
        return "CHIP_ID is the software secure processor's"
    return ""


def _check_fields(log: _Log, report: Report, expected: Expected) -> None:
    """What runs there: every remaining field of the report against the VM config."""
    launch, reference = expected.launch, expected.reference
    reported, committed, current = report.reported_tcb, report.committed_tcb, report.current_tcb
    log.require(
        Reason.TCB_ORDER,
        _at_most(reported, committed) and _at_most(committed, current),
        f"reported {_show(reported)}, committed {_show(committed)}, current {_show(current)}: expected to rise",
    )
    minimum = reference.minimum_tcb
    low = [
        f"{name} {_show(tcb)}"
        for name, tcb in (("reported", reported), ("committed", committed), ("launch", report.launch_tcb))
        if not _at_most(minimum, tcb)
    ]
    if any(_parts(minimum)):
        log.require(Reason.MINIMUM_TCB, not low, f"{', '.join(low)}: below the minimum {_show(minimum)}")
    else:
        log.not_compared(Reason.MINIMUM_TCB, "the VM config states no minimum")
    # Never allowed, whatever the VM config says: the host could read the guest, or move it elsewhere.
    log.require(Reason.DEBUG_POLICY, not report.policy & snp.POLICY_DEBUG, "the guest policy allows debugging")
    log.require(
        Reason.MIGRATION_POLICY, not report.policy & snp.POLICY_MIGRATE_MA, "the guest policy allows a migration agent"
    )
    required, forbidden = reference.platform_info_required, reference.platform_info_forbidden
    if required or forbidden:
        log.require(
            Reason.PLATFORM_INFO,
            report.platform_info & required == required and not report.platform_info & forbidden,
            f"PLATFORM_INFO {report.platform_info:#x}, required {required:#x}, forbidden {forbidden:#x}",
        )
    else:
        log.not_compared(Reason.PLATFORM_INFO, "the VM config requires and forbids no bit")
    numbers = (
        (Reason.GUEST_POLICY, report.policy, launch.guest_policy),
        (Reason.VMPL, report.vmpl, reference.vmpl),
        (Reason.GUEST_SVN, report.guest_svn, reference.guest_svn),
        (Reason.AUTHOR_KEY, int(report.author_key), 0),
    )
    values = (
        (Reason.FAMILY_ID, report.family_id, reference.family_id),
        (Reason.IMAGE_ID, report.image_id, reference.image_id),
        (Reason.HOST_DATA, report.host_data, launch.host_data),
        (Reason.ID_KEY, report.id_key_digest, bytes(48)),
        (Reason.AUTHOR_KEY, report.author_key_digest, bytes(48)),
        (Reason.MIGRATION_AGENT, report.report_id_ma, snp.NO_MIGRATION_AGENT),
        (Reason.MEASUREMENT, report.measurement, reference.launch_digest),
        (Reason.REPORT_DATA, report.report_data, expected.report_data),
    )
    for reason, number, wanted in numbers:
        log.require(reason, number == wanted, f"found {number:#x}, expected {wanted:#x}")
    for reason, value, wanted_bytes in values:
        if log.checks.get(reason, _NOT_YET).outcome != "failed":
            same = hmac.compare_digest(value, wanted_bytes)
            log.require(reason, same, f"found {value.hex()}, expected {wanted_bytes.hex()}")


_NOT_YET = Check("", "not-reached")


def _parts(tcb: Tcb) -> tuple[int, ...]:
    return (tcb.fmc or 0, tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode)


def _at_most(low: Tcb, high: Tcb) -> bool:
    """Whether no component of ``low`` is above ``high``'s: a TCB version is not ordered as one number."""
    return all(a <= b for a, b in zip(_parts(low), _parts(high), strict=True))


def _show(tcb: Tcb) -> str:
    fmc = "" if tcb.fmc is None else f"fmc {tcb.fmc} "
    return f"({fmc}bootloader {tcb.bootloader} tee {tcb.tee} snp {tcb.snp} microcode {tcb.microcode})"
