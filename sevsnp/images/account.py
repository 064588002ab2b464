# SPDX-License-Identifier: Apache-2.0
"""The account of a foreign image for the owner's login: `user`, as in the ssh_config that attestation writes."""

import re
from collections.abc import Iterator

from sevsnp.archives.rootfs import EPOCH
from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError
from sevsnp.images.ssh_server import authorized_keys, check_login, start_server
from sevsnp.images.sshd_config import Account
from sevsnp.system.text import printable

ACCOUNT = "user"
_NO_LOGIN = ("nologin", "false", "sync", "shutdown", "halt")
_FIRST, _LAST = 1000, 60000


def add_login_account(tree: Tree, authorized_key: str) -> Iterator[str]:
    """Let ``authorized_key`` log in as `user`, and yield each change; a missing account is created."""
    rows = [line.split(":") for line in tree.text("etc/passwd").splitlines()]
    found = next((row for row in rows if row[0] == ACCOUNT and len(row) >= 7), None)
    if found is None:
        found = _add_account(tree, rows)
        yield f"added: account {ACCOUNT} (uid {found[2]}), without a password, since the owner logs in under this name"
        if tree.has("usr/bin/sudo"):
            tree.write(f"etc/sudoers.d/{ACCOUNT}", f"{ACCOUNT} ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440)
            yield f"added: /etc/sudoers.d/{ACCOUNT}: it becomes root without a password"
        else:
            yield f"no sudo in the image: account {ACCOUNT} cannot become root"
    elif found[6].rpartition("/")[2] in _NO_LOGIN:
        yield f"warning: account {ACCOUNT} has no login shell ({found[6]}): nobody can log in"
    home, uid, gid = found[5].strip("/"), _number(found[2], "passwd"), _number(found[3], "passwd")
    tree.directory(home, 0o700, uid, gid)
    tree.directory(f"{home}/.ssh", 0o700, uid, gid)
    groups = (line.split(":") for line in tree.text("etc/group").splitlines())
    names = [row[0] for row in groups if len(row) > 3 and (row[2] == found[3] or ACCOUNT in row[3].split(","))]
    account = Account(ACCOUNT, f"/{home}", tuple(names), found[2])
    check_login(tree, account)
    place = authorized_keys(tree, account)
    keys = tree.text(place)
    if authorized_key not in keys:
        if keys and not keys.endswith("\n"):
            keys += "\n"
        tree.write(place, f"{keys}{authorized_key}\n", 0o600, uid, gid)
        yield f"added: your public key in /{place}"
    yield from start_server(tree)


def _number(text: str, file: str) -> int:
    if not re.fullmatch("[0-9]{1,10}", text):
        raise UserError(
            f"/etc/{file}: {ACCOUNT}: found {printable(text)!r}, expected a number", "change it in the image"
        )
    return int(text)


def _add_account(tree: Tree, rows: list[list[str]]) -> list[str]:
    groups = [line.split(":") for line in tree.text("etc/group").splitlines()]
    taken = {row[index] for table in (rows, groups) for row in table for index in (2, 3) if len(row) > index}
    number = str(next(uid for uid in range(_FIRST, _LAST) if str(uid) not in taken))
    shell = "/bin/bash" if tree.find("bin/bash") else "/bin/sh"
    row = [ACCOUNT, "x", number, number, "", f"/home/{ACCOUNT}", shell]
    tree.append("etc/passwd", ":".join(row))
    # A group of that name may exist without the account; then the account uses that group.
    if any(group[0] == ACCOUNT for group in groups):
        row[3] = next((group[2] for group in groups if group[0] == ACCOUNT and len(group) > 2), "")
        _number(row[3], "group")
        tree.write("etc/passwd", tree.text("etc/passwd").replace(f":{number}:{number}:", f":{number}:{row[3]}:"))
    else:
        tree.append("etc/group", f"{ACCOUNT}:x:{number}:")
        if tree.has("etc/gshadow"):
            tree.append("etc/gshadow", f"{ACCOUNT}:!::")
    # `*`, not `!`: sshd refuses keys too for an account that is locked with `!`.
    tree.append("etc/shadow", f"{ACCOUNT}:*:{EPOCH // 86400}:0:99999:7:::", 0o600)
    return row
