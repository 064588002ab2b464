# SPDX-License-Identifier: Apache-2.0
"""Give the guest the DNS servers of the measured command line, whatever its network manager and the host's DHCP say.

Nothing on the disk is changed; only a missing /etc/resolv.conf is made, empty. A server that is named here is not
trusted: its answers come over the host's network.
"""

import os

import linux

_MS_REMOUNT, _MS_BIND = 0x20, 0x1000
_FILE = "run/sevsnp/resolv.conf"
# systemd-resolved asks the servers of a link for no name that these servers take (resolved.conf(5), routing domains).
_RESOLVED = ("run/systemd/resolved.conf.d/zz-guest-dns.conf", "[Resolve]\nDNS={}\nFallbackDNS=\nDomains=~.\n", " ")
# NetworkManager uses these instead of those of its connections (NetworkManager.conf(5), GLOBAL-DNS).
_MANAGER = ("run/NetworkManager/conf.d/zz-guest-dns.conf", "[global-dns-domain-*]\nservers={}\n", ",")


def set_up(root: str, servers: "list[str]") -> None:
    """Make ``servers`` (IP addresses, at most three) those of the guest below ``root``, where /run is mounted."""
    for place, text, separator in (_RESOLVED, _MANAGER):
        _write(f"{root}/{place}", text.format(separator.join(servers)))
    _write(f"{root}/{_FILE}", "".join(f"nameserver {server}\n" for server in servers))
    target = f"{root}/etc/resolv.conf"
    # A link leads to the file of a program that manages it, which has its servers from the files above.
    if os.path.islink(target):
        return
    if not os.path.exists(target):
        _write(target, "")
    # A file in the mount's place cannot be replaced by a DHCP client, and the mount itself is read-only.
    linux.mount(f"{root}/{_FILE}", target, flags=_MS_BIND)
    flags = _MS_BIND | _MS_REMOUNT | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("", target, flags=flags)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="ascii") as stream:
        stream.write(text)
