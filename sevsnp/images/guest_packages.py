# SPDX-License-Identifier: Apache-2.0
"""The guest's packages layer: a root file system of installed Debian packages and nothing else, as a tar.

mmdebstrap installs exactly the pinned files from a local repository, without a network, in a user namespace for an
ordinary user or in a chroot for root. The same packages give the same bytes for every user, directory, time and host.
"""

import gzip
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from sevsnp.archives.rootfs import EPOCH, Layer, make_rootfs, text_entry
from sevsnp.archives.tar import Entry
from sevsnp.errors import UserError
from sevsnp.system import own_mounts, progress
from sevsnp.system.command import find, run, temporary_directory
from sevsnp.system.files import sha256_file
from sevsnp.system.subordinate_ids import check_subordinate_ids

# Seconds. An installation takes a minute; a busy, slow disk may take ten times that.
INSTALL_TIMEOUT = 1800.0
_SYSCTL = Path("/proc/sys")

# Files that the installation leaves behind and that do not belong to the packages: the installer's logs, caches with
# inode numbers and times, backups of files that maintainer scripts edited, random identities and keys.
REMOVED = (
    "**/__pycache__",  # byte code contains the time of its source; Python makes it again if it may write
    "dev/**",  # devtmpfs covers it; its nodes differ between root and user namespace
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "etc/hostname",  # the building host's; the guest's own comes with the project's files
    "etc/resolv.conf",
    "etc/ssh/ssh_host_*",
    "etc/apt/sources.list",
    "etc/apt/sources.list.d/*",
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "run/**",
    "tmp/**",
    "var/cache/apt/**",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/extended_states",
    "var/lib/apt/lists/**",
    "var/lib/dbus/machine-id",
    "var/lib/dpkg/*-old",
    "var/lib/dpkg/lock*",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/random-seed",
    "var/lib/systemd/credential.secret",
    "var/log/**/*.log",
    "var/log/apt/*",
    "var/log/btmp",
    "var/log/faillog",
    "var/log/journal",  # its ACL would be lost, and without the directory the journal stays in memory
    "var/log/lastlog",
    "var/log/tallylog",
    "var/log/wtmp",
    "var/tmp/**",
)
# Emptied, not removed: without /etc/machine-id systemd treats the boot as a first boot and enables units by preset.
EMPTIED = ("etc/machine-id",)


@dataclass(frozen=True)
class Package:
    """A package file, and its control data for the repository index."""

    path: Path
    control: str

    def field(self, name: str) -> str:
        """A one-line control field, empty if absent."""
        match = re.search(rf"^{name}: *(.*)$", self.control, re.MULTILINE)
        return match[1] if match else ""

    @property
    def name(self) -> str:
        return self.field("Package")


def read_packages(debs: Sequence[Path]) -> list[Package]:
    """The packages in the files ``debs``, by name. Raises UserError for missing, damaged or doubled packages."""
    if not debs:
        raise UserError("no guest packages given, expected .deb files", "run: ./doitw packages")
    packages: dict[str, Package] = {}
    for path in debs:
        package = Package(path, run(["dpkg-deb", "-f", path]).decode().strip())
        other = packages.setdefault(package.name, package)
        if other is not package:
            raise UserError(f"{path}: package {package.name} is also in {other.path}, expected one version of each")
    return [packages[name] for name in sorted(packages)]


def write_repository(packages: Sequence[Package], directory: Path) -> None:
    """Make a flat repository of copies of the package files in ``directory``; apt reads it with ``deb [trusted=yes]``.

    Copies, because the namespace's root is another user outside and may read nothing below a private home directory.
    """
    stanzas = []
    for package in packages:
        # Names with an epoch contain %3a, which apt would decode once more: the copies get names without a version.
        name = f"{package.name}_{package.field('Architecture')}.deb"
        shutil.copyfile(package.path, directory / name)
        (directory / name).chmod(0o644)
        size, digest = package.path.stat().st_size, sha256_file(package.path)
        stanzas.append(f"{package.control}\nFilename: ./{name}\nSize: {size}\nSHA256: {digest}\n")
    index = "\n".join(stanzas).encode()
    (directory / "Packages").write_bytes(index)
    (directory / "Packages.gz").write_bytes(gzip.compress(index, mtime=0))
    release = ["Suite: pinned", "Codename: pinned", "Architectures: all amd64", "SHA256:"]
    for name in ("Packages", "Packages.gz"):
        data = (directory / name).read_bytes()
        release.append(f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}")
    (directory / "Release").write_text("\n".join(release) + "\n")
    for path in directory.iterdir():
        path.chmod(0o644)


def namespace_mode() -> str:
    """``root`` or ``unshare``: the way in which mmdebstrap can become root in the new tree.

    Raises UserError naming what is missing, if an ordinary user cannot use user namespaces.
    """
    if os.geteuid() == 0:
        return "root"
    if not find("newuidmap"):
        raise UserError(
            "newuidmap: command not found; an ordinary user needs it to install packages into a directory",
            "run as root: apt-get install uidmap",
        )
    check_subordinate_ids()
    try:
        # mmdebstrap itself: a security policy (Ubuntu's) may allow it what is forbidden to other programs.
        run(["mmdebstrap", "--unshare-helper", "true"], timeout=20)
    except UserError as error:
        raise UserError(
            "user namespaces are not allowed to ordinary users on this machine",
            f"run this task as root, or allow them, as root: sysctl -w {' '.join(forbid)}"
            if (forbid := _switches())
            else "run this task as root",
        ) from error
    return "unshare"


def _switches() -> list[str]:
    """The settings of this kernel that forbid user namespaces, with the values that allow them."""
    values = {
        "kernel.unprivileged_userns_clone": ("0", "1"),
        "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
        "user.max_user_namespaces": ("0", "65536"),
    }
    places = {name: _SYSCTL.joinpath(*name.split(".")) for name in values}
    return [
        f"{name}={allowing}"
        for name, (forbidding, allowing) in values.items()
        if places[name].exists() and places[name].read_text().strip() == forbidding
    ]


def make_packages_layer(debs: Sequence[Path] | Path, output: Path, *, epoch: int = EPOCH) -> None:
    """Install the packages ``debs`` (files, or a directory of them); their root file system becomes the tar ``output``.

    The set must be closed: it contains every dependency and every Essential package. Takes about a minute, and a few
    hundred MB in the temporary directory (TMPDIR). Reads nothing from the network.
    """
    files = sorted(debs.glob("*.deb")) if isinstance(debs, Path) else sorted(debs)
    packages = read_packages(files)
    mode = namespace_mode()
    # Not beside the output: the namespace's root must have access to every directory above.
    with temporary_directory("guest-packages.") as scratch:
        scratch.chmod(0o755)
        repository, raw = scratch / "repository", scratch / "root.tar"
        repository.mkdir()
        repository.chmod(0o755)
        write_repository(packages, repository)
        progress.step("packing what was installed")
        with progress.counted("installing packages", len(packages), lambda: _installed(scratch)):
            _install(packages, repository, raw, mode, epoch)
        progress.step("tidying up")

        def settled(entries: Iterable[Entry]) -> Iterator[Entry]:
            # Only files have the time from their package; directories and links have that of the build or of a rename.
            return (entry if entry.content else replace(entry, mtime=epoch) for entry in entries)

        layer = Layer.from_tar(raw)
        clean = Layer("cleaned", [text_entry(name, b"", mtime=epoch) for name in EMPTIED], remove=REMOVED + EMPTIED)
        make_rootfs([layer, clean], output, epoch=epoch, filters=[settled])


def _installed(scratch: Path) -> int:
    """How many packages mmdebstrap has installed so far, from dpkg's log: an unpacked package counts as half."""
    logs = scratch.glob("mmdebstrap.*/var/log/dpkg.log")
    text = "".join(log.read_text(errors="replace") for log in logs)
    return len({*re.findall(r" status (?:unpacked|installed) \S+", text)}) // 2


def run_in_root(debs: Path, scratch: Path, hooks: Sequence[str], *, timeout: float) -> None:
    """Install the packages in the directory ``debs`` into a new root, run mmdebstrap's ``hooks`` in it, and remove it.

    The hooks have the form of mmdebstrap's --customize-hook: special hooks, as ``copy-in``, or shell commands that get
    the root as ``$1``. ``scratch`` is an empty directory that other users may enter; ``timeout`` is in seconds, for all
    together. Errors as for :func:`make_packages_layer`.
    """
    packages = read_packages(sorted(debs.glob("*.deb")))
    mode = namespace_mode()
    repository = scratch / "repository"
    repository.mkdir()
    repository.chmod(0o755)
    write_repository(packages, repository)
    _install(packages, repository, scratch / "none", mode, EPOCH, form="null", hooks=hooks, timeout=timeout)


def _install(
    packages: Sequence[Package],
    repository: Path,
    raw: Path,
    mode: str,
    epoch: int,
    *,
    form: str = "tar",
    hooks: Sequence[str] = (),
    timeout: float = INSTALL_TIMEOUT,
) -> None:
    names = [package.name for package in packages if package.field("Essential") != "yes"]
    mmdebstrap = find("mmdebstrap")  # own_mounts would report a missing program in a traceback
    if mmdebstrap is None:
        raise UserError("mmdebstrap: command not found", "run: ./doitw install_dependencies")
    # Root's mounts in the new tree would outlive a killed mmdebstrap; those of a namespace end with it.
    separated = [sys.executable, "-I", "-S", own_mounts.__file__] if mode == "root" else []
    run(
        [
            *separated,
            mmdebstrap,
            f"--mode={mode}",
            "--variant=essential",
            f"--format={form}",
            "--architectures=amd64",
            f"--include={','.join(names)}",
            "--aptopt=APT::Install-Recommends false",
            "--aptopt=APT::Sandbox::User root",
            "--aptopt=Acquire::Languages none",
            # The host's proxy and mirror settings are for the network; the installation uses none.
            "--aptopt=Acquire::http::Proxy false",
            "--dpkgopt=force-confold",
            "--dpkgopt=force-unsafe-io",
            # If /proc cannot be mounted, mmdebstrap only warns, and packages are silently set up differently.
            '--customize-hook=test -e "$1/proc/self/status" || { echo /proc cannot be mounted for them >&2; exit 1; }',
            *(f"--customize-hook={hook}" for hook in hooks),
            "pinned",
            raw,
            f"deb [trusted=yes] copy:{quote(str(repository))} ./",  # a blank would end the address
        ],
        env={"SOURCE_DATE_EPOCH": str(epoch), "TMPDIR": str(raw.parent), "DEBIAN_FRONTEND": "noninteractive"},
        timeout=timeout,
        hint="the set of packages may not be whole; fetch what is missing: ./doitw packages",
    )
