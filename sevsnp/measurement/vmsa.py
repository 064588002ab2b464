# SPDX-License-Identifier: Apache-2.0
"""Make a vCPU's initial save area (VMSA), which the launch digest covers, by CPU model, host kernel and VM monitor.

Sources: AMD APM volume 2 table B-4 (layout), AMD 25481 (CPUID Fn0000_0001_EAX); Linux arch/x86/kvm/svm/sev.c
(sev_es_sync_vmsa: which registers go in), QEMU target/i386/cpu.c (CPU models).
"""

import re
import struct
from dataclasses import dataclass
from enum import StrEnum

from sevsnp.errors import UserError

SIZE = 4096
BSP_EIP = 0xFFFFFFF0
SNP_ACTIVE, DEBUG_SWAP, SECURE_TSC = 1 << 0, 1 << 5, 1 << 9


class Vmm(StrEnum):
    """The VM monitor that sets up the initial state: QEMU (on KVM), Amazon EC2 or Google Compute Engine."""

    QEMU = "qemu"
    EC2 = "ec2"
    GCE = "gce"


@dataclass(frozen=True)
class HostKernel:
    """The VMSA values of one generation of KVM: the default SEV_FEATURES, MXCSR and FCW."""

    guest_features: int
    mxcsr: int
    fcw: int
    what: str


DEFAULT_KERNEL = "6.9"
HOST_KERNELS = {
    "before-6.6": HostKernel(SNP_ACTIVE, 0, 0, "Linux before 6.6"),
    "6.6": HostKernel(SNP_ACTIVE | DEBUG_SWAP, 0, 0, "Linux 6.6 to 6.8, which swap debug registers unasked"),
    DEFAULT_KERNEL: HostKernel(SNP_ACTIVE, 0x1F80, 0x37F, "Linux 6.9 and newer, which set MXCSR and FCW"),
    "secure-tsc": HostKernel(SNP_ACTIVE | SECURE_TSC, 0x1F80, 0x37F, "the same with Secure TSC"),
}


def host_kernel(name: str) -> HostKernel:
    """The host kernel generation with this name in HOST_KERNELS."""
    if name not in HOST_KERNELS:
        raise UserError(f"host kernel: found {name!r}, expected one of {', '.join(HOST_KERNELS)}")
    return HOST_KERNELS[name]


# Segments as (offset, selector, attributes, limit); the code segment is not in the list.
_FLAT = ((0x00, 0, 0x93, 0xFFFF), (0x20, 0, 0x93, 0xFFFF), (0x30, 0, 0x93, 0xFFFF), (0x40, 0, 0x93, 0xFFFF),
         (0x50, 0, 0x93, 0xFFFF), (0x60, 0, 0, 0xFFFF), (0x70, 0, 0x82, 0xFFFF), (0x80, 0, 0, 0xFFFF),
         (0x90, 0, 0x8B, 0xFFFF))  # fmt: skip
_EC2 = {0x20: 0x92, 0x90: 0x83}
# The segments in 32-bit protected mode, in which an SVSM starts.
_PROTECTED = ((0x00, 0x10, 0xC93, 0xFFFFFFFF), (0x20, 0x10, 0xC93, 0xFFFFFFFF), (0x30, 0x10, 0xC93, 0xFFFFFFFF),
              (0x40, 0x10, 0xC93, 0xFFFFFFFF), *_FLAT[4:])  # fmt: skip
_NO_CPU = 0x600  # RDX after a reset if the monitor does not set it to the CPU's signature


def vmsa(
    eip: int,
    signature: int,
    guest_features: int,
    kernel: HostKernel = HOST_KERNELS[DEFAULT_KERNEL],
    vmm: Vmm = Vmm.QEMU,
) -> bytes:
    """The save area (4096 bytes) of a vCPU that starts in real mode at ``eip`` (32 bits).

    ``signature`` is CPUID Fn0000_0001_EAX of the CPU model. EC2 and GCE do not show it to the guest, and they do not
    set MXCSR and FCW with any kernel.
    """
    segments = [(offset, selector, _EC2.get(offset, attributes) if vmm is Vmm.EC2 else attributes, limit)
                for offset, selector, attributes, limit in _FLAT]  # fmt: skip
    code = 0x9A if vmm is Vmm.EC2 and eip == BSP_EIP else 0x9B
    page = _page(segments, (0xF000, code, 0xFFFF, eip & 0xFFFF0000), eip & 0xFFFF, guest_features)
    _put(page, 0x268, "Q", 0x00070106 if vmm is Vmm.GCE else _PAT)
    _put(page, 0x310, "Q", signature if vmm is Vmm.QEMU else _NO_CPU)
    if vmm is Vmm.QEMU:
        _put(page, 0x408, "I", kernel.mxcsr)
        _put(page, 0x410, "H", kernel.fcw)
    return bytes(page)


def svsm_vmsa(eip: int, signature: int) -> bytes:
    """The save area (4096 bytes) of every vCPU of a guest that starts in an SVSM at ``eip``, as QEMU sets it up.

    FCW is zero here and MXCSR is not, as in sev-snp-measure, the only other source of these digests.
    """
    page = _page(_PROTECTED, (0x08, 0xC9B, 0xFFFFFFFF, 0), eip, SNP_ACTIVE)
    _put(page, 0x158, "Q", 0x11)  # CR0: PE, ET
    _put(page, 0x268, "Q", _PAT)
    _put(page, 0x310, "Q", signature)
    _put(page, 0x408, "I", 0x1F80)
    return bytes(page)


_PAT = 0x0007040600070406


def _page(
    segments: "tuple[tuple[int, int, int, int], ...] | list[tuple[int, int, int, int]]",
    code: tuple[int, int, int, int],
    rip: int,
    guest_features: int,
) -> bytearray:
    page = bytearray(SIZE)
    for offset, selector, attributes, limit in segments:
        _put(page, offset, "HHIQ", selector, attributes, limit, 0)
    _put(page, 0x10, "HHIQ", *code)
    for offset, value in (
        (0xD0, 0x1000),  # EFER: SVME
        (0x148, 0x40),  # CR4: MCE
        (0x158, 0x10),  # CR0: ET
        (0x160, 0x400),  # DR7
        (0x168, 0xFFFF0FF0),  # DR6
        (0x170, 0x2),  # RFLAGS
        (0x178, rip),
        (0x3B0, guest_features),  # SEV_FEATURES
        (0x3E8, 0x1),  # XCR0
    ):
        _put(page, offset, "Q", value)
    return page


def _put(page: bytearray, offset: int, layout: str, *values: int) -> None:
    struct.pack_into("<" + layout, page, offset, *values)


def cpu_signature(family: int, model: int, stepping: int) -> int:
    """CPUID Fn0000_0001_EAX (32 bits) of a processor, from its whole family and model as in /proc/cpuinfo."""
    base, extended = min(family, 0xF), max(family - 0xF, 0)
    if not (0 <= family <= 0xF + 0xFF and 0 <= model <= 0xFF and 0 <= stepping <= 0xF):
        raise UserError(f"CPU {family}/{model}/{stepping}: no such family, model and stepping")
    return extended << 20 | model >> 4 << 16 | base << 8 | (model & 0xF) << 4 | stepping


# Family, model, stepping and the highest version of each model in QEMU's builtin_x86_defs.
_MODELS = {
    "EPYC": (0x17, 0x01, 2, 5),
    "EPYC-Rome": (0x17, 0x31, 0, 5),
    "EPYC-Milan": (0x19, 0x01, 1, 3),
    "EPYC-Genoa": (0x19, 0x11, 0, 2),
    "EPYC-Turin": (0x1A, 0x00, 0, 2),
}


def _signatures() -> dict[str, int]:
    signatures = {}
    for name, (family, model, stepping, versions) in _MODELS.items():
        signatures[name] = cpu_signature(family, model, stepping)
        signatures.update({f"{name}-v{version}": signatures[name] for version in range(1, versions + 1)})
    return {**signatures, "EPYC-IBPB": signatures["EPYC"]}


VCPU_SIGNATURES = _signatures()
_NUMBERS = re.compile(r"(0x[0-9a-f]{1,3}|[0-9]{1,3})/(0x[0-9a-f]{1,2}|[0-9]{1,3})/(0x[0-9a-f]|[0-9]{1,2})")


def vcpu_signature(model: str) -> int:
    """The CPUID signature (32 bits) that is in RDX when a guest with this CPU starts.

    ``model`` is QEMU's name of the CPU model, or family/model/stepping, each decimal or hexadecimal (0x19).
    """
    if numbers := _NUMBERS.fullmatch(model.lower()):
        return cpu_signature(*(int(number, 0) for number in numbers.groups()))
    if model not in VCPU_SIGNATURES:
        known = ", ".join(sorted(VCPU_SIGNATURES))
        raise UserError(f"vcpu_model: found {model!r}, expected family/model/stepping, or one of {known}")
    return VCPU_SIGNATURES[model]
