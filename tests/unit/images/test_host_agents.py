# SPDX-License-Identifier: Apache-2.0
"""Services that obey the host are found in every init system; services that only look similar stay."""

from pathlib import Path

import pytest

from sevsnp.archives.rootfs import Layer, link_entry, make_rootfs, merge, text_entry
from sevsnp.archives.tar import Entry, Kind, read_tar
from sevsnp.archives.tree import Tree
from sevsnp.errors import UserError
from sevsnp.images import host_channels
from sevsnp.images.adopt import read_switched_off
from sevsnp.images.host_agents import named_services, switch_off_agents
from sevsnp.images.host_channels import Channels, read_marks
from sevsnp.images.mount_units import is_masked, mask_mounts

GUEST_VM = Path(__file__).resolve().parents[3] / "guest-vm"
MARKS = read_marks(GUEST_VM / "host-channels.yaml", GUEST_VM / "judged-programs.yaml")
UNITS, ETC = "usr/lib/systemd/system", "etc/systemd/system"
ELF = "\x7fELF\x02\x01"


def program(name: str, text: str) -> Entry:
    return text_entry(name, text, 0o755)


def tree(*entries: Entry) -> Tree:
    return Tree(merge([Layer("image", [*entries])]).values())


# An agent of LXD's kind under another name, one by a metadata address, one in a program file, and so on.
BAD = (
    text_entry(
        f"{UNITS}/helper.service", "[Service]\nExecStartPre=/usr/lib/helper/setup\nExecStart=/run/helper/agent\n"
    ),
    program("usr/lib/helper/setup", "#!/bin/sh\nmount -t virtiofs config /run/helper\n"),
    text_entry(f"{UNITS}/run-only.service", "[Service]\nExecStart=-/run/other/agent\n"),
    text_entry(f"{UNITS}/keys.service", "[Service]\nExecStart=/usr/bin/python3 /usr/bin/keys\n"),
    program("usr/bin/keys", "#!/usr/bin/python3\nurlopen('http://169.254.169.254/keys')\n"),
    text_entry(f"{UNITS}/ports.service", "[Service]\nExecStart=/opt/ports\n"),
    program("opt/ports", f"{ELF}\0/dev/virtio-ports/org.example\0"),
    text_entry(f"{UNITS}/finder.service", "[Service]\nExecStart=/usr/bin/finder\n"),
    program("usr/bin/finder", '#!/bin/sh\nfor port in /sys/class/virtio-ports/*; do . "/dev/${port##*/}"; done\n'),
    text_entry(f"{UNITS}/outer.service", "[Service]\nExecStart=/usr/bin/outer\n"),
    program("usr/bin/outer", "#!/bin/sh\nexec /usr/bin/inner\n"),
    program("usr/bin/inner", f"{ELF}\0/sys/firmware/qemu_fw_cfg/by_name\0"),
    text_entry(f"{UNITS}/vm.socket", "[Socket]\nListenStream=vsock::22\n"),
    text_entry(f"{ETC}/nginx.service.d/cloud.conf", "[Service]\nExecStartPre=/usr/bin/keys\n"),
    text_entry("etc/systemd/user/mine.service", "[Service]\nExecStart=/usr/bin/keys\n"),
    text_entry("root/.config/systemd/user/own.service", "[Service]\nExecStart=/usr/bin/keys\n"),
    program("usr/lib/systemd/system-generators/model-generator", "#!/bin/sh\ncat /sys/class/dmi/id/board_name\n"),
    text_entry("usr/lib/udev/rules.d/99-a.rules", 'SUBSYSTEM=="virtio-ports", ENV{SYSTEMD_WANTS}="a.service"\n'),
    program("etc/init.d/agent", '#!/sbin/openrc-run\ncommand="/opt/ports"\n'),
    link_entry("etc/runlevels/default/agent", "/etc/init.d/agent"),
    link_entry("etc/rc2.d/S20agent", "../init.d/agent"),
    program("etc/local.d/meta.start", "#!/bin/sh\nwget -qO- http://metadata.google.internal/run | sh\n"),
    program("etc/cron.daily/meta", "#!/bin/sh\n/usr/bin/keys\n"),
    text_entry("etc/dhcp/dhclient-exit-hooks.d/meta", "wget http://169.254.169.254/hostname\n"),
    text_entry("etc/crontab", "1 * * * * root /usr/sbin/logrotate\n2 * * * * root /usr/bin/keys\n"),
)
# The near misses, one for each kind.
GOOD = (
    text_entry(f"{UNITS}/nginx.service", "[Service]\nExecStart=/usr/sbin/nginx\n"),
    program("usr/sbin/nginx", f"{ELF}\0/dev/virtio\0vhost\0169.254.0.0/16\0"),
    text_entry(
        f"{UNITS}/asks.service",
        "# unlike /dev/virtio-ports\n[Unit]\nConditionPathExists=!/dev/vsock\nDocumentation=man:virtiofs(7)\n"
        "[Service]\nDeviceAllow=/dev/vsock r\nExecStart=/usr/bin/asks\n",
    ),
    program("usr/bin/asks", "#!/bin/sh\n# not 169.254.169.254\nexit 0\n"),
    text_entry(f"{UNITS}/docker.service", "[Service]\nExecStart=/usr/bin/dockerd\n"),
    program("usr/bin/dockerd", f"{ELF}\0http://169.254.169.254\0"),
    program("usr/bin/unused", "#!/bin/sh\ncurl http://169.254.169.254\n"),
    text_entry("usr/lib/udev/rules.d/50-b.rules", 'SUBSYSTEM=="virtio-ports", SYMLINK+="virtio-ports/$attr{name}"\n'),
    program("usr/lib/systemd/system-generators/other-generator", "#!/bin/sh\n"),
    program("etc/init.d/web", '#!/sbin/openrc-run\ncommand="/usr/sbin/nginx"\n'),
    link_entry("etc/runlevels/default/web", "/etc/init.d/web"),
    program("etc/local.d/web.start", "#!/bin/sh\nexit 0\n"),
    text_entry("etc/dhcp/dhclient-exit-hooks.d/ntp", "true\n"),
)

GOLDEN = """\
switched off, since it asks the metadata service of the host's network: keys.service, nginx.service.d/cloud.conf, \
mine.service, own.service, /etc/cron.daily/meta, /etc/dhcp/dhclient-exit-hooks.d/meta, /etc/local.d/meta.start
switched off, since it mounts a directory of the host's: helper.service
switched off, since it reads SMBIOS or fw_cfg: outer.service, model-generator
switched off, since it uses a virtio-serial port of the host's: finder.service, ports.service, 99-a.rules, \
/etc/init.d/agent
switched off, since its program is not in the image: run-only.service
switched off, since it talks to the host over vsock: vm.socket
switched off in /etc/crontab, since it asks the metadata service of the host's network: 2 * * * * root /usr/bin/keys"""


def test_agents_are_found_by_their_behaviour_and_other_services_stay() -> None:
    root = tree(*BAD, *GOOD)
    said = list(switch_off_agents(root, MARKS))
    assert sorted(said) == sorted(GOLDEN.splitlines())
    for entry in GOOD:
        assert root.entries[entry.name] == entry, entry.name
    for name in (
        *(f"{ETC}/{unit}.service" for unit in ("helper", "run-only", "keys", "ports", "finder", "outer")),
        f"{ETC}/vm.socket",
        f"{ETC}/nginx.service.d/cloud.conf",
        "etc/systemd/user/mine.service",
        "root/.config/systemd/user/own.service",
        "etc/systemd/system-generators/model-generator",
        "etc/udev/rules.d/99-a.rules",
    ):
        assert is_masked(root, name), name
    assert not root.has("etc/runlevels/default/agent") and not root.has("etc/rc2.d/S20agent")
    for name in ("etc/init.d/agent", "etc/local.d/meta.start", "etc/cron.daily/meta"):
        assert root.entries[name].mode == 0o644
    assert root.text("etc/dhcp/dhclient-exit-hooks.d/meta") == ""
    assert root.text("etc/crontab").splitlines()[1].startswith("# 2")
    assert list(switch_off_agents(root, MARKS)) == []  # nothing is said twice


@pytest.mark.parametrize("entry", GOOD, ids=lambda entry: entry.name)
def test_a_service_that_only_looks_like_an_agent_stays(entry: Entry) -> None:
    assert list(switch_off_agents(tree(entry), MARKS)) == []


def test_a_text_across_two_pieces_of_a_program_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A large program is read in pieces of 1 MiB. Control: a text that ends one byte early does not match."""
    monkeypatch.setattr(host_channels, "_LONGEST_SCRIPT", 10)
    text = "/dev/virtio-ports"
    for shown, found in ((text, True), (text[:-1] + "\0", False)):
        root = tree(program("opt/big", ELF + "\0" * ((1 << 20) - len(ELF) - 7) + shown + "\0" * 99))
        archive = tmp_path / "root.tar"
        make_rootfs([Layer("test", list(root.entries.values()))], archive)
        stored = Tree(read_tar(archive).values())
        assert bool(Channels(stored, MARKS).of_program("/opt/big")) is found


def test_services_of_sysv_and_openrc_by_name() -> None:
    patterns = [name for names in read_switched_off(GUEST_VM / "switched-off.yaml").values() for name in names]
    root = tree(
        program("etc/init.d/qemu-guest-agent", "#!/sbin/openrc-run\n"),
        program("etc/init.d/sshd", "#!/sbin/openrc-run\n"),
        link_entry("etc/runlevels/default/qemu-guest-agent", "/etc/init.d/qemu-guest-agent"),
        link_entry("etc/runlevels/default/sshd", "/etc/init.d/sshd"),
    )
    assert named_services(root, patterns) == ["etc/init.d/qemu-guest-agent"]
    assert root.names("etc/runlevels/default") == ["sshd"]
    assert named_services(root, patterns) == []


def mount(name: str, what: str, kind: str = "") -> Entry:
    return text_entry(f"{ETC}/{name}", f"[Mount]\nWhat={what}\nWhere=/x\n" + (f"Type={kind}\n" if kind else ""))


def test_mount_units_of_devices_and_shares_are_masked_and_others_stay() -> None:
    off = [
        mount("label.mount", "/dev/disk/by-label/apps", "ext4"),
        mount("uuid.mount", "UUID=1"),
        mount("share.mount", "tag", "virtiofs"),
        mount("plan.mount", "tag", "9p"),
        mount("each@.mount", "/dev/%i"),
        text_entry(f"{ETC}/label.automount", "[Automount]\nWhere=/x\n"),
        text_entry(f"{ETC}/late.mount.d/disk.conf", "[Mount]\nWhat=/dev/vdb\n"),
        text_entry(f"{ETC}/area.swap", "[Swap]\nWhat=/dev/vdb\n"),
    ]
    on = [
        mount("tmp.mount", "tmpfs", "tmpfs"),
        mount("dev-hugepages.mount", "hugetlbfs", "hugetlbfs"),
        mount("snap-core.mount", "/var/lib/snapd/snaps/core.snap", "squashfs"),
        mount("team.mount", "server:/team", "nfs"),
        text_entry(f"{ETC}/proc-sys-fs-binfmt_misc.automount", "[Automount]\nWhere=/proc/sys/fs/binfmt_misc\n"),
    ]
    root = tree(*off, *on, mount("late.mount", "tmpfs"))
    assert list(mask_mounts(root)) == [
        "switched off, since what they mount would be the host's: area.swap, each@.mount, label.automount, "
        "label.mount, late.mount, plan.mount, share.mount, uuid.mount"
    ]
    assert all(root.entries[entry.name].kind is Kind.SYMLINK for entry in off if not entry.name.endswith(".conf"))
    assert all(root.entries[entry.name] == entry for entry in on)
    assert list(mask_mounts(root)) == []


@pytest.mark.parametrize(
    ("pattern", "stays"),
    [("usr/bin/keys", True), ("/usr/bin/keys", True), ("/usr/bin/key?", True), ("keys.service", True),
     ("/usr/bin/other", False)],
)  # fmt: skip
def test_a_judged_program_is_named_by_its_path_with_or_without_a_first_slash(
    tmp_path: Path, pattern: str, stays: bool
) -> None:
    judged = tmp_path / "judged.yaml"
    judged.write_text(f"ours:\n  - {pattern}\n")
    marks = read_marks(GUEST_VM / "host-channels.yaml", judged)
    keys = [entry for entry in BAD if entry.name in (f"{UNITS}/keys.service", "usr/bin/keys")]
    assert len(keys) == 2 and (list(switch_off_agents(tree(*keys), marks)) == []) is stays


def test_a_malformed_list_is_refused(tmp_path: Path) -> None:
    short = tmp_path / "channels.yaml"
    short.write_text("a reason:\n  - 9p\n")
    with pytest.raises(UserError, match="found '9p', expected a text of five characters or more"):
        read_marks(short, GUEST_VM / "judged-programs.yaml")
