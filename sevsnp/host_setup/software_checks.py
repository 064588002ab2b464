# SPDX-License-Identifier: Apache-2.0
"""The checks of the host's software: kernel, KVM, the two devices, QEMU; and what is only worth knowing."""

import re

from sevsnp.host_setup import recorded
from sevsnp.host_setup.finding import Finding
from sevsnp.host_setup.platform_checks import Platform
from sevsnp.qemu.process import OLDEST

OLDEST_KERNEL = (6, 11)
_ON = ("Y", "1")


def kernel_version(release: str) -> tuple[int, int] | None:
    """Major and minor version of a kernel's release, as 6.12.48+deb13-amd64."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", release)
    return (int(found[1]), int(found[2])) if found else None


def kernel(platform: Platform) -> Finding:
    wanted = "Linux {}.{} or newer".format(*OLDEST_KERNEL)
    release = platform.host.text(recorded.RELEASE)
    version = kernel_version(release)
    if version is None:
        return Finding("kernel", "unknown", release or platform.host.unknown(recorded.RELEASE), wanted, "see: uname -r")
    if version < OLDEST_KERNEL:
        mend = "install a newer kernel, and reboot: ./doitw prepare_host"
        return Finding("kernel", "failed", release, wanted, mend)
    return Finding("kernel", "ok", release, wanted)


def snp_flag(platform: Platform) -> Finding:
    wanted = "flag sev_snp"
    if not platform.flags:
        return Finding("sev_snp", "unknown", platform.host.unknown(recorded.CPUINFO), wanted, "see: lscpu")
    if "sev_snp" in platform.flags:
        return Finding("sev_snp", "ok", "sev_snp", wanted)
    mend = "in the BIOS setup: SEV-SNP support enabled; else update the BIOS"
    return Finding("sev_snp", "failed", "the processor does not show sev_snp", wanted, mend)


def module(platform: Platform) -> Finding:
    wanted = "the module kvm_amd is loaded"
    parts = recorded.PARAMETERS.values()
    if any(part in platform.host.texts for part in parts):
        return Finding("kvm_amd", "ok", "loaded", wanted)
    if all(part in platform.host.absent for part in parts):
        mend = "load it as root (SVM must be enabled in the BIOS setup): modprobe kvm_amd"
        return Finding("kvm_amd", "failed", "not loaded", wanted, mend)
    part = recorded.PARAMETERS["sev"]
    return Finding("kvm_amd", "unknown", platform.host.unknown(part), wanted, "see: ls /sys/module/kvm_amd/parameters")


def parameter(platform: Platform, name: str) -> Finding | None:
    """``name``: sev, sev_es or sev_snp. None if the module is not loaded."""
    part, title, wanted = recorded.PARAMETERS[name], f"kvm_amd.{name}", "Y"
    value = platform.host.text(part)
    if value in _ON:
        return Finding(title, "ok", value, wanted)
    if value:
        word = next((word for word in platform.words if word.replace("-", "_").startswith(f"kvm_amd.{name}=")), "")
        found = f"{value} ({word} on the kernel command line)" if word else value
        mend = f"set {title}=1 on the kernel command line, and reboot: ./doitw prepare_host"
        return Finding(title, "failed", found, wanted, mend)
    if module(platform).status == "failed":
        return None
    if part in platform.host.absent:
        return Finding(title, "failed", "kvm_amd has no such parameter", wanted, "install a newer kernel, and reboot")
    return Finding(title, "unknown", platform.host.unknown(part), wanted, f"see: cat /{part}")


def device(platform: Platform, name: str) -> Finding:
    """``name``: /dev/kvm or /dev/sev. QEMU opens both to read and write."""
    wanted = "there, and open to this user"
    state = platform.host.devices.get(name)
    if state == "usable":
        return Finding(name, "ok", "this user may use it", wanted)
    if state == "no rights":
        mend = "get the rights, and log in again: ./doitw prepare_host"
        return Finding(name, "failed", "this user may not open it", wanted, mend)
    if state is None:
        return Finding(name, "unknown", "not recorded", wanted, f"see: ls -l {name}")
    driver = "kvm_amd" if name == "/dev/kvm" else "ccp"
    return Finding(name, "failed", "no such device", wanted, f"load its driver as root: modprobe {driver}")


def qemu(platform: Platform) -> Finding:
    wanted = "QEMU {}.{} or newer".format(*OLDEST["snp"])
    text = platform.host.text(recorded.QEMU_VERSION)
    version = re.search(r"version (\d{1,9})\.(\d{1,9})", text)
    if version is None:
        return Finding("qemu", "note", "none found", wanted, "nothing: the build fetches one")
    if (int(version[1]), int(version[2])) < OLDEST["snp"]:
        mend = "install a newer one, or build a guest first: the build fetches a newer QEMU and uses that"
        return Finding("qemu", "failed", text, wanted, mend)
    return Finding("qemu", "ok", text, wanted)


def pflash(platform: Platform) -> Finding | None:
    """A launch that failed at LAUNCH_START with EINVAL, by QEMU's messages; None if there was none."""
    failed = re.search(r"^.*LAUNCH_START ret=-22\b.*$", platform.host.text(recorded.QEMU_LOG), re.MULTILINE)
    if failed is None:
        return None
    mend = (
        "give the firmware with -bios and not as pflash, as our launches do; else the guest policy is not allowed here"
    )
    return Finding("launch_start", "failed", failed[0].strip(), "a guest that starts", mend)


def launch(platform: Platform) -> Finding | None:
    """Another launch that failed, by QEMU's messages; None if there was none."""
    failed = re.search(r"^.*\bret=-(\d{1,9}).*$", platform.host.text(recorded.QEMU_LOG), re.MULTILINE)
    if failed is None or pflash(platform):
        return None
    mend = "correct what the lines above report, and try again"
    if failed[1] == "25":
        mend = "QEMU and the host's kernel do not fit: use Linux 6.11 and QEMU 9.1, or newer, and neither with patches"
    return Finding("launch", "failed", failed[0].strip(), "a guest that starts", mend)


def certificates(platform: Platform) -> Finding:
    """Whether a report comes with its certificates: that is information, because the verifier can fetch them."""
    mend = "nothing: verify_report fetches them from AMD, or takes them from --certs DIR"
    version = kernel_version(platform.host.text(recorded.RELEASE))
    if version is None:
        return Finding("certificates", "note", "not known", "", mend)
    if version < OLDEST_KERNEL or "-snp-host-" in platform.host.text(recorded.RELEASE):
        found = "not known: only a patched kernel keeps a certificate table"
        return Finding("certificates", "note", found, "", mend)
    return Finding("certificates", "note", "no certificate table: upstream's kernel keeps none", "", mend)


def bios(platform: Platform) -> Finding:
    names = ("sys_vendor", "product_name", "board_name", "bios_vendor", "bios_version", "bios_date")
    known = [text for name in names if (text := platform.host.text(recorded.DMI[name]))]
    return Finding("bios", "note", ", ".join(known) or "not known")


def secure_processor(platform: Platform) -> Finding | None:
    """What decides whether the owner accepts a report of this platform; it hinders no guest from starting."""
    status = platform.status
    if status is None:
        return None
    said = [f"alias check {'' if status.alias_check_complete else 'not '}complete"]
    if status.current_tcb != status.reported_tcb:
        said.append("the current TCB differs from the reported one")
    names = {"vlek_en": "a VLEK is loaded", "mask_chip_key": "reports are not signed", "mask_chip_id": "no chip id"}
    said += [text for name, text in names.items() if status.flags[name]]
    return Finding("reports", "note", "; ".join(said), "", "more about it: build/bin/sev-feature-info")
