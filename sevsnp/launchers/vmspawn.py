# SPDX-License-Identifier: Apache-2.0
"""What systemd-vmspawn would launch otherwise than a VM config says.

Sources, read and not run: systemd's src/vmspawn/vmspawn.c (CPU, disks, command line), and the change that added
--coco=sev-snp (systemd#42193). It takes a firmware, a kernel and an initrd, and has their hashes measured. It has no
option for the CPU model, the guest policy, HOST_DATA and the ID block.
"""

from collections.abc import Mapping
from pathlib import Path

from sevsnp.launchers.guest import Guest, read_guest, refuse

# QEMU's own default, which vmspawn leaves as it is.
_POLICY = 0x30000


def export_vmspawn(*, vm_config: Path, asked: Mapping[str, int | str], name: str, memory: int) -> None:
    """Raises :class:`UserError` that names every value of a VM config that vmspawn would launch otherwise.

    There is always one, the CPU model: vmspawn has no option for it.
    """
    guest = read_guest(vm_config=vm_config, asked=asked, name=name, memory=memory, files="", launcher="systemd-vmspawn")
    refuse(guest, "systemd-vmspawn", refused_fields(guest))


def refused_fields(guest: Guest) -> dict[str, str]:
    """The fields of the VM config that vmspawn would launch otherwise, each with the reason."""
    launch = guest.launch
    found = {
        "launch.vcpu_model": f"it starts QEMU with -cpu max: the host's own CPU is measured, not {launch.vcpu_model}"
    }
    if launch.guest_policy != _POLICY:
        found["launch.guest_policy"] = f"it has no option for it: {_POLICY:#x}, not {launch.guest_policy:#x}"
    if any(launch.host_data):
        found["launch.host_data"] = f"it has no option for it: zeros, not {launch.host_data.hex()}"
    if guest.identity:
        found["files.id_block, files.id_auth"] = "it has no option for them"
    if not any(word.startswith("root=") for word in guest.cmdline.split(" ")):
        found["files.cmdline"] = "it adds root=… for the disk of --image, which the measured command line does not have"
    for number, disk in enumerate(launch.disks):
        if disk.path.name != disk.role:
            found[f"disk[{number}].role"] = (
                f"a disk has its file's name as serial number: {disk.path.name}, not {disk.role}"
            )
    return found
