# SPDX-License-Identifier: Apache-2.0
"""Finds versions and digests for sets of packages, with a private apt that does not touch the host's."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote

from sevsnp.errors import UserError
from sevsnp.packages.lock import DEBIAN, SECURITY, LockedSet, Package
from sevsnp.packages.sets import PackageSet
from sevsnp.packages.sources import Sources
from sevsnp.system.command import run, temporary_directory
from sevsnp.system.command_failed import CommandFailed

Note = Callable[[str], None]

# Read after the host's own configuration: its proxies and validity settings stay in force. Everything that would let
# the host's state or preferences into the result is replaced. The guest is amd64 on every host.
_CONFIG = """\
#clear APT::Architectures;
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Default-Release;
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Install-Suggests "false";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::Languages "none";
Acquire::ForceHash "SHA256";
Acquire::Retries "3";
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
"""

_URI_LINE = re.compile(r"'(\S+)' (\S+) ([0-9]+) SHA256:([0-9a-f]{64})")


def _local(uri: str) -> str:
    # apt does not print the URIs of file: archives, because there is nothing to fetch; it prints those of copy:
    # archives.
    return f"copy:{uri.removeprefix('file:')}" if uri.startswith("file:") else uri


@dataclass(frozen=True)
class PrivateApt:
    """A separate apt under ``root``, with the archives of one suite and an empty dpkg status."""

    root: Path
    bases: tuple[tuple[str, str], ...]

    @classmethod
    def make(cls, root: Path, sources: Sources, keyring: Path, suite: str, *, security: bool) -> "PrivateApt":
        """Create the directories and fetch the signed indices. Raises :class:`UserError` with apt's report."""
        for name in ("state/lists/partial", "cache/archives/partial"):
            (root / name).mkdir(parents=True)
        (root / "status").write_bytes(b"")
        bases = [(DEBIAN, _local(sources.main))]
        lines = [f"deb [signed-by={keyring}] {bases[0][1]} {suite} main\n"]
        if security and sources.security:
            bases.append((SECURITY, _local(sources.security)))
            lines.append(f"deb [signed-by={keyring}] {bases[1][1]} {suite}-security main\n")
        (root / "sources.list").write_text("".join(lines))
        config = _CONFIG.format(root=root)
        if os.geteuid() == 0 and any(base.startswith("copy:") for _, base in bases):
            # root's apt reads as user _apt, who may not have access to the directory of a local mirror.
            config += 'APT::Sandbox::User "root";\n'
        (root / "apt.conf").write_text(config)
        apt = cls(root, tuple(bases))
        # A half-fetched index is an error: apt would otherwise only warn, and continue with an older one.
        try:
            apt.get("update", "--error-on=any")
        except UserError as error:
            names = " and ".join(base for _, base in bases)
            raise UserError(
                f"{names}: apt cannot read suite {suite}: {complaints(error)}",
                "choose another MIRROR; for an expired archive or a missing key, see apt-secure(8)",
            ) from error
        return apt

    def install(self, status: str) -> None:
        """Treat the packages in ``status`` as installed; it has the form of dpkg's own file."""
        (self.root / "status").write_text(status)

    def get(self, *words: str) -> str:
        """The output of ``apt-get`` for ``words``."""
        return run(["apt-get", "-q", "-c", self.root / "apt.conf", *words]).decode(errors="replace")

    def date(self) -> str:
        """The date of the newest index, as the index states it, in the form of the lock."""
        found = []
        for index in sorted((self.root / "state/lists").glob("*Release")):
            # The field comes before the digests; a signature around it does not matter.
            if match := re.search(r"^Date: (.+)$", index.read_text(errors="replace"), re.MULTILINE):
                found.append(parsedate_to_datetime(match[1]).astimezone(UTC))
        if not found:
            raise UserError(f"{self.bases[0][1]}: its Release file has no Date", "choose another MIRROR")
        return max(found).strftime("%Y-%m-%dT%H:%M:%SZ")

    def cache(self, *words: str) -> str:
        """The output of ``apt-cache`` for ``words``."""
        return run(["apt-cache", "-q", "-c", self.root / "apt.conf", *words]).decode(errors="replace")

    def parse_uris(self, text: str) -> tuple[Package, ...]:
        """The packages in the output of ``--print-uris``. Raises :class:`UserError` for a line without a SHA-256."""
        packages = []
        for line in text.splitlines():
            if not line.startswith("'"):
                continue
            match = _URI_LINE.fullmatch(line.strip())
            if not match:
                raise UserError(f"apt gave no SHA-256: {line.strip()}", "use a mirror whose indices have SHA-256")
            archive, filename = self._split(match[1])
            # apt's own file name is NAME_VERSION_ARCHITECTURE.deb with the epoch's colon as %3a.
            name, version, architecture = unquote(match[2].removesuffix(".deb")).split("_")
            packages.append(Package(name, version, architecture, archive, filename, int(match[3]), match[4]))
        return tuple(sorted(packages, key=lambda package: package.name))

    def _split(self, uri: str) -> tuple[str, str]:
        for archive, base in sorted(self.bases, key=lambda pair: -len(pair[1])):
            if uri.startswith(f"{base}/"):
                return archive, unquote(uri.removeprefix(f"{base}/"))
        raise UserError(f"apt returned {uri}, expected an address in one of the given archives")


def complaints(error: UserError) -> str:
    """apt's error messages in one line, without the command."""
    said = error.said if isinstance(error, CommandFailed) else ""
    lines = [line[3:] for line in said.splitlines() if line.startswith("E: ")]
    return "; ".join(lines) or error.message.splitlines()[0]


def image_behind(apt: PrivateApt, name: str) -> str:
    """The versioned kernel image that a meta-package stands for; any other package stands for itself."""
    if not re.fullmatch(r"linux-image-[a-z][a-z0-9-]*", name):
        return name
    found = re.findall(r"^Depends:.*?\b(linux-image-[0-9][^\s,]*)", apt.cache("show", "--no-all-versions", name), re.M)
    return found[0] if len(found) == 1 else name


def resolve_set(apt: PrivateApt, asked: PackageSet, note: Note) -> LockedSet:
    """Ask apt for one set. Raises :class:`UserError` naming the list and the set, with apt's message."""
    resolved: dict[str, str] = {}
    try:
        if asked.dependencies:
            essential = ["?essential", "apt"] if asked.essential else []
            text = apt.get("install", "-y", "--print-uris", *essential, *asked.packages)
        else:
            resolved = {name: image for name in asked.packages if (image := image_behind(apt, name)) != name}
            text = apt.get("download", "--print-uris", *(resolved.get(name, name) for name in asked.packages))
    except UserError as error:
        raise UserError(
            f"{asked.file}: set {asked.name} ({asked.suite}): {complaints(error)}",
            f"correct the list in {asked.file}, or choose another MIRROR",
        ) from error
    packages = apt.parse_uris(text)
    names = {package.name for package in packages}
    for name in asked.packages:
        if resolved.get(name, name) not in names:
            raise UserError(f"{asked.file}: found {name}, a virtual package", "name the package that provides it")
    for name in asked.exclude:
        if name not in names:
            note(f"{asked.file}: exclude: {name} has no effect: the set does not have that package")
    return LockedSet(
        suite=asked.suite,
        dates=(apt.date(),),
        requested=tuple(sorted(asked.packages)),
        dependencies=asked.dependencies,
        essential=asked.essential,
        exclude=asked.exclude,
        security=asked.security,
        resolved=resolved,
        packages=tuple(package for package in packages if package.name not in asked.exclude),
    )


def each_apt(
    sets: Sequence[PackageSet], sources: Sources, keyring: Path, note: Note
) -> Iterator[tuple[PrivateApt, list[PackageSet]]]:
    """An apt for each suite, with the ``sets`` that use the suite."""
    for suite, security in sorted({(asked.suite, asked.security) for asked in sets}):
        if security and not sources.security:
            note(f"{sources.origin}: no security archive found; {suite} is locked without security updates")
        with temporary_directory("sevsnp-apt.") as root:
            root.chmod(0o755)  # apt drops root's rights to fetch, and still needs access
            apt = PrivateApt.make(root, sources, keyring, suite, security=security)
            yield apt, [asked for asked in sets if (asked.suite, asked.security) == (suite, security)]


def resolve(*, sets: Sequence[PackageSet], sources: Sources, keyring: Path, note: Note) -> dict[str, LockedSet]:
    """Every set, resolved against ``sources``.

    Uses the network, through the host's apt; ``keyring`` must have signed the archives. ``note`` gets messages that
    need no action of the user. Raises :class:`UserError`.
    """
    return {
        asked.name: resolve_set(apt, asked, note)
        for apt, members in each_apt(sets, sources, keyring, note)
        for asked in members
    }
