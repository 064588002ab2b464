# SPDX-License-Identifier: Apache-2.0
"""The appraisal of evidence: authenticate it, then compare every field with the policy. No check is optional.

Unreadable evidence is refused like wrong evidence: the result is an :class:`Appraisal`, not an exception. A
:class:`UserError` is raised only for wrong input of the verifier's own, such as its policy.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from sevsnp.attestation.authentication import Authentic, Endorser, Evidence, Nobody, authenticate, read_report
from sevsnp.attestation.chain import TrustRoot
from sevsnp.attestation.checklist import Checklist, Plan, Planned, Stop
from sevsnp.attestation.hcl import check_claims
from sevsnp.attestation.outcome import Appraisal, Check, Reason, Refused, Undecided
from sevsnp.attestation.policy import NEVER, Policy, make_policy, read_policy
from sevsnp.attestation.profiles import NO_VM_CONFIG
from sevsnp.attestation.report import POLICY_DEBUG, POLICY_MIGRATE_MA, Report, SigningKey
from sevsnp.attestation.rules import (
    Anything,
    Bits,
    ChipTcb,
    OneOf,
    Rule,
    TcbFloor,
    TcbFloors,
    Text,
    Unstated,
    Value,
    at_most,
    show_cpuid,
    show_rule,
)
from sevsnp.firmware.gate import problem, residual_risks
from sevsnp.vm_config.config import Launch, Tcb, VmConfig, making

__all__ = ["Appraisal", "Check", "Evidence", "Expected", "NeverAccepted", "Reason", "Refused", "Undecided", "appraise"]


@dataclass(frozen=True)
class NeverAccepted:
    """A release's list of what no verifier may accept: digests (lower-case hex digits), each with a description.

    ``launch_digests`` (48 bytes) belong to emulated VM configs, so a verifier of hardware must not expect them.
    ``firmware`` (SHA-256) is refused on every platform.
    """

    launch_digests: Mapping[str, str]
    firmware: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Expected:
    """What the evidence must say: the policy, and the launch of the guest that made the evidence.

    ``made_by`` is the command that makes the guest's VM config. Without a VM config, ``launch`` is None.
    ``never`` is a release's list, if one was given.
    ``own_measurement`` says that the policy accepts other launch digests than the VM config's.
    """

    policy: Policy
    launch: Launch | None = None
    acpi: bool = False
    made_by: str = ""
    never: NeverAccepted | None = None
    own_measurement: bool = False

    @classmethod
    def of(
        cls,
        config: VmConfig,
        report_data: bytes | None,
        policy: Path | None = None,
        never: NeverAccepted | None = None,
    ) -> "Expected":
        """Take the expected values from a VM config, and the policy from the file ``policy`` or else from the config.

        ``report_data`` (64 bytes) is the REPORT_DATA that the verifier asked for; None if the policy states it.
        Raises :class:`UserError`.
        """
        document, source = (read_policy(policy), policy) if policy else (config.policy, config.source)
        made = make_policy(document, source, config, report_data)
        launch, reference = config.launch, config.require_reference()
        own = made.measurement != OneOf((reference.launch_digest,))
        return cls(made, launch, reference.acpi, making(config.source, launch.workflow), never, own)


# Texts for the residual risks and the notes of an appraisal.
ACPI_OPEN = "ACPI is on: the host supplies the tables unmeasured, and the guest's kernel runs their AML code"
_NO_LAUNCH = "no VM config: the firmware, command line and ACPI tables behind the measurement are not known"
_OWN_MEASUREMENT = "the policy names launch digests of its own: the firmware behind them is not known"
ANY_TCB = "any TCB version ({}) is accepted, even one with vulnerable microcode; the reason given: {}"
_EMULATED_TCB = "no minimum TCB: a software secure processor's TCB version means nothing; on hardware one is required"
_MILAN = "Milan: its root of endorsement keys has been reported as extractable by software (arXiv 2605.12990)"
_ONE_FLOOR = (
    "the minimum TCB names no CPUID, but AMD numbers microcode for each CPUID; this processor has {}: docs/policy.md"
)
_VLEK = "VLEK: the cloud provider uses one key on all of its machines; one compromised machine can disclose the key"
_WEAKER = "profile {}: {}weaker than strict; the checks list what is not compared, each with the reason"


def appraise(
    evidence: Evidence, expected: Expected, now: datetime, root: TrustRoot, endorser: Endorser | None = None
) -> Appraisal:
    """Compare ``evidence`` with ``expected`` under ``root`` at the time ``now`` (aware). Never raises for evidence."""
    if now.tzinfo is None:
        raise ValueError("now: expected an aware datetime")
    now = now.astimezone(UTC)  # as which it is shown, and signed in a result
    log, policy = Checklist(root.domain), expected.policy
    report: Report | None = None
    try:
        source = endorser or Nobody()
        report, sent = read_report(log, evidence, expected.launch.product if expected.launch else None, now, source)
        if report.signing_key == SigningKey.NONE:
            log.stop(Reason.SIGNING_KEY, "the report says that it is not signed")
        found = authenticate(log, report, sent, evidence, root, now, source, policy.revocation)
        check_claims(log, report, evidence.claims)
        _check_launch(log, found, expected, root)
        check_fields(log, found, policy)
        check_floor(log, policy, root)
        check_end(log, policy, now)
    except Stop:
        pass
    decision, reason, message = log.decide()
    signer = report.signing_key.name if report else ""
    remedy = _floor_command(expected, report) if report and reason == Reason.TCB_FLOOR else ""
    return Appraisal(
        decision, root.domain, policy.profile, report, signer, log.checks(), now, reason, message,
        _open(expected, root), (*_notes(policy, report, root), *evidence.notes), remedy,
    )  # fmt: skip


def _open(expected: Expected, root: TrustRoot) -> tuple[str, ...]:
    launch, policy = expected.launch, expected.policy
    floors = {"reported": policy.reported_tcb, "committed": policy.committed_tcb, "launch": policy.launch_tcb}
    reasons = {name: floor.reason for name, floor in floors.items() if isinstance(floor, Anything)}
    found = [ACPI_OPEN] if expected.acpi else []
    found += residual_risks(launch.firmware.sha256, launch.firmware_reason) if launch else [_NO_LAUNCH]
    for reason in dict.fromkeys(reasons.values()):
        found.append(ANY_TCB.format(", ".join(name for name, given in reasons.items() if given == reason), reason))
    if isinstance(policy.reported_tcb, Unstated) and root.domain == "emulated":
        found.append(_EMULATED_TCB)
    if expected.own_measurement:
        found.append(_OWN_MEASUREMENT)
    return tuple(found)


def _notes(policy: Policy, report: Report | None, root: TrustRoot) -> tuple[str, ...]:
    # A changed strict profile, or an owner's own policy, may also be stricter than strict.
    perhaps = "perhaps " if policy.profile.startswith(("strict", "own")) else ""
    notes = [] if policy.profile == "strict" else [_WEAKER.format(policy.profile, perhaps)]
    if report and report.product == "Milan":
        notes.append(_MILAN)
    if report and report.signing_key == SigningKey.VLEK:
        notes.append(_VLEK)
    floors = (policy.reported_tcb, policy.committed_tcb, policy.launch_tcb)
    if report and report.cpuid and root.vendor and any(isinstance(floor, TcbFloor) for floor in floors):
        notes.append(_ONE_FLOOR.format(show_cpuid(report.cpuid)))
    return tuple(notes)


def _check_launch(log: Checklist, found: Authentic, expected: Expected, root: TrustRoot) -> None:
    """Check that the VM config is for this product and this platform, and check its firmware and digests."""
    launch, report = expected.launch, found.report
    if launch is None:
        log.not_compared(Reason.PLATFORM, NO_VM_CONFIG)
        log.not_compared(Reason.GUEST_FIRMWARE, NO_VM_CONFIG)
        log.stop_on_failure()
        check_never(log, report, expected, root)
        return
    if report.product != launch.product:
        log.failed(Reason.PRODUCT, "", expected=f"{launch.product}, as the VM config says", found=report.product)
    log.require(
        Reason.PLATFORM,
        launch.platform == root.platform,
        expected=f"a VM config for platform {root.platform}",
        found=f"a VM config for platform {launch.platform}",
    )
    log.stop_on_failure()
    wrong = problem(launch.firmware.sha256, launch.firmware.path, launch.firmware_reason)
    log.require(
        Reason.GUEST_FIRMWARE,
        not wrong,
        expected="a firmware that starts nothing but the measured files",
        found=wrong or launch.firmware_reason or launch.firmware.sha256,
    )
    check_never(log, report, expected, root)


def check_never(log: Checklist, report: Report, expected: Expected, root: TrustRoot) -> None:
    """Check that a release's list contains neither the expected launch digests or firmware nor the reported digest.

    A user may have pasted an emulated guest's launch digest where a production one belongs.
    """
    if expected.never is None:
        log.not_compared(Reason.NEVER_ACCEPTED, "no release manifest was given; the list is part of one")
        return
    rule = expected.policy.measurement
    digests = [report.measurement.hex()]
    digests += [one.hex() for one in rule.values if isinstance(one, bytes)] if isinstance(rule, OneOf) else []
    named = [expected.never.firmware.get(expected.launch.firmware.sha256)] if expected.launch else []
    if root.domain != "emulated":
        named += [expected.never.launch_digests.get(digest) for digest in digests]
    listed = next(filter(None, named), "")
    log.require(
        Reason.NEVER_ACCEPTED, not listed, expected="what the release manifest does not forbid",
        found=listed or f"launch digest {digests[0]}",
    )  # fmt: skip


def _author_key(report: Report) -> bytes | None:
    # AUTHOR_KEY_EN says whether the digest is valid. If flag and digest disagree, neither is usable.
    return report.author_key_digest if report.author_key == any(report.author_key_digest) else None


Field = tuple[Reason, Callable[[Policy], Rule], Callable[[Authentic], Value | Tcb | ChipTcb | None]]


def _firmware(report: Report) -> tuple[int, ...]:
    """The lower of the current and the committed firmware."""
    return min((one.major, one.minor, one.build) for one in (report.current_version, report.committed_version))


# For every field of the policy: the name of the check, the rule, and the value that the rule is compared with.
FIELDS: tuple[Field, ...] = (
    (Reason.REPORT_VERSION, lambda p: p.report_version, lambda a: a.report.version),
    (Reason.ALLOWED_PRODUCT, lambda p: p.product, lambda a: a.report.product),
    (Reason.ALLOWED_SIGNER, lambda p: p.signer, lambda a: a.signer),
    (Reason.CSP, lambda p: p.csp, lambda a: a.leaf.csp),
    (Reason.MASK_CHIP_KEY, lambda p: p.mask_chip_key, lambda a: a.report.mask_chip_key),
    (Reason.ALLOWED_CHIP, lambda p: p.chip_id, lambda a: a.report.chip_id),
    (Reason.REPORTED_TCB, lambda p: p.reported_tcb, lambda a: ChipTcb(a.report.reported_tcb, a.report.cpuid)),
    (Reason.COMMITTED_TCB, lambda p: p.committed_tcb, lambda a: ChipTcb(a.report.committed_tcb, a.report.cpuid)),
    (Reason.LAUNCH_TCB, lambda p: p.launch_tcb, lambda a: ChipTcb(a.report.launch_tcb, a.report.cpuid)),
    (Reason.PROVISIONAL, lambda p: p.provisional_firmware, lambda a: _provisional(a.report)),
    (Reason.FIRMWARE, lambda p: p.firmware, lambda a: _firmware(a.report)),
    (Reason.MITIGATIONS, lambda p: p.launch_mitigations, lambda a: a.report.launch_mitigations),
    (Reason.GUEST_POLICY, lambda p: p.guest_policy, lambda a: a.report.policy),
    (Reason.GUEST_ABI, lambda p: p.guest_abi, lambda a: a.report.guest_abi),
    (Reason.VMPL, lambda p: p.vmpl, lambda a: a.report.vmpl),
    (Reason.GUEST_SVN, lambda p: p.guest_svn, lambda a: a.report.guest_svn),
    (Reason.FAMILY_ID, lambda p: p.family_id, lambda a: a.report.family_id),
    (Reason.IMAGE_ID, lambda p: p.image_id, lambda a: a.report.image_id),
    (Reason.HOST_DATA, lambda p: p.host_data, lambda a: a.report.host_data),
    (Reason.ID_KEY, lambda p: p.id_key, lambda a: a.report.id_key_digest),
    (Reason.AUTHOR_KEY, lambda p: p.author_key, lambda a: _author_key(a.report)),
    (Reason.REPORT_ID, lambda p: p.report_id, lambda a: a.report.report_id),
    (Reason.MIGRATION_AGENT, lambda p: p.migration_agent, lambda a: a.report.report_id_ma),
    (Reason.MEASUREMENT, lambda p: p.measurement, lambda a: a.report.measurement),
    (Reason.REPORT_DATA, lambda p: p.report_data, lambda a: a.report.report_data),
)
BITS: tuple[tuple[str, Reason, Callable[[Policy], Bits], Callable[[Report], int]], ...] = (
    ("guest-policy", Reason.GUEST_POLICY, lambda p: p.guest_policy_bits, lambda r: r.policy),
    ("platform-info", Reason.PLATFORM_INFO, lambda p: p.platform_info, lambda r: r.platform_info),
)
_BIT = (OneOf((0,)), OneOf((1,)))
# On one chip these TCB versions never decrease in this order. LAUNCH_TCB is not in the order: a guest may have been
# launched on another machine.
_RISING = "reported ≤ committed ≤ current"
_TCBS = "reported {}, committed {}, current {}"


def check_fields(log: Checklist, found: Authentic, policy: Policy) -> None:
    """Compare every remaining field of the report with the policy."""
    report = found.report
    tcbs = (report.reported_tcb, report.committed_tcb, report.current_tcb)
    log.require(
        Reason.TCB_ORDER,
        all(at_most(low, high) for low, high in itertools.pairwise(tcbs)),
        expected=_RISING,
        found=Text(_TCBS, tcbs),
    )
    # No policy can allow these two bits: with them the host could read the guest, or move it to another machine.
    for reason, mask, name in (
        (Reason.DEBUG_POLICY, POLICY_DEBUG, "DEBUG"),
        (Reason.MIGRATION_POLICY, POLICY_MIGRATE_MA, "MIGRATE_MA"),
    ):
        bit = int(report.policy & mask > 0)
        log.require(reason, not bit, expected=f"{name} 0", found=f"{name} {bit}")
    plan, named = _plan(policy, FIELDS)
    log.compare(plan, found)
    unknown = report.platform_info & ~named
    shown = f"; bits without a name: {unknown:#x}" if unknown else ""
    log.not_compared(Reason.PLATFORM_INFO, "each bit has a check of its own", f"{report.platform_info:#x}{shown}")


@lru_cache(maxsize=16)
def _plan(policy: Policy, fields: tuple[Field, ...]) -> tuple[Plan, int]:
    """The rules of ``policy``, made ready, and the mask of the PLATFORM_INFO bits that have a rule.

    The result is cached by the policy's identity, because one policy serves many reports.
    """
    rules = [Planned.of(reason, of(policy), value) for reason, of, value in fields]
    for prefix, reason, of_bits, number in BITS:
        for name, (position, wanted) in of_bits(policy).rules.items():
            if prefix == "guest-policy" and name in NEVER:
                continue  # check_fields compares it without the policy
            one = wanted if isinstance(wanted, Anything) else _BIT[wanted]
            rules.append(Planned.of(reason, one, _bit(number, position), f"{prefix}.{name.replace('_', '-')}"))
    return Plan.of(tuple(rules)), sum(1 << position for position, _ in policy.platform_info.rules.values())


def _bit(number: Callable[[Report], int], position: int) -> Callable[[Authentic], int]:
    return lambda found: number(found.report) >> position & 1


def check_floor(log: Checklist, policy: Policy, root: TrustRoot) -> None:
    """Check that the VM config or the policy states a minimum TCB: AMD does not withdraw broken TCB versions.

    This check is the last one, so that a report which fails another check is refused for that other check.
    """
    floors = (policy.reported_tcb, policy.committed_tcb, policy.launch_tcb)
    unstated = [floor for floor in floors if isinstance(floor, Unstated)]
    if not unstated:
        if isinstance(policy.reported_tcb, Anything):
            log.not_compared(Reason.TCB_FLOOR, policy.reported_tcb.reason)
        else:
            log.passed(Reason.TCB_FLOOR, _floor_text(policy))
    elif root.domain == "emulated" and not any(floor.demanded for floor in unstated):
        log.not_compared(Reason.TCB_FLOOR, _EMULATED_TCB)
    else:
        log.failed(
            Reason.TCB_FLOOR,
            "without a minimum, a chip with vulnerable microcode is accepted",
            expected="a minimum TCB version, or any",
            found="none",
        )


@lru_cache(maxsize=16)
def _floor_text(policy: Policy) -> str:
    return show_rule(policy.reported_tcb)


def check_end(log: Checklist, policy: Policy, now: datetime) -> None:
    """Check that floors from a dated file still hold: an owner who has not renewed them may have missed a bulletin."""
    for floor in (policy.reported_tcb, policy.committed_tcb, policy.launch_tcb):
        if isinstance(floor, TcbFloors) and floor.end and now > floor.end:
            log.failed(
                Reason.TCB_FLOOR,
                "make a new edition of the file, or another policy",
                expected=f"floors that hold at {now:%F}",
                found=floor.source,
            )
            return


def _floor_command(expected: Expected, report: Report) -> str:
    """The command that makes the VM config again with the highest minimum TCB that this report meets."""
    versions = [vars(tcb) for tcb in (report.reported_tcb, report.committed_tcb, report.launch_tcb)]
    lowest = {name: min(one[name] for one in versions) for name, value in versions[0].items() if value is not None}
    floor = Tcb(**lowest)
    if floor.is_zero() or isinstance(expected.policy.reported_tcb, TcbFloors):
        return ""
    return f"{expected.made_by} MIN_TCB={floor.setting()}" if expected.made_by else f"--min-tcb {floor.setting()}"


def _provisional(report: Report) -> bool:
    """Whether the current firmware or TCB version differs from the committed one."""
    return report.current_tcb != report.committed_tcb or report.current_version != report.committed_version
