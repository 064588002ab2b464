# SPDX-License-Identifier: Apache-2.0
"""The guest's packages layer: a root filesystem of nothing but installed Debian packages, as a tar.

mmdebstrap installs exactly the pinned files from a local repository, without any network, in a user namespace for an
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

# Installing a guest takes a minute; a slow disk under load may take ten times that.
INSTALL_TIMEOUT = 1800.0
_SYSCTL = Path("/proc/sys")
_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))

# What installing leaves behind that is not the packages: the installer's logs, caches with inode numbers and times,
# backups of what maintainer scripts edited, identities and keys made up at random.
REMOVED = (
    "**/__pycache__",  # byte code carries the time of its source; Python makes it again where it may write
    "dev/**",  # devtmpfs covers it; which nodes exist depends on root or user namespace
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "etc/hostname",  # the building host's; the guest's own comes with our files
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
    "var/log/journal",  # its ACL would be lost, and without it the journal stays in memory
    "var/log/lastlog",
    "var/log/tallylog",
    "var/log/wtmp",
    "var/tmp/**",
)
# Emptied, not removed: without an /etc/machine-id systemd treats the boot as a first one and enables units by preset.
EMPTIED = ("etc/machine-id",)


@dataclass(frozen=True)
class Package:
    """A package file and the part of its control data that the repository index repeats."""

    path: Path
    control: str

    def field(self, name: str) -> str:
        """A one-line control field, empty where absent."""
        match = re.search(rf"^{name}: *(.*)$", self.control, re.MULTILINE)
        return match[1] if match else ""

    @property
    def name(self) -> str:
        return self.field("Package")


def read_packages(debs: Sequence[Path]) -> list[Package]:
    """The packages in the files ``debs``, by name. Raises UserError for no, damaged or doubled packages."""
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
    """A flat repository of copies of the package files in ``directory``, which apt reads through ``deb [trusted=yes]``.

    Copies, because the namespace's root is another user outside and may read nothing below a private home directory.
    """
    stanzas = []
    for package in packages:
        # Names with an epoch have %3a in them, which apt would decode once more: call the copies by number-free names.
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
    """``root`` or ``unshare``: how mmdebstrap can become root in the new tree.

    Raises UserError where an ordinary user has no usable user namespaces, naming what is missing.
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
        # mmdebstrap itself, since a security policy (Ubuntu's) may allow it what it forbids to others.
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
    """This kernel's settings that forbid user namespaces, with the values that allow them."""
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
    """Install the packages ``debs`` (files, or a directory of them); their root filesystem becomes the tar ``output``.

    The set must be closed: every dependency and every Essential package is in it. About a minute, a few hundred
    MB in the temporary directory (TMPDIR). Reads nothing from the network.
    """
    files = sorted(debs.glob("*.deb")) if isinstance(debs, Path) else sorted(debs)
    packages = read_packages(files)
    mode = namespace_mode()
    # Not beside the output: the namespace's root must be able to pass through every directory above.
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
            # Only files have a time from their package; directories and links have that of the build or of a rename.
            return (entry if entry.content else replace(entry, mtime=epoch) for entry in entries)

        layer = Layer.from_tar(raw)
        clean = Layer("cleaned", [text_entry(name, b"", mtime=epoch) for name in EMPTIED], remove=REMOVED + EMPTIED)
        make_rootfs([layer, clean], output, epoch=epoch, filters=[settled])


def _installed(scratch: Path) -> int:
    """How many packages mmdebstrap has installed so far, by the log of its dpkg: unpacking one is half of it."""
    logs = scratch.glob("mmdebstrap.*/var/log/dpkg.log")
    text = "".join(log.read_text(errors="replace") for log in logs)
    return len({*re.findall(r" status (?:unpacked|installed) \S+", text)}) // 2


def _install(packages: Sequence[Package], repository: Path, raw: Path, mode: str, epoch: int) -> None:
    names = [package.name for package in packages if package.field("Essential") != "yes"]
    mmdebstrap = find("mmdebstrap")  # own_mounts would say it in a traceback
    if mmdebstrap is None:
        raise UserError("mmdebstrap: command not found", "run: ./doitw install_dependencies")
    # Root's mounts in the new tree would outlive a mmdebstrap that is killed; those of a namespace end with it.
    separated = [sys.executable, "-I", "-S", own_mounts.__file__] if mode == "root" else []
    run(
        [
            *separated,
            mmdebstrap,
            f"--mode={mode}",
            "--variant=essential",
            "--format=tar",
            "--architectures=amd64",
            f"--include={','.join(names)}",
            "--aptopt=APT::Install-Recommends false",
            "--aptopt=APT::Sandbox::User root",
            "--aptopt=Acquire::Languages none",
            # The host's proxy and mirror settings are for the network, of which there is none here.
            "--aptopt=Acquire::http::Proxy false",
            "--dpkgopt=force-confold",
            "--dpkgopt=force-unsafe-io",
            # Where it cannot be mounted mmdebstrap only warns, and packages are set up differently without a word.
            '--customize-hook=test -e "$1/proc/self/status" || { echo /proc cannot be mounted for them >&2; exit 1; }',
            "pinned",
            raw,
            f"deb [trusted=yes] copy:{quote(str(repository))} ./",  # a blank would end the address
        ],
        env={"SOURCE_DATE_EPOCH": str(epoch), "TMPDIR": str(raw.parent), "DEBIAN_FRONTEND": "noninteractive"},
        timeout=INSTALL_TIMEOUT,
        hint="the set of packages may not be whole; fetch what is missing: ./doitw packages",
    )
