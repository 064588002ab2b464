# SPDX-License-Identifier: Apache-2.0
"""The outcome of an appraisal: accepted, refused or undecided, and every check with its expected and found value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, NamedTuple, overload

from sevsnp.attestation.chain import TrustDomain
from sevsnp.attestation.report import Report
from sevsnp.attestation.rules import Shown, show

Outcome = Literal["passed", "failed", "not-compared", "not-reached"]
Decision = Literal["accepted", "refused", "undecided"]


class Reason(StrEnum):
    """Why evidence is refused. The values are also the names of the checks, in order.

    Each bit has a check of its own, whose name ends with the name of the bit.
    """

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
    RUNTIME_CLAIMS = "runtime-claims"
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


# The text before the command that an appraisal names.
REMEDY = "if no security bulletin of AMD asks for a higher TCB version than this report has"


# The reason of a check that was not reached, unless data from AMD could not be obtained.
ENDED = "not reached, because an earlier check failed"


def said_of_emulation(domain: TrustDomain) -> dict[str, bool]:
    """The marks at the top level of a saved result, so that an emulated result is not mistaken for a hardware one."""
    return {"emulated": False} if domain == "amd" else {"emulated": True, "confidential": False}


class Check(NamedTuple):
    """One check and its outcome; ``reason`` says why the check failed, was not reached, or compares nothing.

    ``wanted`` and ``value`` are kept as they were compared. Their texts are made when they are read.
    """

    name: str
    outcome: Outcome
    wanted: Shown = ""
    value: Shown = ""
    reason: str = ""

    @property
    def expected(self) -> str:
        return show(self.wanted)

    @property
    def found(self) -> str:
        return show(self.value)

    @property
    def ok(self) -> bool:
        """Whether this check does not prevent acceptance: it passed, or it compares nothing for a stated reason."""
        return self.outcome in ("passed", "not-compared")

    @property
    def reason_name(self) -> str:
        """The :class:`Reason` of this check. The name of a bit's check begins with it: ``guest-policy.smt``."""
        return self.name.partition(".")[0]

    @property
    def missing(self) -> bool:
        """Whether data from AMD that this check needs could not be obtained."""
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


class Checks(Sequence[Check]):
    """All checks of an appraisal in the order of :class:`Reason`, those of single bits last. Made when first read."""

    def __init__(self, make: Callable[[], tuple[Check, ...]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> tuple[Check, ...]:
        return self._make()

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Check: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Check, ...]: ...
    def __getitem__(self, index: int | slice) -> Check | tuple[Check, ...]:
        return self._made[index]


class Refused(Exception):
    """The evidence is not accepted. ``reason`` is for programs, the message for users; ``checks`` has every outcome.

    ``appraisal`` is everything that the verifier has found, as in a verdict; the page (sevsnp.attestation.page) uses
    it.
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
    """No check failed so far, but certificates or revocation lists could not be obtained. This is not an acceptance."""


@dataclass(frozen=True, eq=False)
class Appraisal:
    """The result of an appraisal under any trust root. It is not a verdict: a verdict's type fixes the trust root.

    ``at`` is the time (aware) as of which the evidence was appraised. ``report`` is None if no report could be read.
    ``reason`` and ``message`` belong to the first check that failed. ``notes`` are facts that a relying party must
    not overlook. ``remedy`` is a command that states a value which the relying party left open and this report has.
    """

    decision: Decision
    trust_domain: TrustDomain
    profile: str
    report: Report | None
    signer: str
    checks: Sequence[Check]
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
        """The checks that prevent acceptance: that of ``reason`` first, those that wait for data from AMD last."""
        found = [check for check in self.checks if check.outcome == "failed" or check.missing]
        return sorted(found, key=lambda check: (check.reason_name != self.reason, check.missing))

    def require(self) -> Report:
        """The report, if the evidence was accepted. Raises :class:`Refused`, or :class:`Undecided`."""
        if self.accepted and self.report and all(check.ok for check in self.checks):
            return self.report
        if self.decision == "undecided":
            raise Undecided(self)
        raise Refused(replace(self, decision="refused"))

    def to_json(self) -> dict[str, Any]:
        """For programs. ``accepted`` means hardware: under any other trust domain than AMD's it stays false."""
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
    """The contents of an acceptance. Raises Refused if the appraisal was not accepted.

    This type alone releases no secret. Code that releases one requires a subclass, which only one verifier can make.
    """

    report: Report
    checks: Sequence[Check]
    residual_risks: tuple[str, ...]
    appraisal: Appraisal

    def __init__(self, appraisal: Appraisal) -> None:
        object.__setattr__(self, "report", appraisal.require())
        object.__setattr__(self, "checks", appraisal.checks)
        object.__setattr__(self, "residual_risks", appraisal.residual_risks)
        object.__setattr__(self, "appraisal", appraisal)
