# SPDX-License-Identifier: Apache-2.0
"""A KubeVirt VirtualMachine for the guest of a VM config.

Source: KubeVirt's API kubevirt.io/v1, with launchSecurity.snp as its enhancement for SEV-SNP has it: policy,
kernelHashes, hostData, idBlock, idAuth, authorKey. The firmware is not in that API: it is the one of the cluster's
virt-launcher image. Kernel and initrd come from a container image.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from sevsnp.errors import UserError
from sevsnp.launchers.guest import Guest, read_guest, refuse
from sevsnp.measurement.launch_digest import hash_file
from sevsnp.system.files import write_atomic
from sevsnp.system.template import text_template

# RFC 1123: each part of a name in Kubernetes; a claim's name has a role of at most 20 characters behind it.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")


def export_kubevirt(
    *,
    vm_config: Path,
    asked: Mapping[str, int | str],
    name: str,
    memory: int,
    firmware: Path | None,
    kernel_image: str,
    template: Path,
    output: Path,
) -> None:
    """Write the VirtualMachine of a VM config's guest to ``output``/NAME.yaml.

    ``firmware`` is a copy of the firmware in the cluster's virt-launcher image. ``kernel_image`` is a container image
    that has the guest's kernel as /vmlinuz and its initramfs as /initrd. Raises :class:`UserError` that names every
    value of the VM config that a cluster with these two would launch otherwise.
    """
    guest = read_guest(vm_config=vm_config, asked=asked, name=name, memory=memory, files="", launcher="KubeVirt")
    if not _NAME.fullmatch(guest.name):
        raise UserError(
            f"NAME={guest.name}: expected a name for Kubernetes: small letters, digits and dashes, at most 42",
            "take another name: NAME=second",
        )
    if kernel_image and not _IMAGE.fullmatch(kernel_image):
        raise UserError(f"KUBEVIRT_KERNEL={kernel_image}: expected a container image, as registry/name@sha256:DIGEST")
    refuse(guest, "KubeVirt", _refused(guest, firmware, kernel_image))
    text = text_template(template).render(guest=guest, launch=guest.launch, kernel_image=kernel_image)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{guest.name}.yaml"
    write_atomic(path, text)
    print(f"{path}: a KubeVirt VirtualMachine of {vm_config}")
    print(f"  launch digest {guest.digest.hex()}")
    for disk in guest.launch.disks:
        print(f"  its claim {guest.name}-{disk.role} must have {disk.path}")
    # An older API would drop fields that it does not know.
    print(f"  on the cluster: kubectl apply --validate=strict -f {quote(str(path))}")


def _refused(guest: Guest, firmware: Path | None, kernel_image: str) -> dict[str, str]:
    """The fields that the cluster would launch otherwise, each with the reason."""
    found = {}
    measured = guest.launch.firmware.sha256
    if firmware is None:
        found["files.firmware"] = (
            "KubeVirt starts the firmware of its virt-launcher image and no other; KUBEVIRT_FIRMWARE names a copy of it"
        )
    elif (other := hash_file(firmware, "firmware").hex()) != measured:
        found["files.firmware"] = f"the cluster's is {firmware} with SHA-256 {other}, the measured one has {measured}"
    if not kernel_image:
        found["files.kernel, files.initrd"] = (
            "KubeVirt takes them from a container image; KUBEVIRT_KERNEL names one with them as /vmlinuz and /initrd"
        )
    return found
