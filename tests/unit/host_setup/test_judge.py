# SPDX-License-Identifier: Apache-2.0
"""Verdicts about recorded hosts: public cases with a known cause, good hosts, and good hosts with one fault."""

import itertools
import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sevsnp.host_setup import recorded
from sevsnp.host_setup.judge import EXPLAINED_BY, UNKNOWN_BY, judge
from sevsnp.host_setup.recorded import CMDLINE, CPUINFO, EFI, IOMMU_FEATURES, KERNEL_LOG, PARAMETERS, Host
from tests.support.hosts import GOOD, HOSTS, edited, host, not_ok, with_text, without
from tests.support.texts import UNICODE

# Every recorded host that is not good: the finding that is the cause, a part of what was found, and of the remedy.
CAUSES = {
    "amdsev-68": ("rmp", "has not been reserved by BIOS", "SNP memory (RMP table) coverage"),
    "amdsev-81": ("firmware", "0.31 build 43", "newer SEV firmware"),
    "amdsev-88": ("iommu", "iommu=pt on the kernel command line", "take iommu=pt out"),
    "amdsev-107": ("boot", "legacy; ccp 0000:22:00.1: SEV-SNP: failed to INIT error 0x3", "boot by UEFI"),
    "amdsev-113": ("iommu", "disabled or configured in passthrough mode", "iommu=pt"),
    "amdsev-115": ("asids", "none for SEV-ES, 509 for SEV", "minimum SEV non-ES ASID"),
    "amdsev-137": ("asids", "none for SEV-ES, 509 for SEV", "minimum SEV non-ES ASID"),
    "amdsev-148": ("iommu_snp", "0x25bf732fa2295afe: bit 63 is clear", "update the BIOS (AGESA)"),
    "amdsev-155": ("iommu_snp", "0x25bf732fa2295afe: bit 63 is clear", "update the BIOS (AGESA)"),
    "amdsev-189": ("initialization", "failed to INIT rc -5, error 0x3", "boot by UEFI, not by legacy"),
    "amdsev-197": ("rmp", "has not been reserved by BIOS", "update the BIOS"),
    "amdsev-216": ("kernel", "6.9.0-rc7", "./doitw prepare_host"),
    "amdsev-223": ("launch_start", "LAUNCH_START ret=-22", "-bios"),
    "amdsev-226": ("rmp", "covers 200 GiB of memory addresses up to 260 GiB", "for all memory"),
    "amdsev-247": ("kernel", "5.19.0-rc6", "./doitw prepare_host"),
    "amdsev-271": ("initialization", "failed to INIT rc -5, error 0x3", "update the BIOS"),
    "intel": ("processor", "not AMD's", "another machine"),
    "no-root": ("/dev/kvm", "may not open it", "./doitw prepare_host"),
    "rome": ("processor", "not known to have SEV-SNP", "another machine"),
    "virtual-machine": ("processor", "in a virtual machine", "on which this virtual machine runs"),
}


def test_every_recorded_host_has_an_expected_verdict() -> None:
    assert {path.name for path in HOSTS.iterdir() if path.is_dir()} == {*CAUSES, *GOOD}
    assert len(GOOD) >= 4


@pytest.mark.parametrize("name", sorted(CAUSES))
def test_the_cause_is_named(name: str) -> None:
    verdict, (cause, found, mend) = judge(host(name)), CAUSES[name]
    assert not verdict.good and verdict.cause
    assert (verdict.cause.name, verdict.cause.status) == (cause, "failed")
    assert found in verdict.cause.found and mend in verdict.cause.mend


@pytest.mark.parametrize("name", ["amdsev-216", "amdsev-247"])
def test_a_qemu_that_does_not_fit_the_kernel_is_the_cause(name: str) -> None:
    """With an old kernel the failed launch follows from the kernel; with a new kernel QEMU is the cause."""
    launch = next(one for one in judge(host(name)).findings if one.name == "launch")
    assert (launch.status, launch.because) == ("failed", "kernel") and "do not fit" in launch.mend
    newer = with_text(with_text(host(name), recorded.RELEASE, "6.12.1"), recorded.QEMU_VERSION, "QEMU version 10.0.2")
    verdict = judge(newer)
    assert verdict.cause and verdict.cause.name == "launch" and "Linux 6.11" in verdict.cause.mend


@pytest.mark.parametrize("name", GOOD)
def test_good_hosts(name: str) -> None:
    verdict = judge(host(name))
    assert verdict.good and verdict.cause is None and not_ok(verdict) == set()
    notes = {finding.name for finding in verdict.findings if finding.status == "note"}
    assert notes == {"reports", "certificates", "bios"}
    certificates = next(one for one in verdict.findings if one.name == "certificates")
    assert "no certificate table" in certificates.found and "verify_report" in certificates.mend


def test_the_alias_check_bit_does_not_mean_an_initialized_rmp() -> None:
    """snphost#108: byte 3 is 3 with new firmware. Bit 1 alone does not mean that the RMP is initialized."""
    good = host("good-snphost-108")
    assert good.text(recorded.STATUS)[6:8] == "03"
    for byte, initialized in (("00", False), ("01", True), ("02", False), ("03", True)):
        status = good.text(recorded.STATUS)
        verdict = judge(with_text(good, recorded.STATUS, status[:6] + byte + status[8:]))
        assert verdict.good is initialized
        assert not_ok(verdict) == (set() if initialized else {"initialization"})


BASE = host("good-genoa")
STATUS = bytes.fromhex(BASE.text(recorded.STATUS))
RANGE = "SEV-SNP: RMP table physical range [0x0000000088900000 - 0x00000000a8efffff]"
NO_RMP = "SEV-SNP: Memory for the RMP table has not been reserved by BIOS"
TOO_SMALL = "SEV-SNP: Memory reserved for the RMP table does not cover full system RAM"
SNP_ON = "AMD-Vi: IOMMU SNP support enabled."
LACKING = ("no rights", "absent")
ES_LINES = (
    "[    5.763951] kvm_amd: SEV-ES enabled (ASIDs 1 - 255)\n[    5.763954] kvm_amd: SEV-SNP enabled (ASIDs 1 - 255)\n"
)


def log(old: str, new: str) -> Host:
    return edited(BASE, KERNEL_LOG, old, new)


def status(offset: int, value: int) -> Host:
    return with_text(BASE, recorded.STATUS, (STATUS[:offset] + bytes((value,)) + STATUS[offset + 1 :]).hex())


def cmdline(words: str) -> Host:
    return edited(BASE, CMDLINE, "quiet", f"quiet {words}")


def launch(message: str) -> Host:
    return with_text(BASE, recorded.QEMU_LOG, f"qemu-system-x86_64: {message} fw_error=0 ''\n")


def device(name: str, state: str) -> Host:
    return replace(BASE, devices={**BASE.devices, name: state})


# One fact of a good host changed, and the one finding that fails.
FAULTS: dict[str, tuple[Host, str]] = {
    "another vendor": (edited(BASE, CPUINFO, "AuthenticAMD", "GenuineIntel"), "processor"),
    "an older family": (edited(BASE, CPUINFO, "cpu family\t: 25", "cpu family\t: 23"), "processor"),
    "a virtual machine": (edited(BASE, CPUINFO, "lm svm", "lm hypervisor svm"), "processor"),
    "SMEE off": (edited(BASE, CPUINFO, "sev sev_es ", ""), "encryption"),
    "no sev_es": (edited(BASE, CPUINFO, "sev_es ", ""), "encryption"),
    "no sev_snp": (edited(BASE, CPUINFO, " sev_snp", ""), "sev_snp"),
    "iommu=pt": (cmdline("iommu=pt"), "iommu"),
    "iommu=off": (cmdline("iommu=off"), "iommu"),
    "amd_iommu=off": (cmdline("amd_iommu=off"), "iommu"),
    "iommu.passthrough=1": (cmdline("iommu.passthrough=1"), "iommu"),
    "V2 page tables": (cmdline("amd_iommu=pgtbl_v2"), "iommu"),
    "iommu=pt after nopt": (cmdline("iommu=nopt iommu=pt"), "iommu"),
    "IOMMU refused": (log(SNP_ON, "AMD-Vi: SNP: IOMMU disabled or configured in passthrough mode, SNP"), "iommu"),
    "IOMMU V2": (log(SNP_ON, "AMD-Vi: SNP: IOMMU is configured with V2 page table mode, SNP"), "iommu"),
    "passthrough by default": (log(SNP_ON, "iommu: Default domain type: Passthrough"), "iommu"),
    "SNPSup clear": (with_text(BASE, IOMMU_FEATURES, "41f77e022094ace:0\n"), "iommu_snp"),
    "one IOMMU without SNPSup": (
        with_text(BASE, IOMMU_FEATURES, "841f77e022094ace:0\n041f77e022094ace:0\n"), "iommu_snp",
    ),
    "IOMMU lacks SNP": (log(SNP_ON, "AMD-Vi: SNP: IOMMU SNP feature not enabled, SNP cannot be"), "iommu_snp"),
    "no RMP": (log(RANGE, NO_RMP), "rmp"),
    "RMP too small": (
        log(RANGE, f"{RANGE}\n{TOO_SMALL} (expected 0x40fc4000 got 0x32004000)"), "rmp",
    ),
    "RMP is garbage": (log(RANGE, "SEV-SNP: RMP configuration not valid: base=0x2000, end=0x1000"), "rmp"),
    "RMP unmapped": (log(RANGE, "SEV-SNP: Failed to map RMP table"), "rmp"),
    "no SEV-ES ASIDs": (log(ES_LINES, ""), "asids"),
    "SEV-ES disabled": (log(ES_LINES, "kvm_amd: SEV-ES disabled (ASIDs 0 - 0)\n"), "asids"),
    "no SEV-SNP ASIDs": (log("SEV-SNP enabled (ASIDs 1 - 255)", "SEV-SNP unusable (ASIDs 1 - 0)"), "asids"),
    "firmware 1.50": (status(1, 50), "firmware"),
    "firmware 0.55": (status(0, 0), "firmware"),
    "platform uninitialized": (status(2, 0), "initialization"),
    "RMP uninitialized": (status(3, 2), "initialization"),
    "kernel 6.10": (with_text(BASE, recorded.RELEASE, "6.10.14-amd64\n"), "kernel"),
    "kernel 5.19": (with_text(BASE, recorded.RELEASE, "5.19.0\n"), "kernel"),
    **{f"kvm_amd.{name}": (with_text(BASE, part, "N\n"), f"kvm_amd.{name}") for name, part in PARAMETERS.items()},
    "kvm_amd without sev_snp": (without(BASE, PARAMETERS["sev_snp"], absent=True), "kvm_amd.sev_snp"),
    "no kvm_amd": (without(BASE, *PARAMETERS.values(), absent=True), "kvm_amd"),
    **{f"{name} {state}": (device(name, state), name) for name, state in itertools.product(recorded.DEVICES, LACKING)},
    "QEMU 9.0": (with_text(BASE, recorded.QEMU_VERSION, "QEMU emulator version 9.0.2\n"), "qemu"),
    "a launch with pflash": (launch("sev_snp_launch_start: SNP_LAUNCH_START ret=-22"), "launch_start"),
    "a launch with another QEMU": (launch("sev_kvm_init: failed to initialize ret=-25"), "launch"),
}  # fmt: skip


@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_one_fault_gives_one_failed_finding(fault: str) -> None:
    changed, name = FAULTS[fault]
    verdict = judge(changed)
    assert not_ok(verdict, "failed") == {name}
    assert not verdict.good and verdict.cause and verdict.cause.name == name
    assert verdict.cause.mend and verdict.cause.wanted and verdict.cause.found


def test_every_decisive_finding_fails_in_one_case() -> None:
    decisive = {finding.name for finding in judge(BASE).findings if finding.status != "note"}
    # Legacy boot alone does not decide: amdsev-107 has it together with what it causes.
    assert decisive - {name for _, name in FAULTS.values()} == {"boot"}
    names = decisive | {"launch", "launch_start"}
    assert {*EXPLAINED_BY, *UNKNOWN_BY} | {one for some in EXPLAINED_BY.values() for one in some} <= names


def test_no_finding_explains_itself() -> None:
    """A finding is explained by earlier findings only; so there is always a first cause."""

    def follows(name: str, seen: frozenset[str]) -> None:
        assert name not in seen, f"{name} explains itself"
        for other in EXPLAINED_BY.get(name, ()):
            follows(other, seen | {name})

    for name in EXPLAINED_BY:
        follows(name, frozenset())


@pytest.mark.parametrize("words", ["iommu=pt iommu=nopt", "iommu=nopt", "iommu.passthrough=0", "iommu=soft"])
def test_other_iommu_words_of_the_command_line_pass(words: str) -> None:
    """The kernel uses the last of pt and nopt."""
    assert judge(cmdline(words)).good


def test_legacy_boot() -> None:
    legacy = without(BASE, EFI, absent=True)
    assert judge(legacy).good  # it is initialized in spite of it
    failed = edited(
        without(legacy, recorded.STATUS), KERNEL_LOG, "SEV-SNP API:1.55", "SEV-SNP: failed to INIT error 0x3, x"
    )
    verdict = judge(failed)
    assert verdict.cause and verdict.cause.name == "boot"
    assert {one.name: one.because for one in verdict.findings if one.because} == {"initialization": "boot"}


def test_a_successful_initialization_after_a_failed_one_passes() -> None:
    """The driver was loaded again, and the firmware now reports that it is initialized."""
    assert judge(log("SEV-SNP API:1.55", "SEV-SNP: failed to INIT error 0x3\n SEV-SNP API:1.55")).good


@pytest.mark.parametrize(
    "features", ["841f77e022094ace", "1d:841f77e022094ace", "841f77e022094ace:1d", "25bf732fa2295afe:53d"]
)
def test_the_iommu_s_features_in_all_forms(features: str) -> None:
    """Kernels wrote the register alone, after the second register, and before it."""
    assert judge(with_text(BASE, IOMMU_FEATURES, features)).good is ("841f" in features)


OLD_ASIDS = "ccp: x\nSEV supported: 410 ASIDs\nSEV-ES{} supported: 99 ASIDs\n"


@pytest.mark.parametrize("both", ["", " and SEV-SNP"])
def test_the_asids_are_read_as_older_kernels_write_them(both: str) -> None:
    text = BASE.texts[KERNEL_LOG].partition("[    5.763946]")[0] + OLD_ASIDS.format(both)
    asids = next(one for one in judge(with_text(BASE, KERNEL_LOG, text)).findings if one.name == "asids")
    assert (asids.status, asids.found) == ("ok", "99 for SEV-ES and SEV-SNP, 410 for SEV")


# What nobody may read is unknown.


def test_an_empty_record_does_not_pass() -> None:
    verdict = judge(Host())
    assert not verdict.good and verdict.cause and verdict.cause.status == "unknown"
    assert not_ok(verdict, "failed", "ok") == set()
    unknown = [finding for finding in verdict.findings if finding.status == "unknown"]
    assert all(finding.found and finding.mend for finding in unknown)


@pytest.mark.parametrize("part", [CPUINFO, recorded.RELEASE, *PARAMETERS.values()])
def test_a_record_without_one_part_does_not_pass(part: str) -> None:
    verdict = judge(replace(without(BASE, part), unreadable={part: "Permission denied"}))
    assert not verdict.good and not_ok(verdict, "failed") == set()
    shown = [finding for finding in verdict.findings if finding.status == "unknown"]
    assert shown and all(finding.found == "Permission denied" for finding in shown if finding.name != "asids")


def test_the_kernel_log_is_not_needed_if_the_platform_status_is_known() -> None:
    """The platform status and the control group have the same facts. Without them the log is needed."""
    no_log = without(BASE, KERNEL_LOG)
    assert judge(no_log).good
    for part, names in ((recorded.STATUS, {"iommu", "rmp", "firmware", "initialization"}), (recorded.ASIDS, {"asids"})):
        verdict = judge(without(no_log, part))
        assert (not_ok(verdict, "unknown"), not_ok(verdict, "failed")) == (names, set())


def test_a_user_without_rights() -> None:
    verdict = judge(host("no-root"))
    assert not_ok(verdict, "failed") == {"/dev/kvm", "/dev/sev"}
    assert not_ok(verdict, "unknown") == {"iommu", "rmp", "firmware", "initialization"}
    assert {finding.because for finding in verdict.findings if finding.status == "unknown"} == {"/dev/sev"}


def test_a_missing_qemu_is_information() -> None:
    assert judge(without(BASE, recorded.QEMU_VERSION, absent=True)).good


def test_a_firmware_that_masks_its_chip_id_is_named() -> None:
    flags = struct.pack("<I", 0b101)
    masked = with_text(BASE, recorded.STATUS, (STATUS[:8] + flags + STATUS[12:]).hex())
    reports = next(one for one in judge(masked).findings if one.name == "reports")
    assert judge(masked).good and "VLEK" in reports.found and "no chip id" in reports.found


TEXTS = st.text(UNICODE, max_size=80) | st.sampled_from([text for text in BASE.texts.values() if len(text) < 400])
LINES = st.lists(st.sampled_from(BASE.texts[KERNEL_LOG].splitlines()) | st.text(UNICODE, max_size=40), max_size=30)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.dictionaries(st.sampled_from(recorded.PARTS), TEXTS),
    lines=LINES,
    absent=st.sets(st.sampled_from(recorded.PARTS)),
)
def test_garbage_is_judged(texts: dict[str, str], lines: list[str], absent: set[str]) -> None:
    verdict = judge(Host({**texts, KERNEL_LOG: "\n".join(lines)}, frozenset(absent)))
    assert not verdict.good and verdict.cause  # without the devices it never is


@pytest.mark.parametrize("digits", ["9" * 5000, "0x" + "f" * 5000])
def test_very_long_numbers_in_a_record_are_judged(digits: str) -> None:
    replaced: Callable[[str], str] = lambda text: text.replace("255", digits).replace("55", digits)  # noqa: E731
    judge(replace(BASE, texts={part: replaced(text) for part, text in BASE.texts.items()}))
    judge(with_text(BASE, CPUINFO, f"cpu family\t: {digits}\nmodel\t\t: 1\nstepping\t: 1\nAuthenticAMD"))
