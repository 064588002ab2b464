"""What a vCPU starts with: the VMSA that the launch digest ends with, by the host's kernel, and QEMU's CPU models.

Sources: AMD APM volume 2 table B-4 (VMSA), QEMU target/i386/cpu.c (CPU models). Linux 6.9 began to set MXCSR and FCW;
6.6 to 6.8 switched debug swapping on (SEV_FEATURES bit 5); Secure TSC is bit 9.
"""

import struct
from dataclasses import dataclass

from sevsnp.errors import UserError

DEFAULT_LAYOUT = "linux-6.9"
BSP_EIP = 0xFFFFFFF0


@dataclass(frozen=True)
class Layout:
    """A kind of VMSA: whether it has MXCSR and FCW set, and the SEV_FEATURES that such hosts launch with.

    ``cs`` (of the first vCPU), ``ss`` and ``tr`` are segment attributes, ``rdx`` what stands in RDX where it is not the
    CPUID signature. ``cpuid_last`` is a launch that adds the CPUID page after all others.
    """

    floating_point: bool
    guest_features: int
    hosts: str
    cs: int = 0x9B
    ss: int = 0x93
    tr: int = 0x8B
    rdx: int | None = None
    cpuid_last: bool = False


LAYOUTS = {
    "linux-6.5": Layout(False, 0x1, "hosts before Linux 6.6"),
    "linux-6.6": Layout(False, 0x21, "Linux 6.6 to 6.8, with debug swapping"),
    "linux-6.9": Layout(True, 0x1, "Linux 6.9 and later"),
    "secure-tsc": Layout(True, 0x201, "Linux 6.18 and later, guests with Secure TSC"),
    # As sev-snp-measure has it; virtee/sev computes another digest, and no report was at hand to decide.
    "ec2": Layout(False, 0x1, "Amazon EC2", cs=0x9A, ss=0x92, tr=0x83, rdx=0x600, cpuid_last=True),
}


def find_layout(name: str) -> Layout:
    """The layout of that name. Raises :class:`UserError`."""
    if name not in LAYOUTS:
        raise UserError(f"VMSA layout: found {name!r}, expected one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def vmsa(eip: int, signature: int, guest_features: int, layout: str = DEFAULT_LAYOUT) -> bytes:
    """A vCPU's first save area (4096 bytes) as KVM and QEMU set it up, starting at ``eip``.

    ``signature`` is CPUID Fn1 EAX (32 bits), ``guest_features`` SEV_FEATURES (64 bits).
    """
    page = bytearray(4096)

    def put(offset: int, layout: str, *values: int) -> None:
        struct.pack_into("<" + layout, page, offset, *values)

    host = find_layout(layout)
    # Segments, 16 bytes each: selector, attributes, limit, base.
    for offset, attributes in ((0x00, 0x93), (0x20, host.ss), (0x30, 0x93), (0x40, 0x93), (0x50, 0x93),
                               (0x60, 0), (0x70, 0x82), (0x80, 0), (0x90, host.tr)):  # fmt: skip
        put(offset, "HHIQ", 0, attributes, 0xFFFF, 0)
    put(0x10, "HHIQ", 0xF000, host.cs if eip == BSP_EIP else 0x9B, 0xFFFF, eip & 0xFFFF0000)
    for offset, value in (
        (0xD0, 0x1000),  # EFER: SVME
        (0x148, 0x40),  # CR4: MCE
        (0x158, 0x10),  # CR0: ET
        (0x160, 0x400),  # DR7
        (0x168, 0xFFFF0FF0),  # DR6
        (0x170, 0x2),  # RFLAGS
        (0x178, eip & 0xFFFF),  # RIP
        (0x268, 0x0007040600070406),  # PAT
        (0x310, signature if host.rdx is None else host.rdx),  # RDX: CPUID Fn1 EAX
        (0x3B0, guest_features),  # SEV_FEATURES
        (0x3E8, 0x1),  # XCR0
    ):
        put(offset, "Q", value)
    if host.floating_point:
        put(0x408, "I", 0x1F80)  # MXCSR
        put(0x410, "H", 0x37F)  # x87 FCW
    return bytes(page)


# Family, model, stepping and the highest version of each model in QEMU's builtin_x86_defs.
_MODELS = {
    "EPYC": (0x17, 0x01, 2, 5),
    "EPYC-Rome": (0x17, 0x31, 0, 5),
    "EPYC-Milan": (0x19, 0x01, 1, 3),
    "EPYC-Genoa": (0x19, 0x11, 0, 2),
    "EPYC-Turin": (0x1A, 0x00, 0, 2),
}


def signature_of(family: int, model: int, stepping: int) -> int:
    """The CPUID signature (32 bits) of a processor. Source: AMD 25481, CPUID Fn0000_0001_EAX."""
    if not (0xF <= family <= 0x10E and 0 <= model <= 0xFF and 0 <= stepping <= 0xF):
        raise UserError(f"vCPU family {family}, model {model}, stepping {stepping}: not of an AMD processor with SNP")
    return (family - 0xF) << 20 | model >> 4 << 16 | 0xF << 8 | (model & 0xF) << 4 | stepping


def _signatures() -> dict[str, int]:
    signatures = {}
    for name, (family, model, stepping, versions) in _MODELS.items():
        signatures[name] = signature_of(family, model, stepping)
        signatures.update({f"{name}-v{version}": signatures[name] for version in range(1, versions + 1)})
    return {**signatures, "EPYC-IBPB": signatures["EPYC"]}


VCPU_SIGNATURES = _signatures()


def vcpu_signature(model: str) -> int:
    """The CPUID signature (32 bits) that a guest of this QEMU CPU model starts with in RDX."""
    if model not in VCPU_SIGNATURES:
        raise UserError(f"vcpu_model: found {model!r}, expected one of {', '.join(sorted(VCPU_SIGNATURES))}")
    return VCPU_SIGNATURES[model]
