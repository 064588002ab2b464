# SPDX-License-Identifier: Apache-2.0
"""A libvirt domain for the guest of a VM config: the same QEMU options that run_sev_snp_* gives, and the same digest.

Source: libvirt's "Domain XML format" (launchSecurity type sev-snp, since libvirt 10.5).
"""

from collections.abc import Mapping
from pathlib import Path
from shlex import quote

from sevsnp.errors import UserError
from sevsnp.launchers.guest import Guest, check_text, read_guest
from sevsnp.system.files import write_atomic
from sevsnp.system.template import html_template

# Slots 1 to 30 of bus 0 are free on q35; the network card has the first.
_MOST_DISKS = 26


def export_libvirt(
    *,
    vm_config: Path,
    asked: Mapping[str, int | str],
    name: str,
    memory: int,
    files: str,
    network: str,
    template: Path,
    output: Path,
) -> None:
    """Write the domain XML of a VM config's guest to ``output``/NAME.xml.

    ``network`` is the name of a network of the host's libvirt. Raises :class:`UserError` as :func:`read_guest`.
    """
    guest = read_guest(vm_config=vm_config, asked=asked, name=name, memory=memory, files=files, launcher="libvirt")
    text = render_domain(guest, network, template)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{guest.name}.xml"
    write_atomic(path, text)
    print(f"{path}: a libvirt domain of {vm_config}")
    print(f"  launch digest {guest.digest.hex()}")
    print(f"  on the host: virsh define {quote(str(path))} && virsh start {guest.name}")


def render_domain(guest: Guest, network: str, template: Path) -> str:
    """The domain XML. Every value of the guest is escaped for XML; one that XML cannot hold is refused."""
    launch = guest.launch
    if len(launch.disks) > _MOST_DISKS:
        raise UserError(f"{guest.source}: disk: found {len(launch.disks)}, expected at most {_MOST_DISKS}")
    paths = [launch.firmware.path, launch.kernel.path, launch.initrd.path, *(disk.path for disk in launch.disks)]
    check_text("XML", [*map(str, paths), guest.cmdline, network])
    return html_template(template).render(guest=guest, launch=launch, network=network)
