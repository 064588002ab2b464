# SPDX-License-Identifier: Apache-2.0
"""QEMU's command line for a confidential guest, and checks of the values that QEMU itself does not check.

QEMU refuses an ID block or HOST_DATA of another length. It accepts every guest policy, every length of the ID
authentication, and an ID block alone (target/i386/sev.c). The secure processor then refuses the launch with a number,
or the guest is another one than the owner measured.
"""

import base64
import re
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.measurement.id_block import Identity, check_policy, read_identity
from sevsnp.qemu.process import common_arguments
from sevsnp.qemu.run_options import RunOptions
from sevsnp.vm_config.config import Launch, making

# GUEST_POLICY, AMD 56860: bit 17 must be one, bits 26 to 63 must be zero.
_POLICY_ONE, _POLICY_BITS = 1 << 17, 26
_HOST_DATA_SIZE = 32
_MIB = 20
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def snp_command(
    launch: Launch, options: RunOptions, qmp_socket: Path, cbitpos: int, reduced_phys_bits: int
) -> list[str]:
    """QEMU's whole command line for a measured guest on SEV-SNP, one option and its value after another.

    ``cbitpos`` and ``reduced_phys_bits`` are those of this processor. Raises :class:`UserError` as :func:`check_snp`.
    """
    return [
        *snp_arguments(launch, options.memory, cbitpos, reduced_phys_bits),
        *common_arguments(launch, options, qmp_socket),
    ]


def snp_arguments(
    launch: Launch, memory: int, cbitpos: int, reduced_phys_bits: int, *, kernel_hashes: bool = True
) -> list[str]:
    """The confidential machine: KVM, and the hashes of kernel, initrd and command line in the launch digest.

    ``memory`` is in bytes; the guest gets the whole MiB of it. Raises :class:`UserError` as :func:`check_snp`.
    """
    check_snp(launch)
    mib = memory >> _MIB
    return [
        *("-machine", "q35,smm=off,vmport=off,confidential-guest-support=snp,memory-backend=ram,kernel-irqchip=split"),
        *("-accel", "kvm"),
        *("-cpu", launch.vcpu_model),
        *("-m", f"{mib}M"),
        # QEMU compares the two sizes.
        *("-object", f"memory-backend-memfd,id=ram,size={mib << _MIB},share=true,prealloc=false"),
        *("-object", snp_object(launch, cbitpos, reduced_phys_bits, kernel_hashes=kernel_hashes)),
    ]


def snp_object(launch: Launch, cbitpos: int, reduced_phys_bits: int, *, kernel_hashes: bool = True) -> str:
    """The value of ``-object`` for sev-snp-guest."""
    properties = [
        "sev-snp-guest",
        "id=snp",
        f"policy={launch.guest_policy:#x}",
        f"cbitpos={cbitpos}",
        f"reduced-phys-bits={reduced_phys_bits}",
        f"kernel-hashes={_switch(kernel_hashes)}",
        f"host-data={base64.b64encode(launch.host_data).decode()}",
    ]
    if identity := identity_of(launch):
        block, auth = (base64.b64encode(part.encode()).decode() for part in (identity.block, identity.auth))
        properties += [f"id-block={block}", f"id-auth={auth}"]
        properties += [f"author-key-enabled={_switch(identity.auth.has_author)}"]
    return ",".join(properties)


def _switch(on: bool) -> str:
    return "on" if on else "off"


def identity_of(launch: Launch) -> Identity | None:
    """The ID block of a launch with its authentication, or None.

    Raises :class:`UserError` for one without the other, and for files that are not exactly 96 and 4096 bytes in base64.
    """
    if not launch.id_block and not launch.id_auth:
        return None
    if not launch.id_block or not launch.id_auth:
        found = "id_block" if launch.id_block else "id_auth"
        raise UserError(f"files.{found}: found it alone, expected id_block and id_auth, or neither")
    return read_identity(launch.id_block.path, launch.id_auth.path)


def check_snp(launch: Launch) -> None:
    """Raises :class:`UserError` for values of a launch that QEMU would take, or would refuse in its own words only."""
    policy = launch.guest_policy
    if not policy & _POLICY_ONE or policy >> _POLICY_BITS:
        raise UserError(
            f"guest_policy: found {policy:#x}, expected bit 17 set (0x20000) and bits 26 to 63 clear (AMD 56860)",
            f"make the VM config again: {making(launch.cmdline.path, launch.workflow)} POLICY=0x30000",
        )
    if len(launch.host_data) != _HOST_DATA_SIZE:
        raise UserError(f"host_data: found {len(launch.host_data)} bytes, expected {_HOST_DATA_SIZE}")
    if not _MODEL.fullmatch(launch.vcpu_model):
        # A comma would begin another property, and the launch digest knows models only.
        raise UserError(f"vcpu_model: found {launch.vcpu_model!r}, expected the name of a QEMU CPU model, as EPYC-v4")
    if not 1 <= launch.vcpus <= 255:
        raise UserError(f"vcpus: found {launch.vcpus}, expected 1 to 255")
    if identity := identity_of(launch):
        check_policy(identity, policy)
