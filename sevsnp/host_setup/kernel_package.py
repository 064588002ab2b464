# SPDX-License-Identifier: Apache-2.0
"""The packages with a kernel for SEV-SNP hosts, by distribution, and what apt-get would do to install one."""

import re
from dataclasses import dataclass
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.host_setup.software_checks import OLDEST_KERNEL, kernel_version
from sevsnp.system import command
from sevsnp.system.command_failed import CommandFailed


@dataclass(frozen=True)
class KernelPackage:
    """The package whose dependency is a distribution's newest kernel, and the suite that has it, if not the usual."""

    name: str
    suite: str = ""

    @property
    def words(self) -> list[str]:
        """The words of apt-get that install it."""
        suite = ["--target-release", self.suite] if self.suite else []
        return ["install", "--yes", "--no-install-recommends", *suite, self.name]


KERNELS = {
    ("debian", "12"): KernelPackage("linux-image-amd64", "bookworm-backports"),
    ("debian", "13"): KernelPackage("linux-image-amd64"),
    ("ubuntu", "24.04"): KernelPackage("linux-generic-hwe-24.04"),
    ("ubuntu", "25.10"): KernelPackage("linux-generic"),
    ("ubuntu", "26.04"): KernelPackage("linux-generic"),
}


@dataclass(frozen=True)
class Installation:
    """What apt-get would do: the packages that it would add, and those that it would upgrade from which version."""

    new: tuple[str, ...]
    upgraded: dict[str, str]


def simulate(package: KernelPackage, root: Path = Path("/")) -> Installation:
    """Ask apt-get for its own simulation, which needs no root and changes nothing.

    Raises :class:`UserError` if it knows no such package, and if a new enough kernel is neither among what it would add
    nor installed.
    """
    try:
        said = command.run(["apt-get", "--simulate", *package.words], timeout=300).decode(errors="replace")
    except CommandFailed as error:
        suite = f" (suite {package.suite})" if package.suite else ""
        raise UserError(
            f"apt-get finds no {package.name}{suite}: {error.message.splitlines()[0]}",
            f"add {package.suite or 'the suite of this system'} to the sources of apt, then: ./doitw prepare_host",
        ) from None
    # Inst NAME [OLD VERSION] (NEW VERSION …); without the old one the package is new.
    lines = re.findall(r"^Inst (\S+) (?:\[(\S+)\] )?\(", said, re.MULTILINE)
    found = Installation(tuple(name for name, old in lines if not old), {name: old for name, old in lines if old})
    names = [name.removeprefix("linux-image-") for name in found.new if name.startswith("linux-image-")]
    names += [path.name for path in (root / "lib/modules").glob("*")]
    if not any(version >= OLDEST_KERNEL for name in names if (version := kernel_version(name))):
        would = ", ".join(name for name in found.new if name.startswith("linux-image-")) or "no new kernel"
        raise UserError(
            f"{package.name}: apt-get would install {would}, expected Linux 6.11 or newer",
            "update the sources of apt, or install Linux 6.11 or newer by hand, then: ./doitw check_host",
        )
    return found
