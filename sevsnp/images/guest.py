# SPDX-License-Identifier: Apache-2.0
"""The project's own layer of the guest: users, host name, enabled and masked units, and the tree guest-vm/files."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sevsnp.archives.rootfs import (
    EPOCH,
    Layer,
    directory_entries,
    directory_entry,
    link_entry,
    rootfs_entries,
    text_entry,
)
from sevsnp.archives.tar import Entry, Kind
from sevsnp.archives.tar_writer import write_tar
from sevsnp.errors import UserError
from sevsnp.images.guest_config import Guest, User, read_guest
from sevsnp.images.known_tar import read_known_tar

UNITS = "etc/systemd/system"
GENERATORS = "etc/systemd/system-generators"

# Days since 1970, for the third field of /etc/shadow. The date of the build would make two builds differ.
SHADOW_DAY = EPOCH // 86400


def guest_layer(guest: Guest, files: Path, packages: Mapping[str, Entry], authorized_key: str) -> Layer:
    """The layer over ``packages`` (entries by name): accounts, units, host name, then the tree ``files``.

    ``authorized_key`` is one OpenSSH public key line. Raises UserError for a unit or group that no package has.
    """
    entries = [
        text_entry("etc/hostname", f"{guest.hostname}\n"),
        text_entry("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {guest.hostname}\n::1 localhost ip6-localhost\n"),
        link_entry("etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target"),
        # As new as /usr: without these, ldconfig, hwdb and catalogue are made again at every boot.
        text_entry("etc/.updated", ""),
        text_entry("var/.updated", ""),
    ]
    own = directory_entries(files) if files.is_dir() else []
    available = {*packages, *(entry.name for entry in own)}
    entries += _unit_entries(guest, available)
    entries += _account_files(guest, packages)
    for user in guest.users:
        entries += _home(user, packages, authorized_key)
    return Layer(str(files), entries + own, guest.remove)


def _unit_entries(guest: Guest, available: set[str]) -> list[Entry]:
    entries = []
    for target, units in guest.enable.items():
        for unit in units:
            template = re.sub(r"@.+\.", "@.", unit)
            folder = next((f for f in ("usr/lib/systemd/system", UNITS) if f"{f}/{template}" in available), None)
            if folder is None:
                raise UserError(
                    f"guest.yaml: enable: {unit}: no such unit in the guest's packages or files",
                    "add its package to guest-vm/packages.yaml, or the unit to guest-vm/files/etc/systemd/system",
                )
            entries.append(link_entry(f"{UNITS}/{target}.wants/{unit}", f"/{folder}/{template}"))
    entries += [link_entry(f"{UNITS}/{unit}", "/dev/null") for unit in guest.mask]
    entries += [link_entry(f"{GENERATORS}/{name}", "/dev/null") for name in guest.mask_generators]
    return entries


def _lines(packages: Mapping[str, Entry], name: str) -> list[list[str]]:
    entry = packages.get(name)
    if entry is None or entry.content is None:
        raise UserError(f"/{name}: missing from the guest's packages", "add base-passwd to guest-vm/packages.yaml")
    return [line.split(":") for line in entry.content.read().decode().splitlines() if line]


def _account_files(guest: Guest, packages: Mapping[str, Entry]) -> list[Entry]:
    passwd, shadow = _lines(packages, "etc/passwd"), _lines(packages, "etc/shadow")
    group, gshadow = _lines(packages, "etc/group"), _lines(packages, "etc/gshadow")
    for fields in shadow:
        fields[1], fields[2] = "*", str(SHADOW_DAY)  # no password opens any account
    shadow_group = next((int(fields[2]) for fields in group if fields[0] == "shadow"), 0)
    for user in guest.users:
        if any(fields[0] == user.name or fields[2] == str(user.uid) for fields in passwd):
            raise UserError(f"guest.yaml: users: {user.name}: name or uid {user.uid} is already taken")
        passwd.append([user.name, "x", str(user.uid), str(user.uid), "", f"/home/{user.name}", user.shell])
        # `*`, not `!`: sshd refuses keys too for an account that is locked with `!`.
        shadow.append([user.name, "*", str(SHADOW_DAY), "0", "99999", "7", "", "", ""])
        group.append([user.name, "x", str(user.uid), ""])
        gshadow.append([user.name, "!", "", ""])
        for name in user.groups:
            found = [fields for fields in group + gshadow if fields[0] == name]
            if not found:
                raise UserError(f"guest.yaml: users: {user.name}: groups: no group {name} in the guest's packages")
            for fields in found:
                fields[3] = ",".join(filter(None, [*fields[3].split(","), user.name]))

    def text(rows: list[list[str]]) -> str:
        return "".join(":".join(row) + "\n" for row in rows)

    return [
        text_entry("etc/passwd", text(passwd)),
        text_entry("etc/group", text(group)),
        text_entry("etc/shadow", text(shadow), 0o640, 0, shadow_group),
        text_entry("etc/gshadow", text(gshadow), 0o640, 0, shadow_group),
    ]


def _home(user: User, packages: Mapping[str, Entry], authorized_key: str) -> list[Entry]:
    home = f"home/{user.name}"
    entries = [directory_entry(home, 0o700, user.uid, user.uid)]
    for name, entry in packages.items():
        if name.startswith("etc/skel/") and entry.kind in (Kind.FILE, Kind.DIRECTORY, Kind.SYMLINK):
            own = f"{home}/{name.removeprefix('etc/skel/')}"
            # A new inode: with the skeleton's inode the file would become a hard link to the skeleton's.
            content = entry.content and replace(entry.content, inode=(f"{own}:{entry.content.inode}", 0))
            entries.append(replace(entry, name=own, uid=user.uid, gid=user.uid, content=content))
    if user.ssh:
        entries.append(directory_entry(f"{home}/.ssh", 0o700, user.uid, user.uid))
        line = f"{authorized_key.strip()}\n"
        entries.append(text_entry(f"{home}/.ssh/authorized_keys", line, 0o600, user.uid, user.uid))
    if user.sudo:
        entries.append(text_entry(f"etc/sudoers.d/{user.name}", f"{user.name} ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440))
    return entries


def read_public_key(file: Path) -> str:
    """The single key in an OpenSSH public key file, without its comment. Raises UserError for any other content."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as a public key: {error}") from error
    try:
        if len(lines) != 1:
            raise ValueError(f"{len(lines)} lines")
        load_ssh_public_key(lines[0].encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UserError(f"{file}: expected one OpenSSH public key line, found {error}") from error
    # The comment usually is user@host of the building machine. That does not belong in an image.
    return " ".join(lines[0].split()[:2])


def make_guest_rootfs(
    *,
    packages: Path,
    guest: Path,
    files: Path,
    authorized_key: Path,
    output: Path,
) -> None:
    """Write the guest's root filesystem tar ``output``."""
    write_tar(guest_entries(packages, guest, files, authorized_key), output, epoch=EPOCH)


def guest_entries(packages: Path, guest: Path, files: Path, authorized_key: Path) -> list[Entry]:
    """The guest's root file system: the packages layer, with the project's own layer on top.

    ``packages`` is its tar, ``guest`` is guest.yaml, ``files`` a directory, ``authorized_key`` an OpenSSH public key.
    """
    key = read_public_key(authorized_key)
    entries = read_known_tar(packages)
    own = guest_layer(read_guest(guest), files, entries, key)
    return rootfs_entries([Layer(str(packages), list(entries.values())), own])
