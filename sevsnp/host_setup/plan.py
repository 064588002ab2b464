# SPDX-License-Identifier: Apache-2.0
"""What `prepare_host` would change on a machine: the plan is a pure function of what was found there."""

import re
from dataclasses import dataclass

from sevsnp.errors import UserError
from sevsnp.host_setup.kernel_package import KERNELS, KernelPackage
from sevsnp.host_setup.platform_checks import IOMMU_OFF
from sevsnp.host_setup.software_checks import OLDEST_KERNEL, kernel_version

GROUP = "kvm"
GRUB_FILE = "etc/default/grub.d/99-sev-snp.cfg"
UDEV_FILE = "etc/udev/rules.d/70-sev-snp.rules"
PARAMETERS = ("kvm_amd.sev=1", "kvm_amd.sev_es=1", "kvm_amd.sev_snp=1", "iommu=nopt")

# The last word wins, and GRUB puts this variable's words last.
_GRUB_TEXT = f"""\
# Made by prepare_host; prepare_host --undo removes it.
GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {" ".join(PARAMETERS)}"
"""
# The distributions let this group open /dev/kvm. QEMU opens /dev/sev to read and write.
_UDEV_TEXT = f"""\
# Made by prepare_host; prepare_host --undo removes it.
KERNEL=="sev", GROUP="{GROUP}", MODE="0660"
"""


@dataclass(frozen=True)
class Machine:
    """What was found: texts of files as they are, and the programs.

    ``user``: who is to run guests (empty: root alone). ``unfit``: the processor, if it can start no SEV-SNP guest.
    """

    os_release: str
    kernel: str
    cmdline: str
    group: str
    user: str
    grub: bool
    files: dict[str, str]
    unfit: str = ""


@dataclass(frozen=True)
class Plan:
    """What is to be changed; empty parts are as they should be already. ``notes``: what only the user can do."""

    system: str
    package: KernelPackage | None
    files: dict[str, str]
    user: str
    notes: tuple[str, ...]

    @property
    def empty(self) -> bool:
        return not (self.package or self.files or self.user)

    @property
    def reboot(self) -> bool:
        """Whether a change takes effect with the next boot only."""
        return bool(self.package or GRUB_FILE in self.files)

    def lines(self) -> list[str]:
        """The plan, a line each, as it is shown."""
        found = []
        if self.package:
            suite = f" from {self.package.suite}" if self.package.suite else ""
            found.append(f"install a newer kernel: {self.package.name}{suite}")
        if GRUB_FILE in self.files:
            found.append(f"write /{GRUB_FILE}, which adds to the kernel command line: {' '.join(PARAMETERS)}")
        if UDEV_FILE in self.files:
            found.append(f"write /{UDEV_FILE}: the group {GROUP} may open /dev/sev")
        if self.user:
            found.append(f"add {self.user} to the group {GROUP}, which may open /dev/kvm")
        return found


def make_plan(machine: Machine) -> Plan:
    """The plan for a machine. Raises :class:`UserError` for a distribution that is not known."""
    release = _os_release(machine.os_release)
    system = release.get("PRETTY_NAME") or "a system without a name in os-release"
    package = KERNELS.get((release.get("ID", ""), release.get("VERSION_ID", "")))
    if package is None:
        known = ", ".join(f"{name.capitalize()} {version}" for name, version in KERNELS)
        raise UserError(
            f"{system}: not known to prepare_host, expected one of: {known}",
            "docs/hardware.md says what a host needs: set it up by hand, and look at it with: ./doitw check_host",
        )
    version = kernel_version(machine.kernel)
    wanted = {UDEV_FILE: _UDEV_TEXT}
    notes = [f"even after these changes, no SEV-SNP guest will start here: {machine.unfit}"] if machine.unfit else []
    words = machine.cmdline.split()
    # No later word of the command line takes these back.
    notes += [f"by hand: take {word} out of the kernel command line" for word in IOMMU_OFF if word in words]
    if machine.grub:
        wanted[GRUB_FILE] = _GRUB_TEXT
    elif missing := [word for word in PARAMETERS if word not in words]:
        notes.append(f"by hand, because there is no update-grub: put on the kernel command line: {' '.join(missing)}")
    return Plan(
        system,
        package if version is None or version < OLDEST_KERNEL else None,
        {path: text for path, text in sorted(wanted.items()) if machine.files.get(path) != text},
        "" if machine.user in _members(machine.group) else machine.user,
        tuple(notes),
    )


def _os_release(text: str) -> dict[str, str]:
    """The variables of /etc/os-release (os-release(5)), without their quotes."""
    return {name: value.strip("\"'") for name, value in re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE)}


def _members(text: str) -> list[str]:
    """The members of :data:`GROUP` in the text of /etc/group."""
    found = re.search(rf"^{GROUP}:[^:]*:[^:]*:(.*)$", text, re.MULTILINE)
    return found[1].split(",") if found else []
