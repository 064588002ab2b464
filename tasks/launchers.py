# SPDX-License-Identifier: Apache-2.0
"""The guest of a VM config for other launchers: libvirt, KubeVirt, systemd-vmspawn.

Commands, not artefacts: each run compares all files of the VM config with their digests, and which files these are is
known only when the VM config is read.
"""

from pathlib import Path
from typing import Any

from tasks import verity
from tasks.graph import Task, clean, command
from tasks.project import BUILD, asked, settings
from tasks.vm_config import launched

OUTPUT = BUILD / "launchers"


def task_export_libvirt() -> Task:
    """Write a libvirt domain of the guest to build/launchers [VM_CONFIG NAME …]

    Writes domain XML with which libvirt starts the guest of a VM config on SEV-SNP: the same values as run_sev_snp_*
    gives to QEMU, and the same launch digest. All files are compared with the VM config before. VM_CONFIG is the guest
    of setup_verity, or the VM config in the directory of a volume. docs/launchers.md has more.

    Next: virsh define on the host; then ./doitw attest_verity HOST=…
    """
    values = settings()
    return _export(
        "sevsnp.launchers.libvirt:export_libvirt",
        files=values.text("EXPORT_FILES"),
        network=values.text("LIBVIRT_NETWORK"),
        template=Path("templates/libvirt-domain.xml.j2"),
        output=OUTPUT,
    )


def task_export_kubevirt() -> Task:
    """Write a KubeVirt VirtualMachine to build/launchers [KUBEVIRT_FIRMWARE …]

    Writes the VirtualMachine with which KubeVirt starts the guest of a VM config on SEV-SNP, if the cluster can launch
    it with the same digest. Otherwise it names every value that the cluster would launch otherwise.

    Next: kubectl apply; then ./doitw attest_verity HOST=…
    """
    values = settings()
    return _export(
        "sevsnp.launchers.kubevirt:export_kubevirt",
        firmware=values.optional_path("KUBEVIRT_FIRMWARE"),
        kernel_image=values.text("KUBEVIRT_KERNEL"),
        template=Path("templates/kubevirt-vm.yaml.j2"),
        output=OUTPUT,
    )


def task_export_vmspawn() -> Task:
    """Say what systemd-vmspawn would launch otherwise than the VM config [VM_CONFIG]

    Names every value of a VM config that systemd-vmspawn --coco=sev-snp would launch otherwise. There is always one,
    the CPU model, so no VM config can be exported to it now.

    Next: ./doitw export_libvirt
    """
    return _export("sevsnp.launchers.vmspawn:export_vmspawn")


def _export(function: str, **arguments: Any) -> Task:
    values = settings()
    made = command(
        function,
        alone=True,
        vm_config=values.path("VM_CONFIG", launched(verity.config("snp"))),
        asked=asked(),
        name=values.text("NAME"),
        memory=values.number("MEMORY"),
        **arguments,
    )
    return {**made, "clean": [(clean, [[OUTPUT]])]}
