# SPDX-License-Identifier: Apache-2.0
"""An image that OpenRC starts: the guest's own root without systemd, with pinned packages and services of OpenRC."""

from pathlib import Path

from sevsnp.archives.rootfs import link_entry, text_entry
from sevsnp.archives.tar import Entry
from tests.support.pinned import PinnedSet

# What the guest's own root has of systemd.
SYSTEMD = ("usr/lib/systemd", "etc/systemd")
STARTED = "the runlevel default is reached"
# A service that says that everything else was started.
LAST = f"""\
#!/usr/sbin/openrc-run
depend() {{ after '*'; }}
start() {{ echo "{STARTED}" >/dev/ttyS0; }}
"""
SSHD = """\
#!/usr/sbin/openrc-run
command=/usr/sbin/sshd
pidfile=/run/sshd.pid
start_pre() { checkpath --directory /run/sshd; }
"""


def openrc_entries(directory: Path) -> list[Entry]:
    """OpenRC as the init of a root, with sshd, and a service that says that it is done. ``directory`` keeps files."""
    entries = PinnedSet("openrc").entries(directory)
    own = (link_entry("usr/sbin/init", "openrc-init"), *service("sshd", SSHD), *service("last", LAST))
    return [*entries.values(), *own]


def service(name: str, script: str) -> tuple[Entry, Entry]:
    """A service of the runlevel default."""
    return (
        text_entry(f"etc/init.d/{name}", script, 0o755),
        link_entry(f"etc/runlevels/default/{name}", f"/etc/init.d/{name}"),
    )
