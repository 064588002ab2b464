# SPDX-License-Identifier: Apache-2.0
"""The changes that adoption makes to a foreign root filesystem: each is named, and everything else stays unchanged."""

from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import Layer, directory_entry, link_entry, merge, text_entry
from sevsnp.archives.tar import Entry, Kind
from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError
from sevsnp.images.adopt import adopt, read_switched_off
from sevsnp.images.host_channels import read_marks
from sevsnp.images.identity import DenyList, IdentityFilter, ImageKind

GUEST_VM = Path(__file__).resolve().parents[3] / "guest-vm"
MARKS = read_marks(GUEST_VM / "host-channels.yaml", GUEST_VM / "judged-programs.yaml")
KEY = "ssh-ed25519 AAAAowner"
NO_SHELL = "[Service]\nExecStart=/usr/bin/systemctl poweroff\n"
UNITS = "usr/lib/systemd/system"
ETC = "etc/systemd/system"

OFF = (
    "serial-getty@.service",
    "debug-shell.service",
    "swap.target",
    "boot-efi.mount",
    "multipathd.service",
    "multipathd.socket",
    "cloud-init.service",
    "cloud-init-local.service",
    "cloud-final.service",
    "qemu-guest-agent.service",
    "google-guest-agent.service",
    "walinuxagent.service",
    "hv-kvp-daemon.service",
)
ON = ("ssh.service", "cron.service", "systemd-networkd.service", "nginx.service", "getty.target")


def image(*more: Entry) -> Tree:
    """A cloud image, more or less."""
    entries = [
        text_entry(
            "etc/passwd",
            "root:x:0:0::/root:/bin/bash\nuucp:x:10:10:::/usr/sbin/nologin\nalice:x:1000:1000::/home/alice:/bin/bash\n",
        ),
        replace(
            text_entry("etc/shadow", "root:$y$hash:1::::::\nuucp:*:1::::::\nalice:$y$other:1::::::\n"),
            mode=0o640,
            gid=42,
        ),
        text_entry("etc/group", "root:x:0:\nuucp:x:10:\nalice:x:1000:\n"),
        text_entry("etc/gshadow", "root:*::\nalice:!::\n"),
        text_entry("etc/fstab", "# old\nUUID=1 / ext4 defaults 0 1\n"),
        text_entry("bin/bash", "", 0o755),
        text_entry("usr/bin/sudo", "", 0o4755),
        text_entry("usr/sbin/sshd", "", 0o755),
        text_entry("etc/ssh/sshd_config", "Port 22\n  AuthorizedKeysCommand /usr/bin/ask-the-cloud %u\n"),
        text_entry("etc/cloud/cloud.cfg", ""),
        text_entry("etc/netplan/50-cloud-init.yaml", "network: {}\n"),
        text_entry("usr/lib/systemd/system-generators/systemd-gpt-auto-generator", "", 0o755),
        text_entry("usr/local/lib/systemd/system-generators/ignition-generator", "", 0o755),
        text_entry("usr/local/lib/systemd/system-generators/harmless-generator", "", 0o755),
        *(text_entry(f"{UNITS}/{name}", "[Unit]\n") for name in (*OFF, *ON, "emergency.service")),
        link_entry(f"{ETC}/multi-user.target.wants/ssh.service", f"/{UNITS}/ssh.service"),
    ]
    # What a package or an installer has there wins over the packages.
    return Tree(merge([Layer("image", [*entries, *more])]).values())


def changed(tree: Tree) -> list[str]:
    return list(adopt(tree, KEY, NO_SHELL, read_switched_off(GUEST_VM / "switched-off.yaml"), MARKS))


def test_services_that_obey_the_host_are_switched_off_and_others_are_not() -> None:
    tree = image()
    before = dict(tree.entries)
    said = "\n".join(changed(tree))
    for name in OFF:
        entry = tree.entries[f"{ETC}/{name}"]
        assert entry.kind is Kind.SYMLINK and entry.target == "/dev/null" and name in said
    for name in ON:
        assert f"{ETC}/{name}" not in tree.entries
    for name in ("systemd-gpt-auto-generator", "ignition-generator"):
        assert tree.entries[f"etc/systemd/system-generators/{name}"].target == "/dev/null"
    assert not tree.has("etc/systemd/system-generators/harmless-generator")
    assert tree.has("etc/cloud/cloud-init.disabled")
    assert "UUID" not in tree.text("etc/fstab") and "emptied: /etc/fstab" in said
    assert not tree.has("etc/netplan/50-cloud-init.yaml")
    assert tree.text("etc/ssh/sshd_config").splitlines()[1].startswith("#")
    assert tree.text(f"{ETC}/emergency.service.d/99-guest.conf") == NO_SHELL
    # All that is different is said, by its name or by that of what it belongs to.
    different = {name for name in tree.entries.keys() | before.keys() if tree.entries.get(name) != before.get(name)}
    unsaid = {
        name
        for name in different
        if name not in said
        and name.rpartition("/")[2] not in said
        and (name not in tree.entries or tree.entries[name].kind is not Kind.DIRECTORY)
    }
    assert unsaid == {
        "etc/passwd",
        "etc/shadow",
        "etc/group",
        "etc/gshadow",
        f"{ETC}/emergency.service.d/99-guest.conf",
    }


def test_a_second_adoption_names_no_change() -> None:
    tree = image()
    assert changed(tree) != []
    assert changed(tree) == []


def test_the_owner_s_account() -> None:
    """It is made if it is missing; the other accounts keep what they have."""
    tree = image()
    said = "\n".join(changed(tree))
    assert "account user (uid 1001)" in said and "public key" in said and "becomes root" in said
    assert tree.text("etc/passwd").endswith("user:x:1001:1001::/home/user:/bin/bash\n")
    assert "alice:$y$other:" in tree.text("etc/shadow") and "\nuser:*:" in tree.text("etc/shadow")
    shadow = tree.entries["etc/shadow"]
    assert (shadow.mode, shadow.gid) == (0o640, 42)
    home, keys = tree.entries["home/user"], tree.entries["home/user/.ssh/authorized_keys"]
    assert (home.mode, home.uid, keys.mode, keys.uid, keys.gid) == (0o700, 1001, 0o600, 1001, 1001)
    assert tree.text("home/user/.ssh/authorized_keys") == f"{KEY}\n"
    # Passwords are the workflow's to lock: a verified root is readable by the host, an encrypted one is not.
    for kind, hashes in ((ImageKind.VERITY, False), (ImageKind.LUKS, True)):
        kept = Tree(IdentityFilter(kind, DenyList(GUEST_VM / "denied.yaml"))(tree.ordered()))
        assert ("$y$" in kept.text("etc/shadow")) is hashes
        assert kept.text("home/user/.ssh/authorized_keys") == f"{KEY}\n"


def test_an_existing_account_gets_the_key_and_no_further_rights() -> None:
    tree = image()
    tree.write("etc/passwd", "root:x:0:0::/root:/bin/bash\nuser:x:500:500::/srv/me:/bin/sh\n")
    tree.write("srv/me/.ssh/authorized_keys", "ssh-ed25519 AAAAother", 0o600, 500, 500)
    said = "\n".join(changed(tree))
    assert tree.text("srv/me/.ssh/authorized_keys") == f"ssh-ed25519 AAAAother\n{KEY}\n"
    assert "account" not in said and not tree.has("etc/sudoers.d/user") and "/srv/me/.ssh/authorized_keys" in said


def test_an_existing_group_of_that_name_is_used() -> None:
    tree = image()
    tree.write("etc/group", "root:x:0:\nuser:x:1001:\n")
    changed(tree)
    assert tree.text("etc/passwd").splitlines()[-1] == "user:x:1002:1001::/home/user:/bin/bash"
    assert tree.text("etc/group") == "root:x:0:\nuser:x:1001:\n"


def test_an_ssh_server_that_no_unit_starts_is_switched_on() -> None:
    tree = image()
    tree.remove(f"{ETC}/multi-user.target.wants/ssh.service")
    assert "switched on: ssh.service" in changed(tree)
    assert tree.entries[f"{ETC}/multi-user.target.wants/ssh.service"].target == f"/{UNITS}/ssh.service"
    tree = image()
    tree.remove("usr/sbin/sshd")
    assert "warning: no SSH server in the image: nobody can log in" in changed(tree)


def test_a_network_card_without_configuration_gets_dhcp() -> None:
    """DHCP for a card without configuration; NetworkManager does that itself."""
    tree = image()
    said = "\n".join(changed(tree))
    assert "switched on: systemd-networkd.service" in said and "99-ethernet.network" in said
    tree = image(link_entry(f"{ETC}/multi-user.target.wants/NetworkManager.service", "/x"))
    assert "networkd" not in "\n".join(changed(tree))


def test_console_logins_of_another_init_are_switched_off() -> None:
    tree = image(text_entry("etc/inittab", "::sysinit:/sbin/openrc sysinit\nttyS0::respawn:/sbin/getty -L 0 ttyS0\n"))
    assert any("/etc/inittab" in line for line in changed(tree))
    assert tree.text("etc/inittab").splitlines() == [
        "::sysinit:/sbin/openrc sysinit",
        "# ttyS0::respawn:/sbin/getty -L 0 ttyS0",
    ]


def test_paths_are_followed_as_the_guest_does() -> None:
    tree = Tree(
        [
            directory_entry(""),
            link_entry("lib", "usr/lib"),
            directory_entry("usr/lib"),
            link_entry("etc", "/private/etc"),
            text_entry("file", "x"),
            link_entry("circle", "circle"),
        ]
    )
    tree.write("lib/modules/1/a", "a")
    tree.write("etc/fstab", "f")
    assert "usr/lib/modules/1/a" in tree.entries and "private/etc/fstab" in tree.entries
    assert [entry.name for entry in tree.ordered()].index("usr/lib/modules") < len(tree.entries)
    assert tree.names("lib/modules") == ["1"] and tree.text("etc/fstab") == "f"
    with pytest.raises(UserError, match="/file: found a file"):
        tree.write("file/below", "")
    with pytest.raises(UserError, match="circle"):
        tree.write("circle/below", "")
    tree.clear("lib/modules")
    assert not tree.has("usr/lib/modules/1")


def test_the_other_name_of_a_changed_hard_link_keeps_its_content() -> None:
    one = text_entry("etc/fstab", "UUID=1 / ext4\n")
    tree = image(one, replace(one, name="root/fstab.backup"))
    changed(tree)
    assert tree.text("root/fstab.backup") == "UUID=1 / ext4\n" and "UUID" not in tree.text("etc/fstab")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a reason: [a.service, b.service, a.service]", "a reason: a.service is given twice"),
        ("a reason: [a.service]\na reason: [b.service]", "line 2: a reason is given twice"),
        ("a reason: [etc/a.service]", "found 'etc/a.service', expected a unit's name"),
        ("a reason: [a service]", "found 'a service', expected a unit's name"),
        ("a reason: [true]", "found True, expected a unit's name"),
        ("a reason: a.service", "found 'a.service', expected a list"),
    ],
)
def test_a_malformed_list_of_units_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "off.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        read_switched_off(file)
    assert refused.value.message.startswith(f"{file}: ") and words in refused.value.message
    file.write_text("a reason: [a.service, 'b@*.service']")
    assert read_switched_off(file) == {"a reason": ["a.service", "b@*.service"]}  # control
