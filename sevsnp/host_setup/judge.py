# SPDX-License-Identifier: Apache-2.0
"""The verdict about a recorded host: every finding, and the one that is the cause of the others.

The checks are in causal order, and the cause is the first that failed and follows from no other. Faults that a message
states come before the age of the kernel: a patched old kernel reports them, too.
"""

import contextlib
from dataclasses import dataclass, replace

from sevsnp.errors import UserError
from sevsnp.host_setup import platform_checks, recorded, software_checks
from sevsnp.host_setup.finding import Finding
from sevsnp.host_setup.kernel_log import read_log
from sevsnp.host_setup.platform_checks import Platform
from sevsnp.host_setup.platform_status import PlatformStatus, parse_status, product_in
from sevsnp.host_setup.recorded import Host

_HARDWARE = ("processor", "encryption", "iommu", "iommu_snp", "rmp", "asids", "firmware", "boot", "initialization")
# Each finding, and those that explain it when it is not ok.
EXPLAINED_BY: dict[str, tuple[str, ...]] = {
    "encryption": ("processor",),
    "iommu": ("processor",),
    "iommu_snp": ("processor", "iommu"),
    "rmp": ("processor", "encryption"),
    "asids": ("processor", "encryption"),
    "firmware": ("processor", "encryption"),
    "boot": ("processor",),
    "initialization": _HARDWARE[:-1],
    "sev_snp": ("processor", "encryption", "rmp", "kernel"),
    "kvm_amd": ("processor",),
    "kvm_amd.sev": ("processor", "encryption", "initialization"),
    "kvm_amd.sev_es": ("processor", "encryption", "asids", "initialization", "kvm_amd.sev"),
    "kvm_amd.sev_snp": (*_HARDWARE, "kernel", "sev_snp", "kvm_amd.sev", "kvm_amd.sev_es"),
    "/dev/kvm": ("processor", "kvm_amd"),
    "/dev/sev": ("processor", "encryption"),
    "launch": (
        *_HARDWARE, "kernel", "sev_snp", "kvm_amd", "kvm_amd.sev", "kvm_amd.sev_es", "kvm_amd.sev_snp", "/dev/kvm",
        "/dev/sev", "qemu",
    ),
}  # fmt: skip
# What else explains that something is unknown. It explains no failure: a message of the kernel says that, too.
UNKNOWN_BY = {
    "firmware": ("/dev/sev", "kernel"),
    "initialization": ("/dev/sev", "kernel", "kvm_amd"),
    "iommu": ("/dev/sev",),
    "iommu_snp": ("/dev/sev",),
    "rmp": ("kernel", "/dev/sev"),
    "asids": ("kvm_amd",),
}


@dataclass(frozen=True)
class Verdict:
    """All findings in causal order, without those that do not apply."""

    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether an SNP guest can start: everything that decides was read, and is as wanted."""
        return all(finding.status in ("ok", "note") for finding in self.findings)

    @property
    def cause(self) -> Finding | None:
        """The first fault that follows from no other; without a fault, the first that is unknown."""
        for status in ("failed", "unknown"):
            for finding in self.findings:
                if finding.status == status and not finding.because:
                    return finding
        return None


def judge(host: Host) -> Verdict:
    """Judge a host by its record alone. A text that is garbage counts as unknown."""
    platform = Platform(host, read_log(host.text(recorded.KERNEL_LOG)), _status(host))
    found = [
        platform_checks.processor(platform),
        platform_checks.encryption(platform),
        platform_checks.iommu(platform),
        platform_checks.iommu_snp(platform),
        platform_checks.rmp(platform),
        platform_checks.asids(platform),
        platform_checks.firmware(platform),
        platform_checks.boot(platform),
        platform_checks.initialized(platform),
        software_checks.pflash(platform),
        software_checks.kernel(platform),
        software_checks.snp_flag(platform),
        software_checks.module(platform),
        *(software_checks.parameter(platform, name) for name in recorded.PARAMETERS),
        *(software_checks.device(platform, name) for name in recorded.DEVICES),
        software_checks.qemu(platform),
        software_checks.launch(platform),
        software_checks.secure_processor(platform),
        software_checks.certificates(platform),
        software_checks.bios(platform),
    ]
    return Verdict(_explained([finding for finding in found if finding]))


def _status(host: Host) -> PlatformStatus | None:
    with contextlib.suppress(UserError, ValueError):
        return parse_status(bytes.fromhex(host.text(recorded.STATUS)), product_in(host.text(recorded.CPUINFO)))
    return None


def _explained(findings: list[Finding]) -> tuple[Finding, ...]:
    failed = {finding.name for finding in findings if finding.status == "failed"}
    return tuple(replace(finding, because=_because(finding, failed)) for finding in findings)


def _because(finding: Finding, failed: set[str]) -> str:
    if finding.status not in ("failed", "unknown"):
        return ""
    possible = EXPLAINED_BY.get(finding.name, ())
    if finding.status == "unknown":
        possible += UNKNOWN_BY.get(finding.name, ())
    return next((name for name in possible if name in failed), "")
