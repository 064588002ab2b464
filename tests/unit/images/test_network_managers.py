# SPDX-License-Identifier: Apache-2.0
"""The network of root filesystems of every kind: the files added so that any card gets an address, and the remarks."""

import pytest

from sevsnp.archives.rootfs import Layer, directory_entry, link_entry, merge, text_entry
from sevsnp.archives.tar import Entry
from sevsnp.archives.tree import Tree
from sevsnp.images.guest_check import remarks
from sevsnp.images.network_managers import adopt_network, managers

WANTS = "etc/systemd/system/multi-user.target.wants"
NETWORKD = text_entry("usr/lib/systemd/system/systemd-networkd.service", "[Unit]\n")
MANAGER = link_entry(f"{WANTS}/NetworkManager.service", "/usr/lib/systemd/system/NetworkManager.service")
CONNECTION = "etc/NetworkManager/system-connections/99-ethernet.nmconnection"
FALLBACK = "etc/systemd/network/99-ethernet.network"


def tree(*entries: Entry) -> Tree:
    return Tree(merge([Layer("root", [directory_entry("etc"), *entries])]).values())


def said(root: Tree) -> list[str]:
    return list(remarks(root.ordered()))


@pytest.mark.parametrize("place", ["etc/NetworkManager/conf.d", "usr/lib/NetworkManager/conf.d", "etc/NetworkManager"])
def test_networkmanager_that_ignores_unknown_cards_gets_a_connection(place: str) -> None:
    """Control: without that setting it uses DHCP by itself, and nothing is added."""
    root = tree(MANAGER, NETWORKD)
    assert list(adopt_network(root)) == []
    root = tree(MANAGER, NETWORKD, text_entry(f"{place}/server.conf", "[main]\nno-auto-default=*\n"))
    (line,) = adopt_network(root)
    assert line == f"added: /{CONNECTION}: DHCP for a network card that nothing else claims"
    made = root.entries[CONNECTION]
    # NetworkManager reads only files that root alone may read.
    assert (made.mode, made.uid) == (0o600, 0) and "method=auto" in root.text(CONNECTION)
    assert not root.has(FALLBACK) and list(adopt_network(root)) == []


def test_networkd_is_switched_on_if_no_other_manager_is() -> None:
    root = tree(NETWORKD, text_entry("etc/network/interfaces", "iface enp9s0 inet dhcp\n"))
    assert list(adopt_network(root)) == [
        "switched on: systemd-networkd.service",
        f"added: /{FALLBACK}: DHCP for a network card that nothing else claims",
    ]
    assert managers(root) == ["systemd-networkd"] and said(root) == []


MADE = (
    ("etc/netplan/50-cloud-init.yaml", "network: {}\n"),
    ("etc/systemd/network/10-cloud-init-eth0.network", "[Match]\nName=eth0\n"),
    ("etc/network/interfaces.d/50-cloud-init", "iface eth0 inet dhcp\n"),
    ("etc/NetworkManager/system-connections/cloud-init-eth0.nmconnection", "[connection]\n"),
    ("etc/sysconfig/network-scripts/ifcfg-eth0", "# Created by cloud-init automatically\nHWADDR=52:54:00:00:00:01\n"),
)


@pytest.mark.parametrize(("name", "text"), MADE)
def test_files_of_cloud_init_for_another_card_are_removed(name: str, text: str) -> None:
    """Control: a file of the image itself, beside it, stays."""
    own = name.replace("cloud-init", "own").replace("eth0", "eth1")
    root = tree(text_entry(name, text), text_entry(own, text.replace("cloud-init", "hand")))
    (line,) = adopt_network(root)
    assert f"/{name}" in line and not root.has(name) and root.has(own)


@pytest.mark.parametrize(
    ("entry", "manager"),
    [
        (link_entry(f"{WANTS}/systemd-networkd.service", "/x"), "systemd-networkd"),
        (MANAGER, "NetworkManager"),
        (link_entry("etc/systemd/system/network-online.target.wants/networking.service", "/x"), "ifupdown"),
        (link_entry(f"{WANTS}/dhcpcd.service", "/x"), "dhcpcd"),
        (link_entry("etc/runlevels/boot/networking", "/etc/init.d/networking"), "networking"),
        (link_entry("etc/rcS.d/S12networking", "../init.d/networking"), "networking"),
    ],
)
def test_which_manager_a_root_starts(entry: Entry, manager: str) -> None:
    assert managers(tree(entry)) == [manager] and said(tree(entry)) == []
    (line,) = said(tree())
    assert line.startswith("nothing in it configures the network: none of systemd-networkd, NetworkManager")


def test_a_masked_manager_does_not_count() -> None:
    masked = link_entry("etc/systemd/system/NetworkManager.service", "/dev/null")
    assert managers(tree(MANAGER, masked)) == []


FIXED = (
    ("etc/systemd/network/10.network", "[Match]\nName=*\n[Network]\nAddress=192.0.2.9/24\n"),
    ("etc/netplan/01.yaml", "network:\n  ethernets:\n    any:\n      addresses: [192.0.2.9/24]\n"),
    ("etc/netplan/01.yaml", "network:\n  ethernets:\n    any:\n      addresses:\n        - 192.0.2.9/24\n"),
    ("etc/network/interfaces", "auto lo\niface lo inet loopback\niface eth0 inet static\n  address 192.0.2.9\n"),
    ("etc/network/interfaces.d/eth0", "iface eth0 inet static\n"),
    ("etc/NetworkManager/system-connections/a.nmconnection", "[ipv4]\nmethod=manual\n"),
    ("etc/sysconfig/network-scripts/ifcfg-eth0", 'IPADDR="192.0.2.9"\n'),
)
ANY = (
    ("etc/systemd/network/10.network", "[Match]\nName=*\n[Network]\nDHCP=yes\n"),
    ("etc/netplan/01.yaml", "network:\n  ethernets:\n    any:\n      dhcp4: true\n"),
    ("etc/netplan/01.yaml", "    any:\n      nameservers:\n        addresses: [192.0.2.1]\n      dhcp4: true\n"),
    ("etc/network/interfaces", "auto lo\niface lo inet loopback\niface eth0 inet dhcp\n"),
    ("etc/NetworkManager/system-connections/a.nmconnection", "[ipv4]\nmethod=auto\n"),
    ("etc/sysconfig/network-scripts/ifcfg-lo", "IPADDR=127.0.0.1\n"),
)


@pytest.mark.parametrize(("name", "text", "fixed"), [(*one, True) for one in FIXED] + [(*one, False) for one in ANY])
def test_a_fixed_address_is_named(name: str, text: str, fixed: bool) -> None:
    lines = said(tree(MANAGER, text_entry(name, text)))
    assert [line.startswith(f"/{name}: a fixed address") for line in lines] == [True] * fixed


def test_missing_disks_and_multipath_are_named() -> None:
    fstab = "UUID=1 / ext4 defaults 0 1\n# LABEL=x /x ext4\nLABEL=data /data ext4 defaults\n"
    fstab += "tmpfs /tmp tmpfs\nUUID=2 none swap sw\n"
    multipath = link_entry("etc/systemd/system/sysinit.target.wants/multipathd.service", "/x")
    lines = said(tree(MANAGER, text_entry("etc/fstab", fstab), multipath))
    assert [line.split(" is ")[0] for line in lines] == ["/etc/fstab: /data", "/etc/fstab: none", "multipathd.service"]
    masked = link_entry("etc/systemd/system/multipathd.service", "/dev/null")
    assert said(tree(MANAGER, multipath, masked)) == []


def test_missing_kernel_modules_that_a_root_names_are_named() -> None:
    """Control: no remark if the root has modules, or if the list has comments only."""
    named = text_entry("etc/modules-load.d/own.conf", "# for the network\nbridge\n; more\n\n")
    (line,) = said(tree(MANAGER, named))
    assert line.startswith("modules-load.d names bridge, and the root has no kernel modules")
    assert said(tree(MANAGER, named, directory_entry("usr/lib/modules/6.12.1"), link_entry("lib", "usr/lib"))) == []
    assert said(tree(MANAGER, text_entry("etc/modules-load.d/own.conf", "# none\n"))) == []
