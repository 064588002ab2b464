# SPDX-License-Identifier: Apache-2.0
"""The programs that the pipeline runs from the host itself, their apt packages, and the installation of missing ones.

Everything else (QEMU, the firmware, file-system tools, the kernel) is fetched into build/ and run in place.
"""

import importlib.util
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sevsnp.errors import UserError
from sevsnp.packages import KEYRING
from sevsnp.system import command
from sevsnp.system.as_root import agreed, has_terminal, root_words
from sevsnp.system.subordinate_ids import check_subordinate_ids

# unattended-upgrades may hold dpkg's lock on a machine that has just booted.
_APT_GET = ("apt-get", "-o", "DPkg::Lock::Timeout=300")


@dataclass(frozen=True)
class Dependency:
    """An apt package, its purpose in the pipeline, and a test whether its programs are here."""

    package: str
    why: str
    present: Callable[[], bool]
    needed: Callable[[], bool] = lambda: True


def _has(*programs: str) -> Callable[[], bool]:
    # The programs count, not dpkg's records: another package, or the user, may have installed them.
    return lambda: all(command.find(program) for program in programs)


UIDMAP = Dependency(
    "uidmap",
    "gives those trees root's files although an ordinary user builds them (newuidmap)",
    _has("newuidmap", "newgidmap"),
    needed=lambda: os.geteuid() != 0,
)
DEPENDENCIES: tuple[Dependency, ...] = (
    Dependency(
        "mmdebstrap",
        "unpacks Debian packages into the guest's root, the initramfs and the tools, without root",
        _has("mmdebstrap"),
    ),
    UIDMAP,
    Dependency("mount", "lets mmdebstrap mount /proc for the packages that it installs", _has("mount")),
    Dependency(
        "debian-archive-keyring",
        "checks the signatures of the Debian archive, which Ubuntu's own keys cannot",
        KEYRING.is_file,
    ),
    Dependency("openssh-client", "makes SSH keys and logs in to the guest", _has("ssh", "ssh-keygen")),
    Dependency(
        "python3-venv",
        "makes .venv, here and in the tests",
        lambda: importlib.util.find_spec("ensurepip") is not None,
    ),
)


# Needed only to draw the pipeline.
GRAPHVIZ = Dependency("graphviz", "lays out the picture of the pipeline", _has("dot"))


def missing() -> list[Dependency]:
    """The packages that this user needs on this machine and that are missing."""
    return [dependency for dependency in DEPENDENCIES if dependency.needed() and not dependency.present()]


def install_command(packages: Sequence[str]) -> list[str]:
    """The command that installs ``packages``, as root would type it."""
    return ["apt-get", "install", "--yes", "--no-install-recommends", *packages]


def install_dependencies(also: Sequence[Dependency] = ()) -> None:
    """Print what is missing and why, ask if a user can answer, and install it as root or through sudo."""
    wanted = [*missing(), *(one for one in also if not one.present())]
    if wanted:
        _install_wanted(wanted)
    # Before anything is fetched: only root can repair this, so it must not be found out later.
    check_subordinate_ids()
    if not wanted:
        print("install_dependencies: nothing is missing")


def is_ready() -> bool:
    """Whether :func:`install_dependencies` would have nothing to do and nothing to refuse."""
    try:
        check_subordinate_ids()
    except UserError:
        return False
    return not missing()


def _install_wanted(wanted: Sequence[Dependency]) -> None:
    for dependency in wanted:
        print(f"missing: {dependency.package}: {dependency.why}")
    packages = [dependency.package for dependency in wanted]
    by_hand = f"run as root: {shlex.join(install_command(packages))}"
    if command.find("apt-get") is None:
        raise UserError(
            "apt-get: command not found, expected Debian or Ubuntu",
            f"install with this system's own package manager what Debian calls: {', '.join(packages)}",
        )
    as_root = root_words("packages are missing, and only root can install them", by_hand)
    question = f"Install with: {shlex.join([*as_root, *install_command(packages)])}"
    if has_terminal() and not agreed(question, default=True):
        raise UserError(f"not installed: {', '.join(packages)}", by_hand)
    _install(packages, as_root, by_hand)
    if still := [dependency.package for dependency in wanted if not dependency.present()]:
        raise UserError(f"installed, but still not found: {', '.join(still)}", by_hand)
    print(f"install_dependencies: installed {', '.join(packages)}")


def _install(packages: Sequence[str], as_root: Sequence[str], by_hand: str) -> None:
    # sudo clears the environment, so the variable is passed as an argument.
    apt_get = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", *_APT_GET]
    # A new machine has no package lists; an old one has lists of packages that the mirror has replaced.
    if command.run_attached([*apt_get, "--quiet", "update"]):
        print("apt-get update failed; trying with the present package lists")
    code = command.run_attached([*apt_get, *install_command(packages)[1:]])
    if code:
        raise UserError(f"apt-get could not install {', '.join(packages)} (exit code {code})", by_hand)
