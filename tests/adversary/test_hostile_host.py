# SPDX-License-Identifier: Apache-2.0
"""A host that offers the guest, all at once, everything that a careless guest would use.

One boot of the genuine measured guest with all of it attached, in which nothing of it has any effect; one boot of a
control guest without the defences (control_guest.py) and with the same devices, in which each leaves its mark.

What emulation proves here, and what not: that the guest's own configuration refuses what the host offers. systemd
ignores credentials from SMBIOS and fw_cfg by itself where it detects a confidential machine; an emulated one is not
detected, so only the measured command line and the guest's masks refuse them here, which is the harder case. The
opposite holds for AML: kernels that sandbox it do so only on confidential machines, and none of that is tested here;
the stage is, which does not depend on the machine. It also removes the SMBIOS tables, so the genuine guest does not
even see the credentials in them. That a host cannot write the guest's memory is for hardware to show.
"""

import base64
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sevsnp.e2e.guest import ssh, wait_for_evidence
from sevsnp.errors import UserError
from sevsnp.owner.attestation import attest_guest
from sevsnp.qemu.blocks import BlockFile
from sevsnp.qemu.process import disk_device
from sevsnp.system.files import short_name
from tests.conftest import Built
from tests.support.aml import marking_ssdt
from tests.support.control_guest import TWIN_PLACE, control_launch
from tests.support.firmware_machine import from_source
from tests.support.hands import prompts
from tests.support.harness import BOOT_SECONDS, Guest, boot
from tests.support.hostile_devices import BOUND, SIMPLE
from tests.support.hostile_disks import TWIN_FILE, VOLUME, make_seed, make_swap, make_twin, make_volume_group
from tests.support.waiting import wait_until

AML_PORT = 0x4E9
AML_MARK = b"aml-ran-in-the-kernel\n"
TOKEN = "hostile-"
SEED_MARK = f"{TOKEN}seed"
SMBIOS_MARK = f"{TOKEN}smbios"
FW_CFG_MARK = f"{TOKEN}fwcfg"
TWIN_MARK = f"{TOKEN}twin"
PASSWORD = "$5$hostile$T0VbMpgd6PJlTMNgZgTpvZcVbZz9YQkcQ3Gk1wTqN4B"
AGENT_PORT = "org.qemu.guest_agent.0"
DISKS = ("twin", "swap", "seed", "volume")


def _announce(mark: str) -> str:
    return f"ExecStart{'Pre' if mark == SMBIOS_MARK else ''}=+/bin/sh -c 'echo {mark} uid=$$(id -u) >/dev/ttyS0'"


# Units and files that make the host root: a drop-in and a password by SMBIOS; by fw_cfg, with its 55 characters a name,
# a service, a unit in the place of one that every boot starts, which wants the service, and a file for sudo.
SMBIOS = {
    "systemd.unit-dropin.ssh.service": f"[Service]\n{_announce(SMBIOS_MARK)}\n",
    "passwd.hashed-password.root": PASSWORD,
}
FW_CFG = {
    "systemd.extra-unit.tmp.mount": "[Unit]\nWants=x.service\n[Mount]\nWhat=tmpfs\nWhere=/tmp\nType=tmpfs\n",
    "systemd.extra-unit.x.service": f"[Service]\nType=oneshot\n{_announce(FW_CFG_MARK)}\n",
    "tmpfiles.extra": f"f+ /etc/sudoers.d/{TOKEN}fwcfg 0440 root root - nobody ALL=(ALL:ALL) NOPASSWD: ALL\n",
}


@dataclass(frozen=True)
class HostileHost:
    """QEMU options for everything hostile, and where the marks show outside the guest."""

    arguments: tuple[str, ...]
    port_log: Path
    agent: Path

    def guest_agent_answers(self, seconds: float) -> bool:
        """Whether something in the guest does what the host says over the guest agent's channel."""
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(self.agent))
            client.sendall(b'{"execute":"guest-ping"}\n')
            client.settimeout(seconds)
            try:
                return b'"return"' in client.recv(4096)
            except TimeoutError:
                return False


@pytest.fixture
def host(built: Built, tmp_path: Path) -> Iterator[HostileHost]:
    tools = (built.build / "snp-release" / "bin").resolve()
    images = {name: tmp_path / f"{name}.img" for name in DISKS}
    make_twin(images["twin"], label="root", mark=TWIN_MARK, tools=tools)
    make_swap(images["swap"])
    make_seed(images["seed"], mark=SEED_MARK, tools=tools)
    make_volume_group(images["volume"])
    table, port_log = tmp_path / "ssdt.aml", tmp_path / "port.log"
    table.write_bytes(marking_ssdt(AML_PORT, AML_MARK))
    port_log.touch()
    arguments = [
        *("-acpitable", f"file={table}"),
        *("-chardev", f"file,id=aml,path={port_log}"),
        *("-device", f"isa-debugcon,iobase={AML_PORT:#x},chardev=aml"),
    ]
    for name, content in SMBIOS.items():
        encoded = base64.b64encode(content.encode()).decode()
        arguments += ["-smbios", f"type=11,value=io.systemd.credential.binary:{name}={encoded}"]
    for name, content in FW_CFG.items():
        escaped = content.replace(",", ",,")
        arguments += ["-fw_cfg", f"name=opt/io.systemd.credentials/{name},string={escaped}"]
    arguments += SIMPLE
    for name, image in images.items():
        arguments += disk_device(BlockFile(name, image))
    with short_name(tmp_path) as short:
        agent = short / "socket"
        arguments += [
            *("-device", "virtio-serial-pci,id=hostile,disable-legacy=on,iommu_platform=on"),
            *("-chardev", f"socket,id=agent,path={agent},server=on,wait=off"),
            *("-device", f"virtserialport,bus=hostile.0,chardev=agent,name={AGENT_PORT}"),
        ]
        yield HostileHost(tuple(arguments), port_log, agent)


# Asked in both guests, so that the answers of the one mean something by those of the other.
_QUESTIONS = {
    "disks": "for each in /sys/block/vd*/serial; do cat $each; echo; done",
    "offered": "grep -ac io.systemd.credential /sys/firmware/dmi/tables/DMI",
    "tables": "grep -al HOSTMARK /sys/firmware/acpi/tables/SSDT*",
    "mounts": "findmnt -rno SOURCE,TARGET | grep ^/dev/ | sort",
    "swaps": "tail -n +2 /proc/swaps | cut -d' ' -f1",
    "mappings": "cat /sys/block/dm-*/dm/name | sort",
    "credentials": "ls /run/credentials/@system",
    "generated": "find /run/systemd/generator* -name '*credential*' -o -name x.service -o -name tmp.mount | sort",
    "active": "systemctl list-units --plain --no-legend 'cloud-*' 'lvm*' 'qemu-*' '*.swap' | cut -d' ' -f1 | sort",
    "failed": "systemctl --failed --plain --no-legend",
    "password": "grep ^root: /etc/shadow | cut -d: -f2",
    "superusers": "cut -d: -f1,3 /etc/passwd | grep ':0$'",
    "sudoers": "ls /etc/sudoers.d",
    "marked": f"grep -rIl --exclude-dir=udev {TOKEN} /etc /run /var /home /srv /tmp | sort",
    "drivers": f"{BOUND} | sort -u",
    "randomness": "cat /sys/class/misc/hw_random/rng_current",
    "keyboards": "grep ^N: /proc/bus/input/devices",
    "twin": f"cat /{TWIN_PLACE}/{TWIN_FILE}",
}
# What a guest answers that has been offered nothing.
_UNTOUCHED = {
    **dict.fromkeys(_QUESTIONS, ""),
    "mounts": "/dev/dm-0 /",
    "mappings": "root",
    "password": "*",
    "drivers": (
        "pci virtio-pci\nplatform alarmtimer\nplatform reg-dummy\nplatform rtc_cmos\nplatform serial8250\n"
        "serial-base ctrl\nserial-base port\nvirtio virtio_blk\nvirtio virtio_console\nvirtio virtio_net"
    ),
    "randomness": "none",
    "superusers": "root:0",
    "sudoers": "README\nuser",
}


def _inspect(config: Path) -> dict[str, str]:
    script = "".join(f"echo '== {name}'\n{{ {question}; }} 2>/dev/null\n" for name, question in _QUESTIONS.items())
    output = ssh(config, f"sudo sh -s <<'END'\n{script}echo '== end'\nEND")
    found = re.findall(r"^== (\S+)\n(.*?)(?=^== )", output, re.DOTALL | re.MULTILINE)
    return {name: text.strip() for name, text in found}


def _attested(built: Built, guest: Guest, output: Path) -> Path:
    """Attest the guest as its owner does; the ssh configuration that this gives."""
    wait_for_evidence(guest.process, guest.options.attest_port, BOOT_SECONDS)
    output.mkdir()
    attest_guest(
        vm_config=built.build / "verity" / "vm-config-verity.emulated.toml",
        host="127.0.0.1",
        port=guest.options.attest_port,
        ssh_port=guest.options.ssh_port,
        emulated_root=guest.root,
        identity=built.keys.user_private,
        user="user",
        template=built.project / "templates" / "ssh_config.j2",
        output=output,
    )
    return output / "ssh_config"


def _wait_for_login(config: Path, guest: Guest, seconds: float = BOOT_SECONDS) -> None:
    def logged_in() -> bool:
        try:
            ssh(config, "true")
        except UserError:
            assert guest.process.poll() is None, guest.log()[-3000:]
            time.sleep(1)
            return False
        return True

    wait_until(logged_in, what=lambda: f"no login:\n{guest.log()[-3000:]}", net=seconds)


@pytest.mark.boot
def test_a_hostile_host_has_no_effect_on_the_genuine_guest(built: Built, host: HostileHost, tmp_path: Path) -> None:
    launch = built.config("emulated").launch
    with boot(launch, built.qemu, tmp_path / "state", extra=host.arguments) as guest:
        config = _attested(built, guest, tmp_path / "owner")
        _wait_for_login(config, guest)
        # Everything must have had its chance before we look.
        state = ssh(config, "systemctl is-system-running --wait || true", timeout=BOOT_SECONDS)
        found = _inspect(config)
        answers = host.guest_agent_answers(5)
        ssh(config, "sudo systemctl poweroff || true")
        log = guest.wait_end(BOOT_SECONDS)
        assert guest.process.returncode == 0
    assert set(DISKS) <= set(found["disks"].split()), "the guest must have seen the disks that it ignores"
    assert found == {**_UNTOUCHED, "disks": found["disks"]}
    assert state.strip() == "running"
    assert TOKEN not in log and prompts(log) == []
    assert host.port_log.read_bytes() == b"", "AML ran in the guest's kernel"
    assert not answers, "something in the guest takes orders over the guest agent's channel"


def _unattested(built: Built, guest: Guest, output: Path) -> Path:
    """An ssh configuration for the control guest, whose identity nobody cares for."""
    config = output / "ssh_config"
    output.mkdir()
    config.write_text(
        f"Host guest\n  HostName 127.0.0.1\n  Port {guest.options.ssh_port}\n  User user\n"
        f"  IdentityFile {built.keys.user_private}\n  IdentitiesOnly yes\n  BatchMode yes\n  ConnectTimeout 10\n"
        "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
    )
    return config


@pytest.mark.boot
@pytest.mark.full  # the longest boot of all: this guest runs everything that the host offers
def test_control_without_the_defences_every_offer_leaves_its_mark(
    built: Built, host: HostileHost, tmp_path: Path
) -> None:
    if from_source(built):
        pytest.skip("the firmware from source passes on no SMBIOS tables, so one mark cannot come")
    launch = control_launch(built)
    with boot(launch, built.qemu, tmp_path / "state", extra=host.arguments) as guest:
        for mark in (SMBIOS_MARK, FW_CFG_MARK, SEED_MARK):
            guest.wait_for(f"{mark} uid=0")
        config = _unattested(built, guest, tmp_path / "owner")
        _wait_for_login(config, guest)
        found = _inspect(config)
        answers = host.guest_agent_answers(30)
    assert host.port_log.read_bytes() == AML_MARK
    assert found["tables"] != "" and int(found["offered"]) > 0
    assert re.search(rf"^/dev/vd. /{TWIN_PLACE}$", found["mounts"], re.MULTILINE)
    assert found["twin"] == TWIN_MARK
    assert re.fullmatch(r"/dev/vd.", found["swaps"])
    assert found["mappings"].split() == [VOLUME, "root"]
    assert set(found["credentials"].split()) == {*SMBIOS, *FW_CFG}
    names = {Path(each).name for each in found["generated"].split()}
    assert names == {"50-credential.conf", "x.service", "tmp.mount"}
    assert found["password"] == PASSWORD
    drivers = {line.split()[1] for line in found["drivers"].splitlines()}
    assert {"virtio_rng", "virtio_balloon", "e1000e", "xhci_hcd", "usbhid", "atkbd", "i8042"} <= drivers
    assert found["randomness"].startswith("virtio_rng")
    assert "QEMU USB Keyboard" in found["keyboards"] and "AT " in found["keyboards"]
    assert f"{TOKEN}fwcfg" in found["sudoers"].split()
    assert "/etc/hostile-cloud-init" in found["marked"].split()
    assert answers
