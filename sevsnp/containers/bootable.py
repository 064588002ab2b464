# SPDX-License-Identifier: Apache-2.0
"""Adds to a container's root what a guest needs and a container lacks: an init, an SSH server, sudo.

They come from the project's own guest, whose pinned packages are installed already: their files are copied, and no
program of either root is started. So the root must be of the same release of Debian, and all relations between its
packages and the added ones must hold; a package of another version gives way to the pinned one only if that is later.
Files that maintainer scripts have made come along where the root has none, as do the accounts.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from sevsnp.archives.tar import Entry, Kind
from sevsnp.archives.tree import Tree
from sevsnp.containers.dpkg import Installed, compare, fulfils, read_status, unmet
from sevsnp.errors import UserError
from sevsnp.store.oci_reference import clean

_STATUS, _INFO = "var/lib/dpkg/status", "var/lib/dpkg/info"
# What is needed, the paths of which one is enough, and the packages that bring it.
_NEEDED = (
    ("an init", ("sbin/init", "usr/sbin/init", "usr/bin/init"), ("systemd-sysv", "systemd", "udev", "dbus")),
    ("an SSH server", ("usr/sbin/sshd", "usr/bin/sshd", "usr/sbin/dropbear"), ("openssh-server",)),
    ("sudo", ("usr/bin/sudo", "usr/local/bin/sudo"), ("sudo",)),
)
# What scripts of the needed packages make. What else no package lists belongs to the rest of the guest.
_MADE = re.compile(r"etc/(?:systemd|pam\.d)/.+|etc/ssh/sshd_config|usr/lib/udev/hwdb\.bin|var/lib/systemd/catalog/.+")
_ACCOUNT_FILES = ("etc/passwd", "etc/group")
# A user or group number. Not every digit of Unicode is one.
_ID = re.compile("[0-9]{1,10}")
_SYSTEM_IDS = range(999, 99, -1)
_INSTALL = {
    "debian": "apt-get update && apt-get install -y systemd-sysv dbus openssh-server sudo",
    "alpine": "apk add openrc openssh sudo && rc-update add sshd",
    "fedora": "dnf install -y systemd openssh-server sudo",
}
_FAMILIES = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora", "rocky": "fedora", "almalinux": "fedora"}


@dataclass(frozen=True)
class _Release:
    """A distribution's release, from os-release(5)."""

    name: str
    version: str
    codename: str
    shown: str


def _release(tree: Tree) -> _Release:
    text = tree.text("etc/os-release") or tree.text("usr/lib/os-release")
    found = {key: value.strip("\"'") for key, value in re.findall(r"^([A-Z_]+)=(.*)$", text, re.MULTILINE)}
    shown = found.get("PRETTY_NAME") or " ".join(filter(None, (found.get("ID", ""), found.get("VERSION_ID", ""))))
    family = found.get("ID", "")
    return _Release(family, found.get("VERSION_ID", ""), found.get("VERSION_CODENAME", ""), shown or "no os-release")


def add_what_is_missing(tree: Tree, guest: Mapping[str, Entry], name: str) -> Iterator[str]:
    """Change ``tree``, the root of the container image ``name``, and yield a line for each change.

    ``guest`` are the entries of the project's own guest with its packages only. Raises UserError if there is no init
    and none can be added. Without an SSH server the guest starts; nobody can log in, as a line says.
    """
    missing = [(what, packages) for what, paths, packages in _NEEDED if not any(tree.has(path) for path in paths)]
    if not missing:
        return
    donor = Tree(guest.values())
    here, there = _release(tree), _release(donor)
    said = f"missing, and cannot be added: {', '.join(what for what, _ in missing)}"
    try:
        if (here.name, here.codename) != (there.name, there.codename):
            raise UserError(f"found {clean(here.shown)}; packages can be added to {there.shown} only")
        yield from _add(tree, donor, [package for _, packages in missing for package in packages])
    except UserError as error:
        if missing[0][0] != "an init":
            yield f"warning: {said}: {error.message}"
            return
        family = _FAMILIES.get(here.name, here.name)
        raise UserError(f"{name}: {said}: {error.message}", _remedy(family)) from None


def _remedy(family: str) -> str:
    command = _INSTALL.get(family, "its own package manager, for an init and an SSH server")
    return f"add them where the image is made, in its Containerfile: RUN {command}"


def _add(tree: Tree, donor: Tree, wanted: list[str]) -> Iterator[str]:
    have, pinned = read_status(tree.text(_STATUS)), read_status(donor.text(_STATUS))
    if not have:
        raise UserError("no dpkg status in it, so nothing says what it has")
    added = _closure(have, pinned, wanted)
    result = {**have, **added}
    before = set(unmet(have))
    if broken := [text for text in unmet(result) if text not in before]:
        raise UserError(f"the pinned packages do not fit: {clean(broken[0])}")
    # Ids first: the copied files get those of the accounts here.
    users, groups, accounts = _add_accounts(tree, donor)
    for name in sorted(added.keys() & have.keys()):
        _remove_files(tree, have[name])
    listed, info = set(), donor.names(_INFO)
    for name, package in added.items():
        listed |= _copy_files(tree, donor, package, info, users, groups, replaced=name in have)
    _copy_made(tree, donor, listed, users, groups)
    stanzas = [package.stanza for _, package in sorted(result.items())]
    tree.write(_STATUS, "\n".join(stanzas))
    new = sorted(added.keys() - have.keys())
    yield f"added, from the pinned packages: {', '.join(new)}"
    if updated := sorted(added.keys() & have.keys()):
        what = (f"{name} {have[name].version} → {added[name].version}" for name in updated)
        yield f"updated, since they need it: {', '.join(what)}"
    if accounts:
        yield f"added: the accounts and groups {', '.join(accounts)}"


def _closure(have: Mapping[str, Installed], pinned: Mapping[str, Installed], wanted: list[str]) -> dict[str, Installed]:
    """The pinned packages that ``wanted`` need beside or instead of those that the root has."""
    added: dict[str, Installed] = {}
    stack = [name for name in wanted if name not in have]
    while stack:
        name = stack.pop()
        if name in added:
            continue
        if name not in pinned:
            raise UserError(f"{name} is not among the pinned packages")
        if name in have and compare(have[name].version, pinned[name].version) > 0:
            raise UserError(f"{name} {clean(have[name].version)} is later than the pinned {pinned[name].version}")
        added[name] = pinned[name]
        for group in pinned[name].needs:
            present = [*added.values(), *(package for key, package in have.items() if key not in added)]
            if any(fulfils(package, relation) for relation in group for package in present):
                continue
            fitting = [key for relation in group for key, package in pinned.items() if fulfils(package, relation)]
            if not fitting:
                raise UserError(f"{name} needs {' | '.join(map(str, group))}, which is not among the pinned packages")
            stack.append(fitting[0])
        # A package of the same source often goes with one version of it only.
        stack += [
            key
            for key, package in have.items()
            if key not in added
            and key in pinned
            and any(
                name == relation.name and not relation.holds(pinned[name].version)
                for g in package.needs
                for relation in g
            )
        ]
    return added


def _list_file(tree: Tree, name: str) -> str:
    names = (f"{_INFO}/{name}.list", f"{_INFO}/{name}:amd64.list")
    return next((path for path in names if tree.has(path)), names[0])


def _paths(tree: Tree, name: str) -> list[str]:
    return [line.strip("/") for line in tree.text(_list_file(tree, name)).splitlines() if line not in ("", "/.")]


def _remove_files(tree: Tree, package: Installed) -> None:
    """Remove what is replaced: files, not directories, and not the configuration."""
    for path in _paths(tree, package.name):
        entry = tree.at(path)
        if entry is not None and entry.kind is not Kind.DIRECTORY and f"/{path}" not in package.conffiles:
            tree.remove(path)
    for name in tree.names(_INFO):
        if name.startswith((f"{package.name}.", f"{package.name}:")):
            tree.remove(f"{_INFO}/{name}")


def _copy_files(
    tree: Tree,
    donor: Tree,
    package: Installed,
    info: list[str],
    users: Mapping[int, int],
    groups: Mapping[int, int],
    *,
    replaced: bool,
) -> set[str]:
    """Copy a package's files; configuration that is there already stays. Returns the names in ``donor``."""
    listed = set()
    for path in _paths(donor, package.name):
        entry = donor.at(path)
        if entry is None:
            continue  # documentation that the guest is made without
        listed.add(entry.name)
        keep = f"/{path}" in package.conffiles or not replaced
        _copy(tree, entry, users, groups, over=not keep)
    for name in info:
        if name.startswith((f"{package.name}.", f"{package.name}:")) and (entry := donor.at(f"{_INFO}/{name}")):
            listed.add(entry.name)
            _copy(tree, entry, users, groups, over=True)
    return listed


def _copy_made(tree: Tree, donor: Tree, listed: set[str], users: Mapping[int, int], groups: Mapping[int, int]) -> None:
    """Copy what scripts have made, where the root has none, and of the links to units those to the added ones."""
    for entry in donor.ordered():
        if entry.name in listed or not _MADE.fullmatch(entry.name) or entry.kind is Kind.DIRECTORY:
            continue
        if entry.kind is Kind.SYMLINK:
            target = donor.find(entry.name)
            if target is None or target.name not in listed:
                continue
        _copy(tree, entry, users, groups, over=False)


def _copy(tree: Tree, entry: Entry, users: Mapping[int, int], groups: Mapping[int, int], *, over: bool) -> None:
    old = tree.at(entry.name)
    if old is not None and (old.kind is Kind.DIRECTORY or not over):
        return
    tree.add(replace(entry, uid=users.get(entry.uid, entry.uid), gid=groups.get(entry.gid, entry.gid)))


def _rows(tree: Tree, path: str) -> dict[str, list[str]]:
    rows = (line.split(":") for line in tree.text(path).splitlines() if line.strip())
    return {row[0]: row for row in rows if len(row) > 3 and _ID.fullmatch(row[2])}


def _add_accounts(tree: Tree, donor: Tree) -> tuple[dict[int, int], dict[int, int], list[str]]:
    """Add the accounts of ``donor`` that are missing; return the user and group ids there and here, and the names."""
    maps: list[dict[int, int]] = []
    names: list[str] = []
    for path in reversed(_ACCOUNT_FILES):
        ours, theirs = _rows(tree, path), _rows(donor, path)
        taken = {int(row[2]) for row in ours.values()}
        ids: dict[int, int] = {}
        lines = []
        for name, row in theirs.items():
            number = int(row[2])
            if name in ours:
                ids[number] = int(ours[name][2])
                continue
            free = number if number not in taken else next((n for n in _SYSTEM_IDS if n not in taken), None)
            if free is None:
                raise UserError(f"/{path}: the numbers from 100 to 999 are in use, expected a free one for {name}")
            ids[number] = free
            taken.add(ids[number])
            new = [*row]
            new[2] = str(ids[number])
            if path == "etc/passwd":
                new[3] = str(maps[0].get(int(row[3]), int(row[3])))
                tree.append("etc/shadow", f"{name}:!*:19000::::::", 0o640)
            elif tree.has("etc/gshadow"):
                tree.append("etc/gshadow", f"{name}:!::", 0o640)
            lines.append(":".join(new))
            names.append(name)
        for line in lines:
            tree.append(path, line)
        maps.append(ids)
    return maps[1], maps[0], sorted(set(names))
