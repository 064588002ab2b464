# SPDX-License-Identifier: Apache-2.0
"""The groups of checks that a user sees, and advice for each check that failed."""

from typing import NamedTuple

from sevsnp.attestation.chain import TrustDomain
from sevsnp.attestation.outcome import Check, Reason
from sevsnp.firmware.gate import REMEDY as FIRMWARE_REMEDY


class Group(NamedTuple):
    """Checks that answer one question; ``advice`` is for the checks that have no advice of their own below."""

    title: str
    about: str
    reasons: tuple[Reason, ...]
    advice: str


GROUPS = (
    Group(
        "Who signed the report",
        "Certificates lead from a pinned root to the key that signed the report.",
        (Reason.REPORT_FORMAT, Reason.CERTIFICATES, Reason.UNKNOWN_ROOT, Reason.VALIDITY, Reason.SIGNATURE,
         Reason.SIGNING_KEY, Reason.CHIP_ID, Reason.TCB, Reason.REVOCATION),
        "Take a new report from the guest, with the certificates of its host. If that one is refused too, do not use "
        "this machine.",
    ),
    Group(
        "The VM config",
        "The VM config is for this kind of machine, and nothing forbids its firmware and its launch digest.",
        (Reason.PRODUCT, Reason.PLATFORM, Reason.GUEST_FIRMWARE, Reason.NEVER_ACCEPTED),
        "Give the VM config that this guest was started with: --vm_definition FILE, or VM_CONFIG=FILE.",
    ),
    Group(
        "Which guest runs",
        "The guest has the launch digest, the identity and the privilege level that the VM config says.",
        (Reason.MEASUREMENT, Reason.VMPL, Reason.GUEST_SVN, Reason.FAMILY_ID, Reason.IMAGE_ID, Reason.HOST_DATA,
         Reason.ID_KEY, Reason.AUTHOR_KEY, Reason.REPORT_ID),
        "Start the guest again with this VM config, or give the one that it was started with: --vm_definition FILE, or "
        "VM_CONFIG=FILE.",
    ),
    Group(
        "Which nonce and host keys the report is for",
        "The report is for this nonce and these host keys: it is not an older report, and not one of another guest.",
        (Reason.REPORT_DATA, Reason.RUNTIME_CLAIMS),
        "The report is an older one or another guest's, or the nonce or the host keys given here are wrong. Ask the "
        "guest again with a new nonce. If that report is refused too, do not log in.",
    ),
    Group(
        "What the host may do to the guest",
        "The guest policy forbids the host to debug the guest and to move it elsewhere.",
        (Reason.DEBUG_POLICY, Reason.MIGRATION_POLICY, Reason.GUEST_POLICY, Reason.GUEST_ABI, Reason.MIGRATION_AGENT),
        "Start the guest again with this VM config. If its guest policy is the wrong one, make the VM config again "
        "with another POLICY.",
    ),
    Group(
        "The processor and its firmware",
        "Product, key, versions and features of the machine are those that the policy asks for.",
        (Reason.REPORT_VERSION, Reason.ALLOWED_PRODUCT, Reason.ALLOWED_SIGNER, Reason.CSP, Reason.MASK_CHIP_KEY,
         Reason.ALLOWED_CHIP, Reason.TCB_ORDER, Reason.TCB_FLOOR, Reason.REPORTED_TCB, Reason.COMMITTED_TCB,
         Reason.LAUNCH_TCB, Reason.PROVISIONAL, Reason.FIRMWARE, Reason.MITIGATIONS, Reason.PLATFORM_INFO),
        "Update the firmware of the machine, change its BIOS settings, or use another machine. If you accept the risk, "
        "change [policy] in the VM config: docs/policy.md.",
    ),
)  # fmt: skip

_ADVICE = {
    Reason.REPORT_FORMAT: "Give the report whole and unchanged, as get_report has written it.",
    Reason.CERTIFICATES: "Give the certificates that belong to this report, or none: AMD's service is then asked.",
    Reason.UNKNOWN_ROOT: "No certificate chain leads from this report to a root of AMD. The report of an emulated "
    "guest is checked with verify_report_emulated, or with PLATFORM=emulated.",
    Reason.VALIDITY: "Check the clock of this computer. A report that was kept is appraised as of the day on which it "
    "was made: --at TIME.",
    Reason.REVOCATION: "AMD has revoked a certificate of this chip. Do not use this machine.",
    Reason.RUNTIME_CLAIMS: "The claims beside the report do not belong to the report. Take a new HCL report "
    "from the guest.",
    Reason.GUEST_FIRMWARE: f"Make the VM config again: {FIRMWARE_REMEDY}.",
    Reason.NEVER_ACCEPTED: "Build the guest again, from a newer release if there is one.",
    Reason.MEASUREMENT: "The guest was started with another firmware, kernel, initramfs, command line or number of "
    "vCPUs than the VM config names. If you have built since, start the guest again. If not, do not trust its host.",
    Reason.TCB_FLOOR: "Make the VM config again with the lowest TCB version that you accept: MIN_TCB=…",
}
_EMULATED_ROOT = (
    "Another software secure processor has signed this report, or AMD hardware has. Give the ark.pem of the one that "
    "runs this guest: --root FILE, or EMULATED_ROOT=FILE. Each start of a guest makes a new one."
)
MISSING = (
    "Try again when AMD's service can be reached, or give what is missing: --certs DIR, or CERTS=DIR. A VLEK's "
    "certificate comes from the cloud provider: --certificates FILE."
)


def advice(check: Check, domain: TrustDomain) -> str:
    """What to do about a check that failed, or that could not obtain data from AMD."""
    reason = Reason(check.reason_name)
    if check.outcome == "not-reached":
        return MISSING
    if reason == Reason.UNKNOWN_ROOT and domain == "emulated":
        return _EMULATED_ROOT
    return _ADVICE.get(reason) or next(group.advice for group in GROUPS if reason in group.reasons)
