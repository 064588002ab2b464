# SPDX-License-Identifier: Apache-2.0
"""The network of a guest that waits for its key: one card, and an address from the host's DHCP, which is untrusted."""

import os
import time

import linux

BUSYBOX = "/usr/bin/busybox"
LEASE = "/usr/lib/sevsnp/lease"


def up(seconds: float = 30.0) -> str:
    """Bring up the only network card; return its name. Raises Stop if there is no card, or more than one."""
    deadline = time.monotonic() + seconds
    while not (cards := [name for name in os.listdir("/sys/class/net") if name != "lo"]):
        if time.monotonic() > deadline:
            raise linux.Stop("no network card")
        time.sleep(0.05)
    if len(cards) > 1:
        raise linux.Stop(f"found {len(cards)} network cards, expected one")
    linux.run(BUSYBOX, "ip", "link", "set", cards[0], "up")
    linux.run(BUSYBOX, "udhcpc", "-i", cards[0], "-f", "-q", "-n", "-t", "20", "-T", "1", "-s", LEASE)
    return cards[0]


def down(card: str) -> None:
    """Reset the card to its state before :func:`up`: the guest's own network manager sets it up again."""
    linux.run(BUSYBOX, "ip", "addr", "flush", "dev", card)
    linux.run(BUSYBOX, "ip", "link", "set", card, "down")
