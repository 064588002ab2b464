# SPDX-License-Identifier: Apache-2.0
"""The SSH server of a foreign image: started by the image's own service manager, and open to the owner's account."""

from collections.abc import Iterator

from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError
from sevsnp.images.network_managers import UNIT_FOLDERS, UNITS
from sevsnp.images.sshd_config import Account, barred, key_files, read_config

_OPENSSH = ("usr/sbin/sshd", "usr/bin/sshd", "sbin/sshd")
_SERVERS = (*_OPENSSH, "usr/sbin/dropbear", "sbin/dropbear")
_UNITS = ("ssh.service", "sshd.service")
_WANTED = (*_UNITS, "ssh.socket", "sshd.socket", "dropbear.service")
_SCRIPTS = ("sshd", "ssh", "dropbear")
_OPENRC = ("sbin/openrc", "usr/sbin/openrc", "bin/openrc", "usr/bin/openrc", "sbin/rc")
_RUNLEVELS = ("sysinit", "boot", "default")
_SYSV_LEVELS = ("2", "3", "4", "5")


def authorized_keys(tree: Tree, account: Account) -> str:
    """The file, as a path from the root, into which a key for the account belongs."""
    files = key_files(read_config(tree, account), account)
    usual = f"{account.home}/.ssh/authorized_keys".strip("/")
    return usual if usual in files or not files or not _has(tree, _OPENSSH) else files[0]


def check_login(tree: Tree, account: Account) -> None:
    """Raises UserError if the configuration of the image's sshd keeps the account out."""
    if not _has(tree, _OPENSSH):
        return
    shadow = (line.split(":") for line in tree.text("etc/shadow").splitlines())
    locked = any(row[0] == account.name and len(row) > 1 and row[1].startswith("!") for row in shadow)
    for found, expected in barred(read_config(tree, account), account, locked=locked):
        raise UserError(
            f"nobody could log in as {account.name}: found {found}, expected {expected}",
            "change it in the image, or for this account alone: what a Match block may set is enough there",
        )


def start_server(tree: Tree) -> Iterator[str]:
    """Have the image's service manager start the SSH server, and yield what was changed.

    Raises UserError if the image's init runs a service manager that the image lacks.
    """
    if not _has(tree, _SERVERS):
        yield "warning: no SSH server in the image: nobody can log in"
    elif folders := [folder for folder in UNIT_FOLDERS if tree.find(folder)]:
        yield from _by_systemd(tree, folders)
    elif "openrc" in tree.text("etc/inittab") or tree.find("etc/runlevels"):
        yield from _by_openrc(tree)
    elif any(tree.find(f"etc/rc{level}.d") for level in _SYSV_LEVELS):
        yield from _by_sysv(tree)
    elif "sshd" not in tree.text("etc/inittab") and not tree.find("etc/runit") and not tree.find("etc/s6"):
        yield "warning: neither systemd nor OpenRC nor SysV services: the image's own init has to start the SSH server"


def _has(tree: Tree, paths: tuple[str, ...]) -> bool:
    return any(tree.has(path) for path in paths)


def _by_systemd(tree: Tree, folders: list[str]) -> Iterator[str]:
    for folder in folders:
        for target in tree.names(folder):
            if target.endswith((".wants", ".requires")) and set(tree.names(f"{folder}/{target}")) & set(_WANTED):
                return
    for folder in folders:
        for unit in _UNITS:
            entry = tree.find(f"{folder}/{unit}")
            if entry is not None and entry.content is not None:
                tree.link(f"{UNITS}/multi-user.target.wants/{unit}", f"/{entry.name}")
                yield f"switched on: {unit}"
                return
    yield "warning: no unit starts the SSH server: nobody can log in"


def _by_openrc(tree: Tree) -> Iterator[str]:
    if not _has(tree, _OPENRC):
        raise UserError(
            "the image's init starts OpenRC (/sbin/openrc), which is not in the image: nothing starts its SSH server",
            "install it in the image, as with: apk add openrc",
        )
    scripts = [name for name in _SCRIPTS if tree.find(f"etc/init.d/{name}")]
    if not scripts:
        raise UserError(
            "the SSH server has no OpenRC service in /etc/init.d (sshd): nothing starts it",
            "install the service in the image, as with: apk add openssh-server openrc",
        )
    if not any(name in tree.names(f"etc/runlevels/{level}") for name in scripts for level in _RUNLEVELS):
        tree.link(f"etc/runlevels/default/{scripts[0]}", f"/etc/init.d/{scripts[0]}")
        yield f"switched on: {scripts[0]} in the runlevel default"


def _by_sysv(tree: Tree) -> Iterator[str]:
    started = {name[3:] for level in _SYSV_LEVELS for name in tree.names(f"etc/rc{level}.d") if name.startswith("S")}
    if started & set(_SCRIPTS):
        return
    script = next((name for name in _SCRIPTS if tree.find(f"etc/init.d/{name}")), "")
    if not script:
        yield "warning: no service in /etc/init.d starts the SSH server: nobody can log in"
        return
    for level in _SYSV_LEVELS:
        tree.link(f"etc/rc{level}.d/S99{script}", f"../init.d/{script}")
    yield f"switched on: {script} in the runlevels {', '.join(_SYSV_LEVELS)}"
