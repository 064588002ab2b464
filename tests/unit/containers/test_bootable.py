# SPDX-License-Identifier: Apache-2.0
"""Packages of the project's guest in the root of a container: added only if they fit, with their files and accounts."""

import itertools
import subprocess
from collections.abc import Sequence
from dataclasses import replace

import pytest

from sevsnp.archives.rootfs import Layer, directory_entry, link_entry, merge, text_entry
from sevsnp.archives.tar import Entry, Kind
from sevsnp.archives.tree import Tree
from sevsnp.containers.bootable import _add_accounts, add_what_is_missing
from sevsnp.containers.dpkg import Relation, compare, fulfilled, read_status, relations, unmet
from sevsnp.errors import UserError

RELEASE = "ID=debian\nVERSION_CODENAME=trixie\nPRETTY_NAME='Debian 13'\n"
VERSIONS = (
    "1.0", "1.0-1", "1.0-1+b1", "1.0~rc1-1", "1.0+dfsg-1", "1:0.9-1", "1.0-10", "1.0-9", "1.00-1", "2", "1.0.a", "1.0a",
    "1.0-1~deb13u1", "1.0-1+deb13u1", "0", "1.0.", "1.0~", "1.0~~", "10:1", "1.0-0", "1.0-a~", "1.0-1-1",
)  # fmt: skip


def test_versions_are_compared_as_dpkg_does() -> None:
    pairs = list(itertools.combinations(VERSIONS, 2))
    script = "".join(
        f"dpkg --compare-versions '{a}' lt '{b}' && echo lt || "
        f"{{ dpkg --compare-versions '{a}' eq '{b}' && echo eq || echo gt; }}\n"
        for a, b in pairs[::12]
    )
    said = subprocess.run(["sh"], input=script, capture_output=True, text=True, check=True).stdout.split()
    ours = [("gt", "eq", "lt")[1 if (order := compare(a, b)) == 0 else 0 if order > 0 else 2] for a, b in pairs[::12]]
    assert ours == said and {"lt", "gt"} <= set(said)
    assert compare("1.0", "1.0-0") == 0


def stanza(name: str, version: str = "1", **fields: str) -> str:
    more = "".join(f"{key.replace('_', '-')}: {value}\n" for key, value in fields.items())
    return f"Package: {name}\nStatus: install ok installed\nVersion: {version}\n{more}"


def test_relations() -> None:
    text = "a (>= 1.2), b:any | c (= 1:2-3), d [amd64]"
    assert relations(text) == [
        [Relation("a", ">=", "1.2")], [Relation("b"), Relation("c", "=", "1:2-3")], [Relation("d")]
    ]  # fmt: skip
    have = read_status(
        "\n".join(
            [
                stanza("a", "1.2"),
                stanza("p", Provides="virtual, fixed (= 3)"),
                "Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n",
            ]
        )
    )
    assert have.keys() == {"a", "p"}
    for relation, holds in (
        ("a (>= 1.2)", True),
        ("a (>> 1.2)", False),
        ("none | a", True),
        ("virtual", True),
        ("virtual (>= 1)", False),
        ("fixed (>= 3)", True),
        ("fixed (>> 3)", False),
        ("gone", False),
    ):
        assert fulfilled(have, relations(relation)[0]) is holds, relation
    assert list(unmet(read_status(stanza("a", Depends="b") + "\n" + stanza("c", Conflicts="a")))) == [
        "a needs b", "c excludes a"
    ]  # fmt: skip


def package(name: str, files: Sequence[Entry]) -> list[Entry]:
    listed = "".join(f"/{entry.name}\n" for entry in files)
    return [*files, text_entry(f"var/lib/dpkg/info/{name}.list", f"/.\n{listed}")]


def root(status: Sequence[str], entries: Sequence[Entry], passwd: str = "", group: str = "") -> Tree:
    base = [
        text_entry("etc/os-release", RELEASE),
        text_entry("etc/passwd", f"root:x:0:0::/root:/bin/sh\n{passwd}"),
        text_entry("etc/shadow", "root:*:1::::::\n"),
        text_entry("etc/group", f"root:x:0:\nnogroup:x:65534:\n{group}"),
        text_entry("var/lib/dpkg/status", "\n".join(status)),
        link_entry("lib", "usr/lib"),
        link_entry("sbin", "usr/sbin"),
        directory_entry("usr/lib"),
        directory_entry("usr/sbin"),
    ]
    return Tree(merge([Layer("root", [*base, *entries])]).values())


GUEST_STATUS = [
    stanza("systemd-sysv", Depends="systemd (= 1)"),
    stanza("systemd", Depends="libsystemd (= 1-2), libc (>= 2)"),
    stanza("udev", Depends="libc"),
    stanza("dbus", Depends="libc | other"),
    stanza("openssh-server", Depends="libc, ucf", Conffiles="\n /etc/ssh/moduli 0\n /etc/default/ssh 0"),
    stanza("sudo", Depends="libc"),
    stanza("ucf"),
    stanza("libc", "2-2"),
    stanza("libsystemd", "1-2", Depends="libc"),
    stanza("unrelated"),
]
SERVED = replace(text_entry("usr/lib/dbus/launch", "dbus", 0o4754), uid=0, gid=997)
GUEST = root(
    GUEST_STATUS,
    [
        *package("systemd-sysv", [link_entry("usr/sbin/init", "../lib/systemd/systemd")]),
        *package("systemd", [text_entry("usr/lib/systemd/systemd", ""), text_entry("etc/systemd/system.conf", "")]),
        *package("dbus", [SERVED]),
        *package(
            "openssh-server",
            [
                text_entry("usr/sbin/sshd", "sshd"),
                text_entry("usr/lib/systemd/system/ssh.service", "[Unit]"),
                text_entry("etc/ssh/moduli", "pinned"),
                text_entry("etc/default/ssh", "pinned"),
            ],
        ),
        *package("sudo", [text_entry("usr/bin/sudo", "sudo", 0o4755)]),
        *package("ucf", [text_entry("usr/bin/ucf", "ucf")]),
        *package("libc", [text_entry("usr/lib/libc.so", "libc 2-2")]),
        *package("libsystemd", [text_entry("usr/lib/libsystemd.so.1", "1-2")]),
        *package("unrelated", [text_entry("usr/lib/systemd/system/other.timer", "")]),
        # What scripts have made.
        text_entry("etc/ssh/sshd_config", "made"),
        link_entry("etc/systemd/system/multi-user.target.wants/ssh.service", "/usr/lib/systemd/system/ssh.service"),
        link_entry("etc/systemd/system/timers.target.wants/other.timer", "/usr/lib/systemd/system/other.timer"),
        text_entry("etc/fstab", "made"),
    ],
    passwd="messagebus:x:997:997::/:/bin/false\nsshd:x:991:65534::/:/bin/false\n",
    group="messagebus:x:997:\n",
)  # fmt: skip


def container(libsystemd: str = "1-1", libc: str = "2-2", more: Sequence[str] = ()) -> Tree:
    return root(
        [stanza("libc", libc), stanza("libsystemd", libsystemd, Depends="libc"), *more],
        [
            *package("libc", [text_entry("usr/lib/libc.so", f"libc {libc}")]),
            *package("libsystemd", [text_entry("usr/lib/libsystemd.so.0", libsystemd)]),
        ],
        passwd="app:x:997:990::/:/bin/sh\n",
        group="app:x:990:\ntaken:x:997:\n",
    )


def add(tree: Tree) -> list[str]:
    return list(add_what_is_missing(tree, GUEST.entries, "IMAGE=it"))


def test_missing_packages_are_added_with_their_dependencies() -> None:
    tree = container()
    said = add(tree)
    assert said == [
        "added, from the pinned packages: dbus, openssh-server, sudo, systemd, systemd-sysv, ucf, udev",
        "updated, since they need it: libsystemd 1-1 → 1-2",
        "added: the accounts and groups messagebus, sshd",
    ]
    assert tree.has("sbin/init") and tree.find("sbin/init") and tree.text("usr/sbin/sshd") == "sshd"
    assert tree.text("usr/lib/libc.so") == "libc 2-2" and not tree.has("usr/lib/systemd/system/other.timer")
    assert tree.has("usr/lib/libsystemd.so.1") and not tree.has("usr/lib/libsystemd.so.0")
    assert tree.text("etc/ssh/sshd_config") == "made" and not tree.has("etc/fstab")
    assert tree.names("etc/systemd/system/multi-user.target.wants") == ["ssh.service"]
    assert not tree.has("etc/systemd/system/timers.target.wants/other.timer")
    # dpkg knows what is there.
    have = read_status(tree.text("var/lib/dpkg/status"))
    assert have["libsystemd"].version == "1-2" and have["openssh-server"].version == "1" and "unrelated" not in have
    assert list(unmet(have)) == []
    assert tree.has("var/lib/dpkg/info/openssh-server.list") and add(tree) == []


def test_added_accounts_get_free_ids_and_own_their_files() -> None:
    """The id 997 is in use in this container, as user and as group."""
    tree = container()
    add(tree)
    users = {line.split(":")[0]: line.split(":") for line in tree.text("etc/passwd").splitlines()}
    groups = {line.split(":")[0]: line.split(":")[2] for line in tree.text("etc/group").splitlines()}
    assert users["app"][2] == "997" and groups["taken"] == "997"
    assert users["messagebus"][2:4] == ["999", groups["messagebus"]] and groups["messagebus"] == "999"
    assert users["sshd"][2:4] == ["991", "65534"]
    assert tree.entries["usr/lib/dbus/launch"].gid == 999
    assert {line.split(":")[0]: line.split(":")[1] for line in tree.text("etc/shadow").splitlines()} == {
        "root": "*", "messagebus": "!*", "sshd": "!*"
    }  # fmt: skip


def test_configuration_of_the_container_stays() -> None:
    tree = container()
    tree.write("etc/ssh/moduli", "its own")
    tree.write("etc/ssh/sshd_config", "its own")
    add(tree)
    assert tree.text("etc/ssh/moduli") == tree.text("etc/ssh/sshd_config") == "its own"
    assert tree.text("etc/default/ssh") == "pinned"


def test_a_container_with_an_init_gets_only_the_ssh_server() -> None:
    tree = container()
    tree.write("usr/sbin/init", "its own", 0o755)
    tree.write("usr/bin/sudo", "its own", 0o755)
    assert add(tree)[0] == "added, from the pinned packages: openssh-server, ucf"
    assert tree.text("usr/sbin/init") == "its own"


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (container(libsystemd="3-1"), "libsystemd 3-1 is later than the pinned 1-2"),
        (container(more=[stanza("tool", Depends="libsystemd (= 1-1)")]), "tool needs libsystemd (= 1-1)"),
        (container(more=[stanza("tool", Conflicts="openssh-server")]), "tool excludes openssh-server"),
        (container(libc="1-1", more=[stanza("tool", Depends="libc (<< 2)")]), "tool needs libc (<< 2)"),
    ],
    ids=["later", "equal", "conflict", "upgraded"],
)
def test_packages_that_do_not_fit_the_container_are_refused(tree: Tree, said: str) -> None:
    before = dict(tree.entries)
    with pytest.raises(UserError) as caught:
        add(tree)
    assert said in caught.value.message and "RUN apt-get" in caught.value.hint
    assert tree.entries == before
    # Control: without that package, or of that version, they do fit.
    assert add(container())


def test_a_dependency_that_was_unmet_before_is_ignored() -> None:
    assert add(container(more=[stanza("forced", Depends="nothing-has-this")]))


def test_another_release_with_an_init_gives_a_warning() -> None:
    tree = container()
    tree.write("etc/os-release", "ID=alpine\nPRETTY_NAME='Alpine \x1b[2J3'\n")
    tree.write("usr/sbin/init", "its own", 0o755)
    (said,) = add(tree)
    assert (
        said.startswith("warning: missing, and cannot be added: an SSH server, sudo: found Alpine")
        and "\x1b" not in said
    )


def test_links_are_followed_inside_the_root_only() -> None:
    """usr/sbin of the container may be a link to anywhere: the added files stay in the root."""
    tree = container()
    tree.entries["usr/sbin"] = Entry("usr/sbin", Kind.SYMLINK, 0o777, target="../../../../opt")
    add(tree)
    assert tree.entries["opt/sshd"].content and "usr/sbin/sshd" not in tree.entries


@pytest.mark.parametrize(("number", "here"), [("\u00b2", 101), ("1" * 5000, 101), ("101", 100)])
def test_an_account_of_the_image_counts_only_with_a_number(number: str, here: int) -> None:
    """The last row is the control: this number is taken."""
    tree = Tree([text_entry("etc/passwd", f"odd:x:{number}:0::/:/bin/sh\n")])
    donor = Tree([text_entry("etc/passwd", "sshd:x:101:0::/run/sshd:/usr/sbin/nologin\n")])
    users, _, names = _add_accounts(tree, donor)
    assert names == ["sshd"] and (users[101] == 101) == (here == 101)


@pytest.mark.parametrize(("last", "taken"), [(101, True), (100, False)])
def test_an_account_without_a_free_number_is_refused(last: int, taken: bool) -> None:
    """Control: one number is free."""
    donor = Tree([text_entry("etc/group", "new:x:999:\n"), text_entry("etc/passwd", "")])
    tree = Tree([text_entry("etc/group", "".join(f"g{n}:x:{n}:\n" for n in range(last, 1000)))])
    if taken:
        assert _add_accounts(tree, donor)[1] == {999: 100}
        return
    with pytest.raises(UserError, match="/etc/group: the numbers from 100 to 999 are in use"):
        _add_accounts(tree, donor)


def test_a_large_text_file_is_named_as_in_the_image() -> None:
    """Its archive is a temporary file. Control: the largest size that is read."""
    large = text_entry("etc/passwd", bytes(16 << 20))
    assert len(Tree([large]).text("etc/passwd")) == 16 << 20
    assert large.content
    larger = replace(large, content=replace(large.content, size=(16 << 20) + 1))
    with pytest.raises(UserError, match=r"^/etc/passwd: a text file of 16777217 bytes, expected at most 16777216$"):
        Tree([larger]).text("etc/passwd")


@pytest.mark.parametrize(
    ("one", "other"),
    [("²:1", "1:1"), ("1", "1" * 5000), ("1" * 5000, "1" * 4999 + "2"), ("1:1", "1" * 5000 + ":1"), ("1.2", "1.10")],
)
def test_versions_of_any_text_are_compared(one: str, other: str) -> None:
    """An image's own status file may have any; int() takes neither all digits of Unicode nor any number of them."""
    assert compare(one, other) < 0 < compare(other, one)
    assert compare(one, one) == 0 == compare("7", "0" * 5000 + "7")
