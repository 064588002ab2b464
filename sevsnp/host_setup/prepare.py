# SPDX-License-Identifier: Apache-2.0
"""`prepare_host`: install what a host for SEV-SNP guests needs, after asking, and undo it.

Every change is made by a command that runs as root (directly or through sudo); this process itself writes nothing
outside the checkout. ``root`` is / but for tests.
"""

import contextlib
import os
import pwd
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.host_setup.changes import RECORD, Changes, digest, read_changes
from sevsnp.host_setup.kernel_log import read_log
from sevsnp.host_setup.kernel_package import KERNELS, Installation, simulate
from sevsnp.host_setup.plan import GROUP, GRUB_FILE, UDEV_FILE, Machine, Plan, make_plan
from sevsnp.host_setup.platform_checks import Platform, processor
from sevsnp.host_setup.recorded import CPUINFO, Host
from sevsnp.system import command
from sevsnp.system.as_root import agreed, has_terminal, root_words
from sevsnp.system.text import printable

_APT_GET = ("env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300")
_UNDO = "what was changed so far is taken back with: ./doitw prepare_host --undo"
_AGAIN = "then check the host: ./doitw check_host"


def prepare_host(*, dry_run: bool, undo: bool, yes: bool, root: Path = Path("/")) -> None:
    """Show the plan, ask, and do it; with ``undo``, take back what earlier runs changed. ``yes``: do not ask.

    With ``dry_run`` nothing is asked and changed. Raises :class:`UserError` if the user does not agree, for an unknown
    distribution, and if a command fails.
    """
    if undo:
        _undo(dry_run, yes, root)
        return
    plan = make_plan(look(root))
    _check_files(plan, root)
    print(f"{plan.system}:")
    for line in plan.lines():
        print(f"  {line}")
    for note in plan.notes:
        print(note)
    if plan.empty:
        print(f"prepare_host: nothing to change; {_AGAIN}")
    elif dry_run:
        print("prepare_host: a dry run, nothing was changed")
    else:
        _Work(_consent(yes), root).do(plan)
        _say_next(plan)


def look(root: Path = Path("/")) -> Machine:
    """What the plan depends on."""

    def text(path: str) -> str:
        file = root / path
        return file.read_text(errors="replace") if file.is_file() else ""

    return Machine(
        os_release=text("etc/os-release"),
        kernel=text("proc/sys/kernel/osrelease").strip(),
        cmdline=text("proc/cmdline"),
        group=text("etc/group"),
        user=_user(),
        grub=command.find("update-grub") is not None,
        files={path: text(path) for path in (GRUB_FILE, UDEV_FILE)},
        unfit=_unfit(text(CPUINFO)),
    )


def _unfit(cpuinfo: str) -> str:
    found = processor(Platform(Host({CPUINFO: cpuinfo}), read_log(""), None))
    return printable(found.found) if found.status == "failed" else ""


def _user() -> str:
    """Who is to run guests: this user, or the one behind sudo. Empty for root, who needs no rights."""
    if os.geteuid() == 0:
        name = os.environ.get("SUDO_USER", "")
        return "" if name == "root" else name
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(os.geteuid()).pw_name
    return ""


def _check_files(plan: Plan, root: Path) -> None:
    """Refuse to overwrite a file that an earlier run has not written."""
    ours = read_changes(root).files
    for path in plan.files:
        place = root / path
        if place.exists() and ours.get(path) != digest(place.read_bytes()):
            move = shlex.join(["mv", str(place), f"{place}.old"])
            raise UserError(
                f"{place}: found a file that prepare_host did not write, or that was changed since",
                f"move it away, as root: {move}",
            )


def _consent(yes: bool) -> list[str]:
    """The words that make a command run as root, once the user has agreed."""
    if not yes and not has_terminal():
        raise UserError("prepare_host: nothing was changed: there is no terminal to ask on",
                        "agree to the plan with: ./doitw prepare_host --yes")  # fmt: skip
    words = root_words("only root can change this machine", "run as root: ./doitw prepare_host --yes")
    if not yes and not agreed(f"Do this{' with sudo' if words else ''}?", default=False):
        raise UserError(
            "prepare_host: nothing was changed", "look at the plan alone with: ./doitw prepare_host --dry-run"
        )
    return words


def _say_next(plan: Plan) -> None:
    if plan.reboot:
        print(f"prepare_host: reboot this machine now, with the BIOS set up as docs/hardware.md says; {_AGAIN}")
    else:
        print(f"prepare_host: log in again, so that the rights apply; {_AGAIN}")


@dataclass(frozen=True)
class _Work:
    """Makes the changes of a plan, or takes them back."""

    as_root: Sequence[str]
    root: Path

    def do(self, plan: Plan) -> None:
        found = Installation((), {})
        if plan.package:
            if command.run_attached([*self.as_root, *_APT_GET, "--quiet", "update"]):
                print("the package lists could not be updated; going on with the present ones")
            found = simulate(plan.package, self.root)
        users = (plan.user,) if plan.user else ()
        changes = read_changes(self.root).plus(
            files=plan.files, packages=found.new, upgraded=found.upgraded, users=users
        )
        self._write(RECORD, changes.text())
        if plan.package:
            self._run(*_APT_GET, *plan.package.words)
        for path, text in plan.files.items():
            self._write(path, text)
        if plan.user:
            self._run("usermod", "--append", "--groups", GROUP, plan.user)
        self._apply(plan.files)

    def undo(self, changes: Changes) -> None:
        """Take the changes back. What is in use, or was changed since, stays, and is said."""
        files = [path for path, sha256 in changes.files.items() if self._is_ours(path, sha256)]
        for path in files:
            self._run("rm", "--force", "--", str(self.root / path))
        for user in changes.users:
            # A user who is not in the group any more is no error: the state is the wanted one.
            self._run("gpasswd", "--delete", user, GROUP, needed=False)
        self._apply(files)
        if self._is_running(changes.packages):
            self._write(RECORD, Changes({}, changes.packages, changes.upgraded).text())
            return
        self._take_back(changes)
        record = self.root / RECORD
        self._run("rm", "--force", "--", str(record))
        self._run("rmdir", "--ignore-fail-on-non-empty", "--", str(record.parent))

    def _is_running(self, packages: Sequence[str]) -> bool:
        """Whether the kernel that runs is among the packages; they then stay, and that is said."""
        release = (self.root / "proc/sys/kernel/osrelease").read_text().strip()
        if f"linux-image-{release}" not in packages:
            return False
        print(f"left: {', '.join(packages)}: this machine runs Linux {release}")
        print("prepare_host: the rest is undone; boot another kernel, and then: ./doitw prepare_host --undo")
        return True

    def _take_back(self, changes: Changes) -> None:
        """Remove the packages that were added. A kernel's metapackage that was there before gets its old version.

        Other packages that were there before keep their newer versions: an old one may have known defects.
        """
        metapackages = {package.name for package in KERNELS.values()}
        older = {name: old for name, old in changes.upgraded.items() if name in metapackages}
        if left := sorted(changes.upgraded.keys() - older.keys()):
            print(f"left: newer versions of {', '.join(left)}")
        # One call: the metapackage needs the new kernel. apt-get removes a package whose name ends with a minus.
        words = [*(f"{name}={old}" for name, old in older.items()), *(f"{name}-" for name in changes.packages)]
        if words:
            self._run(*_APT_GET, "install", "--yes", "--allow-downgrades", "--no-install-recommends", *words)

    def _is_ours(self, path: str, sha256: str) -> bool:
        place = self.root / path
        if not place.is_file():
            return False
        if digest(place.read_bytes()) != sha256:
            print(f"left: {place}: it was changed since prepare_host wrote it")
            return False
        return True

    def _apply(self, files: Collection[str]) -> None:
        """Make the boot loader and udev read the changed ``files``."""
        if GRUB_FILE in files:
            self._run("update-grub")
        if UDEV_FILE in files:
            self._run("udevadm", "control", "--reload", needed=False)
            self._run("udevadm", "trigger", "--name-match=sev", needed=False)

    def _write(self, path: str, text: str) -> None:
        with command.temporary_directory("sevsnp-host-") as scratch:
            (scratch / "file").write_text(text)
            self._run("install", "-D", "--mode=644", str(scratch / "file"), str(self.root / path))

    def _run(self, *words: str, needed: bool = True) -> None:
        code = command.run_attached([*self.as_root, *words])
        if code and needed:
            raise UserError(f"{' '.join(words)}: exit code {code}", _UNDO)


def _undo(dry_run: bool, yes: bool, root: Path) -> None:
    changes = read_changes(root)
    if not changes:
        print("prepare_host: nothing to undo: it has changed nothing on this machine")
        return
    for path in changes.files:
        print(f"  remove /{path}")
    for user in changes.users:
        print(f"  take {user} out of the group {GROUP}")
    if changes.packages:
        print(f"  remove packages: {', '.join(changes.packages)}")
    for name, old in changes.upgraded.items():
        print(f"  was upgraded: {name}, from {old}")
    if dry_run:
        print("prepare_host: a dry run, nothing was changed")
        return
    _Work(_consent(yes), root).undo(changes)
    print("prepare_host: undone; reboot this machine, so that it applies")
