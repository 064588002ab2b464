# SPDX-License-Identifier: Apache-2.0
"""The checks of processor, BIOS and secure processor; each judges one thing of a recorded host.

Sources: Linux Documentation/virt/kvm/x86/amd-memory-encryption.rst and arch/x86/virt/svm/sev.c (RMP); AMD 48882, IOMMU
Extended Feature Register, bit 63 SNPSup; AMD 56860, SNP_INIT_EX and its status codes.
"""

import re
from dataclasses import dataclass

from sevsnp.errors import UserError
from sevsnp.host_setup import recorded
from sevsnp.host_setup.finding import Finding
from sevsnp.host_setup.kernel_log import KernelLog
from sevsnp.host_setup.platform_status import STATES, PlatformStatus, product_in
from sevsnp.host_setup.recorded import Host

OLDEST_FIRMWARE = (1, 51, 1)
IOMMU_OFF = ("iommu=off", "amd_iommu=off", "amd_iommu=pgtbl_v2")
_PASSING = ("iommu=pt", "iommu.passthrough=1")
_TRANSLATING = ("iommu=nopt", "iommu.passthrough=0")
_SNP_SUP = 63
_INVALID_CONFIG = 3
_NOT_SAID = "the kernel log does not say"
_NEEDED = "SEV-SNP is initialized, which needs it"
_SHOW_LOG = "look at it as root: dmesg"
_BIOS = "in the BIOS setup"


@dataclass(frozen=True)
class Platform:
    """A recorded host with what was read out of its texts. ``status``: None if there was no answer."""

    host: Host
    log: KernelLog
    status: PlatformStatus | None

    @property
    def flags(self) -> frozenset[str]:
        found = re.search(r"^flags\s*:(.*)$", self.host.text(recorded.CPUINFO), re.MULTILINE)
        return frozenset(found[1].split()) if found else frozenset()

    @property
    def words(self) -> list[str]:
        """The words of the kernel's command line."""
        return self.host.text(recorded.CMDLINE).split()


def processor(platform: Platform) -> Finding:
    wanted = "AMD EPYC 7003 (Milan) or newer, not in a virtual machine"
    text = platform.host.text(recorded.CPUINFO)
    if not text:
        return Finding("processor", "unknown", platform.host.unknown(recorded.CPUINFO), wanted, "see: lscpu")
    model = re.search(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    found = model[1].strip() if model else "a processor without a name"
    if "AuthenticAMD" not in text:
        return Finding(
            "processor",
            "failed",
            f"{found}, not AMD's",
            wanted,
            "use another machine: only AMD processors have SEV-SNP",
        )
    try:
        product = product_in(text)
    except UserError:
        mend = "use another machine, with a Milan, Genoa or Turin"
        return Finding("processor", "failed", f"{found}, not known to have SEV-SNP", wanted, mend)
    if "hypervisor" in platform.flags:
        mend = "check the machine on which this virtual machine runs: a guest cannot start SNP guests"
        return Finding("processor", "failed", f"{found}, in a virtual machine", wanted, mend)
    return Finding("processor", "ok", f"{found} ({product})", wanted)


def encryption(platform: Platform) -> Finding:
    wanted = "flags sev and sev_es"
    if not platform.flags:
        return Finding("encryption", "unknown", platform.host.unknown(recorded.CPUINFO), wanted, "see: lscpu")
    if missing := [name for name in ("sev", "sev_es") if name not in platform.flags]:
        mend = f"{_BIOS}: SMEE (Secure Memory Encryption) enabled"
        return Finding("encryption", "failed", f"the processor does not show {' and '.join(missing)}", wanted, mend)
    return Finding("encryption", "ok", "sev, sev_es", wanted)


def iommu(platform: Platform) -> Finding:
    wanted = "enabled, and not in passthrough mode"
    if bad := _bad_iommu_words(platform.words):
        found = f"{', '.join(bad)} on the kernel command line"
        if platform.log.iommu_refused:
            found += f"; the kernel: {platform.log.iommu_refused}"
        mend = f"take {', '.join(bad)} out of the kernel command line, and reboot"
        return Finding("iommu", "failed", found, wanted, mend)
    if platform.log.iommu_refused:
        mend = f"no iommu=pt and iommu=off on the kernel command line, or iommu=nopt at its end; {_BIOS}: IOMMU enabled"
        return Finding("iommu", "failed", platform.log.iommu_refused, wanted, mend)
    if platform.log.iommu_snp:
        return Finding("iommu", "ok", "the kernel enabled SNP for it", wanted)
    if recorded.IOMMU_FEATURES in platform.host.absent:
        return Finding("iommu", "failed", "no IOMMU", wanted, f"{_BIOS}: IOMMU (DMA remapping, AMD-Vi) enabled")
    if platform.host.text(recorded.IOMMU_FEATURES) and platform.log.complete and platform.words:
        return Finding("iommu", "ok", "enabled", wanted)
    if _initialized(platform):
        return Finding("iommu", "ok", _NEEDED, wanted)
    return Finding("iommu", "unknown", _unread(platform), wanted, _SHOW_LOG)


def _bad_iommu_words(words: list[str]) -> list[str]:
    """The words of the kernel's command line without which the IOMMU would be as SEV-SNP needs it."""
    passing = [word for word in words if word in _PASSING or word in _TRANSLATING]
    # Of these, the kernel takes the last.
    return [*(word for word in words if word in IOMMU_OFF), *(word for word in passing[-1:] if word in _PASSING)]


def iommu_snp(platform: Platform) -> Finding:
    wanted = "extended features with bit 63 (SNPSup)"
    mend = f"update the BIOS (AGESA); {_BIOS}: SEV-SNP support enabled"
    features = _extended_features(platform.host.text(recorded.IOMMU_FEATURES)) or platform.log.iommu_features
    if lacking := [value for value in features if not value >> _SNP_SUP & 1]:
        return Finding("iommu_snp", "failed", f"{lacking[0]:#x}: bit 63 is clear", wanted, mend)
    if platform.log.iommu_lacks_snp:
        return Finding("iommu_snp", "failed", platform.log.iommu_lacks_snp, wanted, mend)
    if features:
        return Finding("iommu_snp", "ok", f"{features[0]:#x}", wanted)
    if platform.log.iommu_snp:
        return Finding("iommu_snp", "ok", "the kernel enabled SNP for it", wanted)
    if _initialized(platform):
        return Finding("iommu_snp", "ok", _NEEDED, wanted)
    return Finding("iommu_snp", "unknown", _unread(platform), wanted, "see: cat /sys/class/iommu/*/amd-iommu/features")


def _extended_features(text: str) -> tuple[int, ...]:
    """The Extended Feature Register of each IOMMU, as sysfs has it: alone, or with its second register.

    Linux 5.19 to 6.6 write the second first, later ones last; it has few bits, so the first is the greater number.
    """
    lines = [line for line in text.split() if re.fullmatch(r"[0-9a-f]{1,16}(:[0-9a-f]{1,16})?", line)]
    return tuple(max(int(value, 16) for value in line.split(":")) for line in lines)


def rmp(platform: Platform) -> Finding:
    wanted = "memory for the RMP, which covers all memory"
    mend = f"{_BIOS}: SNP memory (RMP table) coverage enabled, for all memory; without such an entry, update the BIOS"
    if covers := platform.log.rmp_covers:
        needed, covered = (f"{size / (1 << 30):.0f} GiB" for size in covers)
        found = f"the RMP covers {covered} of memory addresses up to {needed}"
        return Finding("rmp", "failed", found, wanted, mend)
    if platform.log.rmp_refused:
        return Finding("rmp", "failed", platform.log.rmp_refused, wanted, mend)
    if platform.log.rmp_range:
        return Finding("rmp", "ok", platform.log.rmp_range, wanted)
    if platform.status and platform.status.rmp_initialized:
        return Finding("rmp", "ok", "the firmware has initialized it", wanted)
    return Finding("rmp", "unknown", _unread(platform), wanted, _SHOW_LOG)


def asids(platform: Platform) -> Finding:
    wanted = "ASIDs for SEV-ES and SEV-SNP"
    capacity = dict(re.findall(r"^(sev|sev_es) ([0-9]{1,9})$", platform.host.text(recorded.ASIDS), re.MULTILINE))
    log = platform.log.asids
    sev = capacity.get("sev", "") if log.sev is None else str(log.sev)
    es = int(capacity["sev_es"]) if log.sev_es is None and "sev_es" in capacity else log.sev_es
    if es is None and sev:
        es = 0
    if es == 0:
        found = f"none for SEV-ES, {sev or 'none'} for SEV"
        mend = f"{_BIOS}: minimum SEV non-ES ASID (SEV-ES ASID space limit) above 1, as 100; else update the BIOS"
        return Finding("asids", "failed", found, wanted, mend)
    if log.sev_snp == 0:
        mend = "take kvm_amd.ciphertext_hiding_asids out of the kernel command line, and reboot"
        return Finding("asids", "failed", f"none for SEV-SNP, {es} for SEV-ES", wanted, mend)
    if es is None:
        return Finding("asids", "unknown", _unread(platform), wanted, _SHOW_LOG)
    return Finding("asids", "ok", f"{es} for SEV-ES and SEV-SNP, {sev} for SEV", wanted)


def boot(platform: Platform) -> Finding:
    wanted = "UEFI"
    if platform.host.text(recorded.EFI):
        return Finding("boot", "ok", "UEFI", wanted)
    if recorded.EFI not in platform.host.absent:
        return Finding("boot", "note", platform.host.unknown(recorded.EFI), wanted)
    mend = f"{_BIOS}: boot by UEFI, not by legacy (CSM); the system then needs a UEFI boot loader"
    if _initialized(platform):
        return Finding("boot", "note", "legacy; the firmware is initialized in spite of it", wanted)
    found = f"legacy; {platform.log.init_failed}" if platform.log.init_failed else "legacy"
    return Finding("boot", "failed", found, wanted, mend)


def firmware(platform: Platform) -> Finding:
    wanted = f"SEV firmware {_version(OLDEST_FIRMWARE)} or newer"
    mend = "update the BIOS, or put AMD's newer SEV firmware for this processor into /lib/firmware/amd, and reboot"
    found = platform.log.firmware
    if platform.status:
        major, minor = map(int, platform.status.api.split("."))
        found = (major, minor, platform.status.build)
    if found is None:
        if platform.log.firmware_wanted:
            return Finding("firmware", "failed", platform.log.firmware_wanted, wanted, mend)
        return Finding("firmware", "unknown", _no_status(platform), wanted, _SHOW_LOG)
    return Finding("firmware", "ok" if found >= OLDEST_FIRMWARE else "failed", _version(found), wanted,
                   "" if found >= OLDEST_FIRMWARE else mend)  # fmt: skip


def initialized(platform: Platform) -> Finding:
    wanted = "initialized for SEV-SNP (SNP_INIT_EX)"
    if _initialized(platform):
        return Finding("initialization", "ok", "initialized", wanted)
    if platform.log.init_failed:
        mend = "update the BIOS and its SEV firmware"
        if platform.log.init_error == _INVALID_CONFIG:
            mend = f"{_BIOS}: boot by UEFI, not by legacy; SNP memory coverage for all memory; else update the BIOS"
        return Finding("initialization", "failed", platform.log.init_failed, wanted, mend)
    if platform.status and recorded.PARAMETERS["sev"] in platform.host.absent:
        return Finding("initialization", "unknown", "not yet: kvm_amd is not loaded", wanted, "load kvm_amd")
    if platform.status:
        found = f"{platform.status.state}, RMP {'' if platform.status.rmp_initialized else 'not '}initialized"
        mend = (
            "load the driver again as root, and look at its messages with dmesg: modprobe -r kvm_amd; modprobe kvm_amd"
        )
        return Finding("initialization", "failed", found, wanted, mend)
    return Finding("initialization", "unknown", _no_status(platform), wanted, _SHOW_LOG)


def _initialized(platform: Platform) -> bool:
    if platform.status:
        return platform.status.state == STATES[1] and platform.status.rmp_initialized
    return platform.log.snp_firmware and not platform.log.init_failed


def _no_status(platform: Platform) -> str:
    return platform.host.unknown(recorded.STATUS) if recorded.STATUS in platform.host.unreadable else _unread(platform)


def _unread(platform: Platform) -> str:
    """Why the kernel log does not answer a question."""
    if recorded.KERNEL_LOG not in platform.host.texts:
        return f"kernel log: {platform.host.unknown(recorded.KERNEL_LOG)}"
    return _NOT_SAID


def _version(version: tuple[int, int, int]) -> str:
    return "{}.{} build {}".format(*version)
