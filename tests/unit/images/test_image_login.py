# SPDX-License-Identifier: Apache-2.0
"""Faults of a foreign image that would stop its guest or its owner's login: refused before the guest boots."""

import struct
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import link_entry, text_entry
from sevsnp.archives.tar import Entry
from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError
from sevsnp.host.console import boot_failure
from sevsnp.images.account import add_login_account
from sevsnp.images.architecture import check_architecture
from sevsnp.images.copied_size import write_copied_sizes
from sevsnp.images.network_managers import UNIT_FOLDERS
from sevsnp.images.ssh_server import start_server
from sevsnp.measurement.copied_size import check_copied_sizes

KEY = "ssh-ed25519 AAAAowner"
CONFIG = "etc/ssh/sshd_config"


def image(config: str, *more: Entry) -> Tree:
    """An image with OpenSSH under systemd, and an account `user` of the group `user` and `staff`."""
    entries = [
        text_entry("etc/passwd", "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n"),
        text_entry("etc/group", "user:x:1000:\nstaff:x:50:user\n"),
        text_entry("usr/sbin/sshd", "", 0o755),
        text_entry("usr/lib/systemd/system/ssh.service", "[Unit]\n"),
        text_entry(CONFIG, config),
    ]
    return Tree([*entries, *more])


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("AllowUsers admin root\n", "AllowUsers admin root, expected with user"),
        ("AllowUsers admin\nAllowUsers us?r@10.0.2.*\n", ""),
        ("AllowUsers user@192.168.*\n", "AllowUsers"),
        ("DenyUsers u*\n", "DenyUsers u*, expected without user"),
        ("AllowGroups ssh\n", "AllowGroups ssh"),
        ("AllowGroups staff\n", ""),
        ("DenyGroups staff\n", "DenyGroups staff"),
        ("PubkeyAuthentication no\n", "line 1: PubkeyAuthentication no, expected yes"),
        ("PubkeyAuthentication yes\nPubkeyAuthentication no\n", ""),
        ("PubkeyAuthentication=no\n", "PubkeyAuthentication no"),
        ("AuthenticationMethods publickey,password\n", "AuthenticationMethods"),
        ("AuthenticationMethods publickey,password publickey\n", ""),
        ("AuthorizedKeysFile none\n", "AuthorizedKeysFile none"),
        ("Match User user\n PubkeyAuthentication no\n", "line 2: PubkeyAuthentication no"),
        ("Match User *,!user\n PubkeyAuthentication no\n", ""),
        ("Match Group staff Address 10.0.0.0/8\n PubkeyAuthentication no\n", "PubkeyAuthentication no"),
        ("PubkeyAuthentication no\nMatch User user\n PubkeyAuthentication yes\n", ""),
        ("AllowUsers admin\nMatch User user\n AllowUsers user\n", ""),
        ("Include sshd_config.d/*.conf\n", "/etc/ssh/sshd_config.d/1.conf, line 1: AllowUsers other"),
        ("Port 2222\n", "Port 2222, expected 22"),
        ("Port 2222\nPort 22\n", ""),
        ("ListenAddress 127.0.0.1\n", "ListenAddress"),
        ("ListenAddress [::]:22\n", ""),
        ("PermitRootLogin no # AllowUsers admin\n", ""),
    ],
)
def test_an_account_that_the_sshd_of_the_image_would_refuse_is_named(config: str, said: str) -> None:
    tree = image(config, text_entry("etc/ssh/sshd_config.d/1.conf", "AllowUsers other\n"))
    if not said:
        assert f"added: your public key in /home/user/.ssh/authorized_keys" in list(add_login_account(tree, KEY))  # noqa: F541
        return
    with pytest.raises(UserError) as caught:
        list(add_login_account(tree, KEY))
    assert said in str(caught.value) and "nobody could log in as user" in str(caught.value)


def test_a_locked_account_without_pam() -> None:
    shadow = text_entry("etc/shadow", "user:!:1::::::\n")
    with pytest.raises(UserError, match="locked in /etc/shadow"):
        list(add_login_account(image("", shadow), KEY))
    assert list(add_login_account(image("UsePAM yes\n", shadow), KEY))


@pytest.mark.parametrize(
    ("ids", "found"), [("abc:100", "'abc'"), (":", "''"), ("100:x", "'x'"), ("-1:100", "'-1'"), ("\u00b2:100", "'")]
)
def test_an_account_whose_ids_are_no_numbers(ids: str, found: str) -> None:
    tree = image("")
    good = tree.text("etc/passwd")
    tree.write("etc/passwd", good.replace("1000:1000", ids))
    with pytest.raises(UserError, match=f"/etc/passwd: user: found {found}.*, expected a number"):
        list(add_login_account(tree, KEY))
    tree.write("etc/passwd", good)  # control
    assert "added: your public key in /home/user/.ssh/authorized_keys" in list(add_login_account(tree, KEY))


@pytest.mark.parametrize("group", ["user", "user:x", "user:x:staff:"])
def test_a_group_for_the_new_account_that_has_no_number(group: str) -> None:
    tree = image("")
    tree.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
    groups = tree.text("etc/group")
    tree.write("etc/group", f"{group}\n")
    with pytest.raises(UserError, match=r"/etc/group: user: found .*, expected a number"):
        list(add_login_account(tree, KEY))
    tree.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n")  # control
    tree.write("etc/group", groups)
    assert "added: account user (uid 1001), without a password, since the owner logs in under this name" in list(
        add_login_account(tree, KEY)
    )


def test_the_key_goes_where_sshd_looks_for_it() -> None:
    tree = image("AuthorizedKeysFile /etc/ssh/keys/%u\n")
    assert "added: your public key in /etc/ssh/keys/user" in list(add_login_account(tree, KEY))
    assert tree.text("etc/ssh/keys/user") == f"{KEY}\n"


@pytest.mark.parametrize("folder", UNIT_FOLDERS)
@pytest.mark.parametrize("unit", ["ssh.service", "sshd.service"])
def test_the_unit_of_the_server_is_found_wherever_systemd_looks(folder: str, unit: str) -> None:
    tree = image("")
    tree.remove("usr/lib/systemd/system/ssh.service")
    tree.write("usr/lib/systemd/system/other.service", "[Unit]\n")
    missing = "warning: no unit starts the SSH server: nobody can log in"
    assert missing in list(start_server(tree))  # control
    tree.write(f"{folder}/{unit}", "[Unit]\n")
    assert list(start_server(tree)) == [f"switched on: {unit}"]
    wanted = tree.at(f"etc/systemd/system/multi-user.target.wants/{unit}")
    assert wanted and wanted.target == f"/{folder}/{unit}"
    assert list(start_server(tree)) == []


def openrc(*more: Entry) -> Tree:
    passwd = text_entry("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
    return Tree([passwd, text_entry("usr/sbin/sshd", ""), text_entry("etc/inittab", "::sysinit:/sbin/openrc\n"), *more])


def test_a_missing_service_manager_is_refused() -> None:
    manager, service = text_entry("sbin/openrc", ""), text_entry("etc/init.d/sshd", "")
    for tree, words in ((openrc(), "/sbin/openrc"), (openrc(manager), "no OpenRC service")):
        with pytest.raises(UserError, match=words):
            list(add_login_account(tree, KEY))
    tree = openrc(manager, service)
    assert "switched on: sshd in the runlevel default" in list(add_login_account(tree, KEY))
    assert tree.has("etc/runlevels/default/sshd")
    again = [line for line in add_login_account(tree, KEY) if "switched on" in line]
    assert again == []


def elf(machine: int, order: str = "<") -> bytes:
    return b"\x7fELF\x02" + (b"\x01" if order == "<" else b"\x02") + bytes(10) + struct.pack(f"{order}HH", 2, machine)


@pytest.mark.parametrize("name", ["usr/sbin/init", "usr/sbin/sshd", "bin/sh"])
def test_programs_for_another_architecture_are_refused(name: str) -> None:
    """The init, the interpreter of a script, the SSH server. Control: the same programs for this architecture."""
    base = [text_entry("usr/sbin/init", "#! /bin/sh -e\n" + "x" * 40), link_entry("bin/sh", "dash")]
    place = "bin/dash" if name == "bin/sh" else name

    def tree(program: bytes) -> Tree:
        return Tree([*base, text_entry(place, program + bytes(40))])

    for program, words in ((elf(183), "ARM64"), (elf(22, ">"), "s390x"), (elf(999), "machine 999")):
        with pytest.raises(UserError, match=f"/{place} is a program for {words}"):
            check_architecture(tree(program), "image")
    check_architecture(tree(elf(62)), "image")


def test_a_tmpfs_that_is_too_small_for_the_copied_files_is_refused(tmp_path: Path) -> None:
    entries = [text_entry("var/a", b"x" * 5000), text_entry("var/b", b"x"), text_entry("usr/c", b"x" * 9000)]
    write_copied_sizes(entries, tmp_path / "sizes")
    room = dict.fromkeys(("etc", "home", "tmp"), 0)
    check_copied_sizes(tmp_path / "sizes", {**room, "var": 3 * 4096})
    with pytest.raises(UserError, match="TMPFS_VAR"):
        check_copied_sizes(tmp_path / "sizes", {**room, "var": 3 * 4096 - 1})


@pytest.mark.parametrize(
    ("console", "line"),
    [
        ("init: mode verity\r\ninit: FATAL: no disk: powering off\r\n", "init: FATAL: no disk: powering off"),
        ("[    1.2] Kernel panic - not syncing: x\n", "Kernel panic - not syncing: x"),
        ("init: mode\ninit: switching to the root\ninit: FATAL: said by a service\n", ""),
        (
            "init: mode\ninit: switching to the root\n[ 9.0] Kernel panic - not syncing: y\n",
            "Kernel panic - not syncing: y",
        ),
        ("a log with init: FATAL: in a line\n", ""),
    ],
)
def test_a_failed_boot_is_recognised_on_the_console(console: str, line: str) -> None:
    assert boot_failure(console) == line
