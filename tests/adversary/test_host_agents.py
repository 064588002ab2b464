# SPDX-License-Identifier: Apache-2.0
"""Agents in an adopted image that run what the host says: they never start. The control guest shows that they would.

Both guests have the channel, and an initramfs without the lock of devices: only what adopt switched off protects.
"""

import shutil
import socket
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import link_entry, text_entry
from sevsnp.system.files import short_name
from tests.conftest import Built
from tests.support.hostile_devices import make_adopted
from tests.support.shared_guests import attested, started

pytestmark = [pytest.mark.boot, pytest.mark.full]

PORT = "org.example.helper"
ORDER = b"echo agent-mark port >/dev/ttyS0\n"
ETC = "etc/systemd/system"
# The mark of the second is that it starts at all: no metadata service answers here.
IMAGE = (
    text_entry(f"{ETC}/helper.service", "[Service]\nExecStart=/usr/lib/helper/agent\n"),
    text_entry(
        "usr/lib/helper/agent",
        f"#!/bin/sh\nwhile [ ! -e /dev/virtio-ports/{PORT} ]; do sleep 1; done\n"
        f'while read -r order; do eval "$order"; done </dev/virtio-ports/{PORT}\n',
        0o755,
    ),
    link_entry(f"{ETC}/multi-user.target.wants/helper.service", "../helper.service"),
    text_entry(f"{ETC}/keys.service", "[Service]\nExecStart=/usr/bin/keys\n"),
    text_entry(
        "usr/bin/keys",
        "#!/bin/sh\necho agent-mark address >/dev/ttyS0\nexec 3<>/dev/tcp/169.254.169.254/80\n",
        0o755,
    ),
    link_entry(f"{ETC}/multi-user.target.wants/keys.service", "../keys.service"),
)


@pytest.mark.parametrize("switched_off", [True, False], ids=["adopted", "control"])
def test_an_agent_of_the_host_never_starts(built: Built, tmp_path: Path, switched_off: bool) -> None:
    nothing = tmp_path / "channels.yaml"
    nothing.write_text("nothing:\n  - no such text\n")
    made = tmp_path / "made"
    made.mkdir()
    adopted = make_adopted(built, made, mark="tls", more=IMAGE, channels=None if switched_off else nothing)
    with short_name(tmp_path) as short:
        channel = short / "socket"
        devices = (
            *("-device", "virtio-serial-pci,id=hostile,disable-legacy=on,iommu_platform=on"),
            *("-chardev", f"socket,id=agent,path={channel},server=on,wait=off"),
            *("-device", f"virtserialport,bus=hostile.0,chardev=agent,name={PORT}"),
        )
        with (
            started(built, adopted.unlocked, tmp_path / "state", devices) as running,
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.connect(str(channel))
            client.sendall(ORDER)
            guest = attested(running)
            guest.ssh("systemctl is-system-running --wait || true")
            if not switched_off:
                running.guest.wait_for("agent-mark port")
                running.guest.wait_for("agent-mark address")
            ports = guest.ssh("ls /dev/virtio-ports")
            states = guest.ssh("systemctl is-enabled helper.service keys.service || true").split()
            log = running.guest.log()
    assert PORT in ports, "the channel must be there"
    assert ("agent-mark" in log) is not switched_off
    assert len(states) == 2 and (states == ["masked", "masked"]) is switched_off
    shutil.rmtree(made)  # gigabytes
