# SPDX-License-Identifier: Apache-2.0
"""Agents and mount units in an adopted image that run what the host says: they never start. The control guest shows
that they would.

Both guests have the channel and the host's disk, and an initramfs without the lock of devices: only what adopt switched
off protects.
"""

import shutil
import socket
from pathlib import Path

import pytest

from sevsnp.archives.rootfs import Layer, link_entry, make_rootfs, text_entry
from sevsnp.images import adopt
from sevsnp.images.filesystem import make_ext4
from sevsnp.qemu.process import escaped
from sevsnp.system.files import short_name
from tests.conftest import Built
from tests.support.hostile_devices import make_adopted
from tests.support.openrc_guest import STARTED, SYSTEMD, openrc_entries, service
from tests.support.shared_guests import attested, started

pytestmark = [pytest.mark.boot, pytest.mark.full]

# A port is found as udev's rules name it, or without udev by its name in sysfs.
PORT = "org.example.helper"
ORDER = b"echo agent-mark port >/dev/ttyS0\n"
ETC = "etc/systemd/system"
UNITS = ("helper.service", "keys.service", "share.service", "srv.mount")
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
    text_entry(
        f"{ETC}/share.service",
        "[Service]\nExecStart=/bin/sh -c 'mount -t 9p -o trans=virtio,version=9p2000.L host /mnt && sh /mnt/run'\n",
    ),
    link_entry(f"{ETC}/multi-user.target.wants/share.service", "../share.service"),
    text_entry(
        f"{ETC}/srv.mount",
        "[Unit]\nDefaultDependencies=no\n[Mount]\nWhat=/dev/disk/by-id/virtio-host\nWhere=/srv\n",
    ),
    text_entry(
        f"{ETC}/from-disk.service",
        "[Unit]\nRequires=srv.mount\nAfter=srv.mount\n[Service]\nExecStart=/bin/sh /srv/run\n",
    ),
    link_entry(f"{ETC}/multi-user.target.wants/from-disk.service", "../from-disk.service"),
)


OPENRC = (
    *service("helper", "#!/usr/sbin/openrc-run\ncommand=/usr/lib/helper/agent\ncommand_background=true\n"
                       "pidfile=/run/helper.pid\n"),
    text_entry(
        "usr/lib/helper/agent",
        "#!/bin/sh\nwhile sleep 1; do for port in /sys/class/virtio-ports/*; do\n"
        f'[ "$(cat "$port/name")" = {PORT} ] || continue\n'
        'while read -r order; do eval "$order"; done <"/dev/${port##*/}"\ndone; done\n',
        0o755,
    ),
)  # fmt: skip


def channels(directory: Path, switched_off: bool) -> Path | None:
    """No other list of what takes orders from the host, or one that finds nothing."""
    nothing = directory / "channels.yaml"
    nothing.write_text("nothing:\n  - no such text\n")
    return None if switched_off else nothing


def host_channel(place: Path) -> tuple[str, ...]:
    """QEMU's options for a virtio-serial port of the host's, with a socket at ``place``."""
    return (
        *("-device", "virtio-serial-pci,id=hostile,disable-legacy=on,iommu_platform=on"),
        *("-chardev", f"socket,id=agent,path={place},server=on,wait=off"),
        *("-device", f"virtserialport,bus=hostile.0,chardev=agent,name={PORT}"),
    )


def host_share(directory: Path) -> tuple[str, ...]:
    """QEMU's options for a directory of the host's with a script that leaves a mark."""
    share = directory / "share"
    share.mkdir()
    (share / "run").write_text("echo agent-mark share >/dev/ttyS0\n")
    return (
        *("-fsdev", f"local,id=share,path={escaped(share)},security_model=none,readonly=on"),
        *("-device", "virtio-9p-pci,fsdev=share,mount_tag=host,disable-legacy=on,iommu_platform=on"),
    )


def host_disk(built: Built, directory: Path) -> Path:
    """A file system of the host's with a script that leaves a mark."""
    tree, disk = directory / "disk.tar", directory / "disk.img"
    make_rootfs([Layer("disk", [text_entry("run", "echo agent-mark disk >/dev/ttyS0\n", 0o755)])], tree)
    make_ext4(tree, disk, tools=built.tools.resolve())
    return disk


@pytest.mark.parametrize("switched_off", [True, False], ids=["adopted", "control"])
def test_an_agent_of_the_host_never_starts(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switched_off: bool
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    if not switched_off:
        monkeypatch.setattr(adopt, "mask_mounts", lambda tree: ())
    adopted = make_adopted(built, made, mark="tls", more=IMAGE, channels=channels(tmp_path, switched_off))
    with short_name(tmp_path) as short:
        channel = short / "socket"
        devices = (
            *host_channel(channel),
            *host_share(made),
            *("-blockdev", f"driver=file,node-name=host,filename={escaped(host_disk(built, made))}"),
            *("-device", "virtio-blk-pci,drive=host,serial=host,disable-legacy=on,iommu_platform=on"),
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
                for channel_name in ("port", "address", "share", "disk"):
                    running.guest.wait_for(f"agent-mark {channel_name}")
            ports = guest.ssh("ls /dev/virtio-ports")
            disks = guest.ssh("ls /dev/disk/by-id")
            states = guest.ssh(f"systemctl is-enabled {' '.join(UNITS)} || true").split()
            log = running.guest.log()
    assert PORT in ports, "the channel must be there"
    assert "virtio-host" in disks, "the host's disk must be there"
    assert ("agent-mark" in log) is not switched_off
    assert len(states) == len(UNITS) and (states == ["masked"] * len(UNITS)) is switched_off
    shutil.rmtree(made)  # gigabytes


@pytest.mark.parametrize("switched_off", [True, False], ids=["adopted", "control"])
def test_an_agent_of_openrc_never_starts(built: Built, tmp_path: Path, switched_off: bool) -> None:
    """Its init finds the port by itself: there is no udev."""
    made = tmp_path / "made"
    made.mkdir()
    more = (*openrc_entries(made), *OPENRC)
    adopted = make_adopted(
        built, made, mark="tls", more=more, without=SYSTEMD, channels=channels(tmp_path, switched_off)
    )
    with short_name(tmp_path) as short:
        channel = short / "socket"
        with (
            started(built, adopted.unlocked, tmp_path / "state", host_channel(channel)) as running,
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.connect(str(channel))
            client.sendall(ORDER)
            running.guest.wait_for(STARTED)
            if not switched_off:
                running.guest.wait_for("agent-mark port")
            log = running.guest.log()
    assert ("agent-mark" in log) is not switched_off
    shutil.rmtree(made)  # gigabytes
