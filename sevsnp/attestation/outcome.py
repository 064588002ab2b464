# SPDX-License-Identifier: Apache-2.0
"""What comes out of an appraisal: every check with what it expected and found, and accepted, refused or undecided."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from sevsnp.attestation.chain import TrustDomain
from sevsnp.attestation.report import Report

Outcome = Literal["passed", "failed", "not-compared", "not-reached"]
Decision = Literal["accepted", "refused", "undecided"]


class Reason(StrEnum):
    """Why evidence is refused; also the names of the checks, in their order. Bits have a check each, by their name."""

    REPORT_FORMAT = "report-format"
    CERTIFICATES = "certificates"
    UNKNOWN_ROOT = "unknown-root"
    VALIDITY = "validity"
    SIGNATURE = "signature"
    PRODUCT = "product"
    PLATFORM = "platform"
    GUEST_FIRMWARE = "guest-firmware"
    NEVER_ACCEPTED = "never-accepted"
    SIGNING_KEY = "signing-key"
    CHIP_ID = "chip-id"
    TCB = "tcb"
    REVOCATION = "revocation"
    REPORT_VERSION = "report-version"
    ALLOWED_PRODUCT = "allowed-product"
    ALLOWED_SIGNER = "allowed-signer"
    CSP = "csp"
    MASK_CHIP_KEY = "mask-chip-key"
    ALLOWED_CHIP = "allowed-chip"
    TCB_ORDER = "tcb-order"
    TCB_FLOOR = "tcb-floor"
    REPORTED_TCB = "minimum-reported-tcb"
    COMMITTED_TCB = "minimum-committed-tcb"
    LAUNCH_TCB = "minimum-launch-tcb"
    PROVISIONAL = "provisional-firmware"
    FIRMWARE = "minimum-firmware"
    MITIGATIONS = "launch-mitigations"
    DEBUG_POLICY = "debug-policy"
    MIGRATION_POLICY = "migration-policy"
    GUEST_POLICY = "guest-policy"
    GUEST_ABI = "guest-abi"
    PLATFORM_INFO = "platform-info"
    VMPL = "vmpl"
    GUEST_SVN = "guest-svn"
    FAMILY_ID = "family-id"
    IMAGE_ID = "image-id"
    HOST_DATA = "host-data"
    ID_KEY = "id-key-digest"
    AUTHOR_KEY = "author-key-digest"
    REPORT_ID = "report-id"
    MIGRATION_AGENT = "report-id-ma"
    MEASUREMENT = "measurement"
    REPORT_DATA = "report-data"


# Before the command that an appraisal names.
REMEDY = "if AMD's bulletins name no higher TCB version than this report's"


# Why a check was not reached, unless something of AMD's could not be had.
ENDED = "an earlier check ended it"


def said_of_emulation(domain: TrustDomain) -> dict[str, bool]:
    """What a saved result says at its top level, so that nobody takes an emulated one for another."""
    return {"emulated": False} if domain == "amd" else {"emulated": True, "confidential": False}


class Check(NamedTuple):
    """One check and how it came out; ``reason`` says why it failed, was not reached, or has nothing to compare with."""

    name: str
    outcome: Outcome
    expected: str = ""
    found: str = ""
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against the evidence here: passed, or not compared for the reason given."""
        return self.outcome in ("passed", "not-compared")

    @property
    def reason_name(self) -> str:
        """The :class:`Reason` that this check belongs to; that of a bit begins with it: ``guest-policy.smt``."""
        return self.name.partition(".")[0]

    @property
    def missing(self) -> bool:
        """Whether something of AMD's could not be had that this check needs."""
        return self.outcome == "not-reached" and self.reason != ENDED

    @property
    def detail(self) -> str:
        """One line for people."""
        if self.outcome == "failed" and (self.expected or self.found):
            return f"found {self.found}, expected {self.expected}{f' ({self.reason})' if self.reason else ''}"
        return self.reason or self.found

    def to_json(self) -> dict[str, Any]:
        return {
            "name": str(self.name),
            "ok": self.ok,
            "outcome": self.outcome,
            "expected": self.expected,
            "found": self.found,
            "reason": self.reason,
        }


class Refused(Exception):
    """The evidence is not accepted: ``reason`` for programs, the message for people, ``checks`` with every outcome.

    ``appraisal`` is all that the verifier has found, as a verdict has it; for the page (sevsnp.attestation.page).
    """

    def __init__(self, appraisal: "Appraisal") -> None:
        super().__init__(appraisal.message)
        self.appraisal = appraisal
        self.reason = appraisal.reason or Reason.REPORT_FORMAT
        self.message, self.trust_domain = appraisal.message, appraisal.trust_domain
        self.checks, self.remedy = appraisal.checks, appraisal.remedy

    def to_json(self) -> dict[str, Any]:
        return {
            "trust_domain": self.trust_domain,
            **said_of_emulation(self.trust_domain),
            "accepted": False,
            "undecided": isinstance(self, Undecided),
            "reason": str(self.reason),
            "message": self.message,
            "remedy": self.remedy,
            "checks": [check.to_json() for check in self.checks],
        }


class Undecided(Refused):
    """Nothing is wrong with the evidence so far, but what AMD says of it could not be had. Not an acceptance."""


@dataclass(frozen=True, eq=False)
class Appraisal:
    """How evidence came out under some trust root. It is not a verdict: what makes one is the root it was made with.

    ``at`` is the time (aware) as of which the evidence was appraised.
    ``report`` is None where there was none to read. ``reason`` and ``message`` are of the first check that failed.
    ``notes`` is what nobody who relies on this may overlook. ``remedy`` is a command, where the relying party has left
    something open that this report answers.
    """

    decision: Decision
    trust_domain: TrustDomain
    profile: str
    report: Report | None
    signer: str
    checks: tuple[Check, ...]
    at: datetime
    reason: Reason | None = None
    message: str = ""
    residual_risks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remedy: str = ""

    @property
    def accepted(self) -> bool:
        return self.decision == "accepted"

    def troubles(self) -> list[Check]:
        """What stands in the way of acceptance: that of ``reason`` first, what AMD could not be asked for last."""
        found = [check for check in self.checks if check.outcome == "failed" or check.missing]
        return sorted(found, key=lambda check: (check.reason_name != self.reason, check.missing))

    def require(self) -> Report:
        """The report, where it was accepted. Raises :class:`Refused`, or :class:`Undecided`."""
        if self.accepted and self.report and all(check.ok for check in self.checks):
            return self.report
        if self.decision == "undecided":
            raise Undecided(self)
        raise Refused(replace(self, decision="refused"))

    def to_json(self) -> dict[str, Any]:
        """For programs. ``accepted`` is for hardware: under another trust domain than AMD's it stays false."""
        report = self.report
        return {
            "accepted": self.accepted and self.trust_domain == "amd",
            "undecided": self.decision == "undecided",
            "trust_domain": self.trust_domain,
            **said_of_emulation(self.trust_domain),
            "product": report.product if report else "",
            "signer": self.signer,
            "profile": self.profile,
            "reason": str(self.reason or ""),
            "message": self.message,
            "remedy": self.remedy,
            "measurement": report.measurement.hex() if report else "",
            "chip_id": report.chip_id.hex() if report else "",
            "report_data": report.report_data.hex() if report else "",
            "open": list(self.residual_risks),
            "notes": list(self.notes),
            "checks": [check.to_json() for check in self.checks],
        }


@dataclass(frozen=True, init=False)
class Accepted:
    """What an acceptance comes with. Raises Refused for an appraisal that is none.

    It releases nothing: what does asks for the type that one verifier makes of it, and nobody else can.
    """

    report: Report
    checks: tuple[Check, ...]
    residual_risks: tuple[str, ...]
    appraisal: Appraisal

    def __init__(self, appraisal: Appraisal) -> None:
        object.__setattr__(self, "report", appraisal.require())
        object.__setattr__(self, "checks", appraisal.checks)
        object.__setattr__(self, "residual_risks", appraisal.residual_risks)
        object.__setattr__(self, "appraisal", appraisal)
