# SPDX-License-Identifier: Apache-2.0
"""What configures the network of a root file system, and whether that can work with the one card of a measured guest.

The card's name and MAC address are the host's choice, so only a configuration that claims any card fits.
"""

import re
from collections.abc import Iterator

from sevsnp.archives.tar import Kind
from sevsnp.archives.tree import Tree

UNITS = "etc/systemd/system"
UNIT_FOLDERS = (UNITS, "usr/local/lib/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
# The units of the managers. Each is enough; netplan writes files for the first two at boot.
_MANAGERS = {
    "systemd-networkd.service": "systemd-networkd",
    "NetworkManager.service": "NetworkManager",
    "networking.service": "ifupdown",
    "network.service": "the network scripts",
    "dhcpcd.service": "dhcpcd",
    "connman.service": "ConnMan",
    "wicked.service": "wicked",
}
_SCRIPTS = ("networking", "network", "dhcpcd", "connman", "NetworkManager")
_CLOUD = ("etc/netplan", "etc/systemd/network", "etc/network/interfaces.d", "etc/NetworkManager/system-connections")
_CLOUD_MARK = "Created by cloud-init"
_IFCFG = "etc/sysconfig/network-scripts"
_CONFIGURATION = {
    "etc/systemd/network": re.compile(r"^\s*Address\s*=", re.MULTILINE),
    "etc/netplan": re.compile(r"^\s*-?\s*addresses\s*:(?!\s*\[?\s*\]?\s*$)|^\s*addresses\s*:\s*$", re.MULTILINE),
    "etc/network/interfaces.d": re.compile(r"^\s*iface\s+(?!lo\s)\S+\s+inet6?\s+static", re.MULTILINE),
    "etc/NetworkManager/system-connections": re.compile(r"^\s*method\s*=\s*manual", re.MULTILINE),
    _IFCFG: re.compile(r"^\s*IPADDR\d*\s*=\s*[\"']?(?!127\.)", re.MULTILINE),
}
_INTERFACES = "etc/network/interfaces"
_MANAGER_CONFIG = ("etc/NetworkManager", "etc/NetworkManager/conf.d", "usr/lib/NetworkManager/conf.d")
_NO_DEFAULT = re.compile(r"^\s*no-auto-default\s*=\s*\S", re.MULTILINE)

_FALLBACK = "etc/systemd/network/99-ethernet.network"
# A card that another file of the image configures keeps its settings: networkd takes the first file that matches.
_FALLBACK_TEXT = """\
# For a network card that nothing else in this image claims: its address comes from DHCP.
[Match]
Type=ether
Kind=!*

[Network]
DHCP=ipv4
"""
_CONNECTION = "etc/NetworkManager/system-connections/99-ethernet.nmconnection"
# NetworkManager takes the connection with the highest priority of those that fit the card.
_CONNECTION_TEXT = """\
# For a network card that no other connection of this image claims: its address comes from DHCP.
[connection]
id=99-ethernet
uuid=5c8a3a8e-6c3f-4c39-8f38-3f5f53b8c1d2
type=ethernet
autoconnect-priority=-999

[ipv4]
method=auto

[ipv6]
method=ignore
"""


def adopt_network(tree: Tree) -> Iterator[str]:
    """Change ``tree`` so that its own manager gives any card an address by DHCP; yield a line for each change."""
    made = list(_made_by_cloud_init(tree))
    for name in made:
        tree.remove(name)
    if made:
        yield f"removed, since cloud-init made it for another machine: {', '.join(f'/{name}' for name in made)}"
    if tree.has(f"{UNITS}/multi-user.target.wants/NetworkManager.service"):
        if _no_default(tree) and not tree.has(_CONNECTION):
            tree.write(_CONNECTION, _CONNECTION_TEXT, 0o600)
            yield f"added: /{_CONNECTION}: DHCP for a network card that nothing else claims"
        return
    folder = next((folder for folder in UNIT_FOLDERS if tree.has(f"{folder}/systemd-networkd.service")), "")
    if not folder:
        return  # another init has its own way
    wants = f"{UNITS}/multi-user.target.wants/systemd-networkd.service"
    if not tree.has(wants):
        tree.link(wants, f"/{folder}/systemd-networkd.service")
        yield "switched on: systemd-networkd.service"
    if not tree.has(_FALLBACK):
        tree.write(_FALLBACK, _FALLBACK_TEXT)
        yield f"added: /{_FALLBACK}: DHCP for a network card that nothing else claims"


def network_remarks(tree: Tree) -> Iterator[str]:
    """Lines about a root whose network probably does not work, as it is."""
    if not managers(tree):
        yield f"nothing in it configures the network: none of {', '.join(_MANAGERS.values())} is switched on"
    for name in _fixed(tree):
        yield f"/{name}: a fixed address: a guest whose card has it is reached only in a network where that is right"


def managers(tree: Tree) -> list[str]:
    """The network managers that the root starts."""
    units = {unit for name in tree.names(UNITS) if name.endswith(".wants") for unit in tree.names(f"{UNITS}/{name}")}
    found = [shown for unit, shown in _MANAGERS.items() if unit in units and not _masked(tree, unit)]
    levels = [f"etc/{name}" for name in tree.names("etc") if re.fullmatch(r"rc[S2-5]\.d", name)]
    levels += [f"etc/runlevels/{name}" for name in tree.names("etc/runlevels")]
    scripts = {re.sub(r"^S\d\d", "", script) for level in levels for script in tree.names(level)}
    return [*found, *(script for script in _SCRIPTS if script in scripts)]


def _masked(tree: Tree, unit: str) -> bool:
    entry = tree.entries.get(f"{UNITS}/{unit}")
    return entry is not None and entry.kind is Kind.SYMLINK and entry.target == "/dev/null"


def _made_by_cloud_init(tree: Tree) -> Iterator[str]:
    for folder in _CLOUD:
        yield from (f"{folder}/{name}" for name in tree.names(folder) if "cloud-init" in name)
    for name in tree.names(_IFCFG):
        if name.startswith("ifcfg-") and _CLOUD_MARK in tree.text(f"{_IFCFG}/{name}"):
            yield f"{_IFCFG}/{name}"


def _no_default(tree: Tree) -> bool:
    """Whether NetworkManager makes no connection by itself for a card that nothing claims (as in RHEL's images)."""
    files = [f"{folder}/{name}" for folder in _MANAGER_CONFIG for name in tree.names(folder) if name.endswith(".conf")]
    return any(_NO_DEFAULT.search(tree.text(name)) for name in files)


def _fixed(tree: Tree) -> Iterator[str]:
    for folder, pattern in _CONFIGURATION.items():
        for name in tree.names(folder):
            if pattern.search(_without_servers(tree.text(f"{folder}/{name}"))):
                yield f"{folder}/{name}"
    if _CONFIGURATION["etc/network/interfaces.d"].search(tree.text(_INTERFACES)):
        yield _INTERFACES


def _without_servers(text: str) -> str:
    """A netplan file without its ``nameservers``, which have addresses too; any other file as it is."""
    kept, inside = [], -1
    for line in text.splitlines():
        depth = len(line) - len(line.lstrip())
        if inside >= 0 and line.strip() and depth <= inside:
            inside = -1
        if inside < 0 and re.match(r"\s*nameservers\s*:", line):
            inside = depth
        if inside < 0:
            kept.append(line)
    return "\n".join(kept)
