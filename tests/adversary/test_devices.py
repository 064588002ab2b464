# SPDX-License-Identifier: Apache-2.0
"""Devices of the host: no driver of a guest uses any device that the host plugs in, at any time.

The hardest case is a guest made of an image with udev and all modules of its kernel, which without the lock takes
every device (the control). Both guests lack the words of the command line that would also help. For our own
guest see test_hostile_host.py as well.
"""

import base64
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.e2e.guest import wait_for_login
from sevsnp.images.kernel_modules import ModuleTree
from tests.conftest import Built
from tests.support.configs import honest, other_words
from tests.support.hostile_devices import BOUND, LATER, Adopted, arguments, make_adopted, plug_later
from tests.support.luks_guests import booted, image_copy, luks_config, make_owner, unlock, wait_for_key
from tests.support.shared_guests import Attested, Running, attested, started

pytestmark = pytest.mark.boot

# The image names it in its own /etc/modules-load.d.
OWN_MODULE = "tls"
# Devices that have a driver in a guest with the stage, by bus and driver: of the machine, and of a verified guest.
MACHINE = {
    "platform alarmtimer": 1,
    "platform reg-dummy": 1,
    "platform rtc_cmos": 1,
    "platform serial8250": 1,
    "serial-base ctrl": 1,
    "serial-base port": 4,
}
VIRTIO = {"pci virtio-pci": 4, "virtio virtio_blk": 2, "virtio virtio_console": 1, "virtio virtio_net": 1}
_QUESTIONS = {
    "bound": f"{BOUND} | sort | uniq -c",
    "autoprobe": "cat /sys/bus/*/drivers_autoprobe | sort -u",
    "modules": "cat /proc/sys/kernel/modules_disabled /proc/sys/kernel/kexec_load_disabled",
    "rng": "cat /sys/class/misc/hw_random/rng_current",
    "net": "ls -d /sys/class/net/*/device | wc -l",  # those that are a device, not the guest's own inventions
    "blocks": "ls /sys/block | grep -v -e ^dm- -e ^loop | sed s/.$// | sort | uniq -c",
    "input": "cat /proc/bus/input/devices | grep ^N: | sort",
    "fw_cfg": "ls -d /sys/firmware/qemu_fw_cfg",
    "loaded": "cut -d' ' -f1 /proc/modules | sort",
    "cards": "cat /sys/bus/pci/devices/*/class | wc -l",
    "sysrq": "cat /proc/sys/kernel/sysrq",
    "failed": "systemctl --failed --plain --no-legend",
}


def inspect(guest: Attested) -> dict[str, str]:
    script = "".join(f"echo '== {name}'\n{{ {question}; }} 2>/dev/null\n" for name, question in _QUESTIONS.items())
    output = guest.ssh(f"sudo sh -s <<'END'\n{script}echo '== end'\nEND")
    found = re.findall(r"^== (\S+)\n(.*?)(?=^== )", output, re.DOTALL | re.MULTILINE)
    return {name: text.strip() for name, text in found}


def table(text: str) -> dict[str, int]:
    """Lines of ``uniq -c``."""
    return {words: int(count) for count, words in re.findall(r"^ *(\d+) (.*)$", text, re.MULTILINE)}


def check_locked(found: dict[str, str]) -> None:
    assert found["autoprobe"] == "0"
    assert found["modules"].split() == ["1", "1"]
    assert found["rng"] == "none"
    assert found["net"] == "1"  # the guest's own card
    assert found["input"] == found["fw_cfg"] == found["failed"] == ""
    assert found["sysrq"] == "0"


@pytest.fixture(scope="module")
def adopted(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adopted]:
    directory = tmp_path_factory.mktemp("adopted")
    yield make_adopted(built, directory, mark=OWN_MODULE)
    shutil.rmtree(directory)  # gigabytes


def plug_and_look(running: Running, guest: Attested, seconds: float) -> dict[str, str]:
    """Plug in what comes later; what the guest is like once it knows all of that, or so many seconds later."""
    wanted = int(guest.ssh(_QUESTIONS["cards"])) + len(LATER)
    plug_later(running.hands)
    deadline = time.monotonic() + seconds
    while int(guest.ssh(_QUESTIONS["cards"])) < wanted and time.monotonic() < deadline:
        time.sleep(1)
    guest.ssh("sudo udevadm trigger; sudo udevadm settle")
    return inspect(guest)


@pytest.mark.full
def test_an_adopted_guest_uses_no_device_of_the_host(built: Built, adopted: Adopted, tmp_path: Path) -> None:
    with started(built, adopted.locked, tmp_path / "state", arguments(tmp_path)) as running:
        guest = attested(running)
        assert guest.ssh("systemctl is-system-running --wait || systemctl --failed").strip() == "running"
        before = inspect(guest)
        boot_id = guest.ssh("cat /proc/sys/kernel/random/boot_id")
        after = plug_and_look(running, guest, 20)
        for keys in (("ctrl", "alt", "delete"), ("alt", "sysrq", "b"), ("alt", "sysrq", "h"), ("ret",)):
            for _ in range(8):
                running.hands.press(*keys)
        for key in (b"h", b"t", b"b"):
            running.hands.press_sysrq(key)
        assert guest.ssh("cat /proc/sys/kernel/random/boot_id") == boot_id
        assert guest.ssh("sudo modprobe virtio_rng 2>&1 || true").strip().endswith("Operation not permitted")
        log = running.guest.log()
        guest.ssh("sudo systemctl poweroff || true")
        running.guest.wait_end(90)
        assert running.guest.process.returncode == 0
    check_locked(before)
    # The slots are for what is plugged in later. Of the four serial ports that a PC has, the host's card had one.
    machine = {name: count for name, count in MACHINE.items() if name != "platform alarmtimer"}
    assert table(before["bound"]) == {**machine, **VIRTIO, "pci pcieport": 3, "serial-base port": 3}
    assert table(before["blocks"]) == {"vd": 2}
    loaded = set(before["loaded"].split())
    assert {OWN_MODULE, "nf_tables", "loop", "tun"} <= loaded
    assert not {"virtio_rng", "virtio_balloon", "9pnet_virtio", "nvme", "xhci_pci", "e1000e", "qemu_fw_cfg"} & loaded
    assert after == before
    assert "sysrq:" not in log


@pytest.mark.full
def test_control_without_the_lock_an_adopted_guest_uses_all_devices(
    built: Built, adopted: Adopted, tmp_path: Path
) -> None:
    """The same image, devices and keys."""
    with started(built, adopted.unlocked, tmp_path / "state", arguments(tmp_path)) as running:
        guest = attested(running)
        guest.ssh("systemctl is-system-running --wait || true")
        before = inspect(guest)
        after = plug_and_look(running, guest, 120)
        running.hands.press_sysrq(b"h")
        running.guest.wait_for("sysrq: HELP")
        running.hands.press("ctrl", "alt", "delete")
        log = running.guest.wait_end(120)
    assert "1" in before["autoprobe"].split() and before["modules"].split()[0] == "0"
    assert before["rng"].startswith("virtio_rng")
    assert before["fw_cfg"] and before["sysrq"] == "1"
    # Later, since the kernel looks for USB devices beside the start of everything else.
    drivers = {words.split()[1] for words in table(after["bound"])}
    assert {"virtio_balloon", "9pnet_virtio", "nvme", "xhci_hcd", "usbhid", "atkbd", "e1000e", "serial"} <= drivers
    assert "nvme0n" in table(before["blocks"])
    assert len(after["input"].splitlines()) >= 2
    # Two network cards and a source of randomness more.
    assert int(after["cards"]) == int(before["cards"]) + len(LATER)
    assert int(after["net"]) == int(before["net"]) + 2
    assert sum(table(after["bound"]).values()) >= sum(table(before["bound"]).values()) + len(LATER)
    assert "reboot: Restarting system" in log


# Where a program in the guest can ask for a report: the ports of the software secure processor, and the kernel's ways.
_INTERFACES = (
    "ls -d /dev/sev-guest /dev/vport* /sys/module/sev_guest /sys/module/tsm /sys/kernel/config/tsm 2>/dev/null"
)


def interfaces(guest: Attested) -> list[str]:
    return guest.ssh(f"{_INTERFACES} || true").split()


def ask_for_report(built: Built, guest: Attested) -> str:
    """A report that root in the guest asks for, as the initramfs does: its size, or the error."""
    provider = (built.project / "initramfs" / "emulated" / "emulated_provider.py").read_text()
    program = f"{provider}\nprint(len(EmulatedProvider().fetch(bytes(64))[0]))\n"
    encoded = base64.b64encode(program.encode()).decode()
    return guest.ssh(f"echo {encoded} | base64 -d | sudo python3 - 2>&1 | tail -n 1").strip()


def test_control_the_verified_guest_has_the_report_interface(guest: Attested, built: Built) -> None:
    """Its agent needs the interface, so its root can use it too: the control of test_luks_devices."""
    assert {"/sys/module/tsm", "/sys/kernel/config/tsm"} < set(interfaces(guest))
    assert ask_for_report(built, guest) == "1184"
    check_locked(found := inspect(guest))
    assert table(found["bound"]) == {**MACHINE, **VIRTIO}


@pytest.mark.full
def test_a_setting_keeps_the_report_interface(built: Built, tmp_path: Path) -> None:
    """LUKS_REPORTS=open: the guest's own services may ask for reports."""
    genuine = luks_config(built)
    line = genuine.launch.cmdline.path.read_text()
    cmdline = other_words(genuine, tmp_path, {line: f"{line} sevsnp.reports=open"})
    config = honest(genuine, tmp_path, cmdline=cmdline)
    owner = make_owner(built, tmp_path / "owner")
    output = tmp_path / "attested"
    with (
        image_copy(config.launch.disks[0].path, tmp_path / "disk") as disk,
        booted(built, config, disk, tmp_path / "luks") as running,
    ):
        wait_for_key(running)
        unlock(running, owner, output)
        wait_for_login(output / "ssh_config")
        opened = Attested(running, output)
        assert {"/sys/module/tsm", "/sys/kernel/config/tsm"} < set(interfaces(opened))
        assert ask_for_report(built, opened) == "1184"
        check_locked(inspect(opened))


_PLANT = """
set -e
where=/lib/modules/$(uname -r)
mkdir -p $where
printf '%s' {image} | base64 -d >$where/planted.ko
echo planted.ko: >$where/modules.dep
echo planted >/etc/modules
printf '#!/bin/sh\\ncat /proc/sys/kernel/modules_disabled >>/planted\\n' >/usr/sbin/modprobe
chmod 755 /usr/sbin/modprobe
sync
"""


@pytest.mark.full
def test_nothing_of_the_encrypted_root_runs_before_the_lock(built: Built, tmp_path: Path) -> None:
    """An attacker who had root rights in it earlier left a modprobe and a module of any name.

    Control: a module that is not forbidden is loaded in this way.
    """
    config, owner = luks_config(built), make_owner(built, tmp_path / "owner")
    modules = ModuleTree(next((built.build / "kernel/lib/modules").iterdir()))

    def boot_and(script: str, number: int, ended: str = "") -> str:
        output = tmp_path / f"attested-{number}"
        with booted(built, config, disk, tmp_path / f"state-{number}") as running:
            wait_for_key(running)
            unlock(running, owner, output)
            if ended:
                running.guest.wait_end()
                assert ended in running.guest.log()
                return ""
            wait_for_login(output / "ssh_config")
            said = Attested(running, output).ssh(f"sudo sh -s <<'END'\n{script}\nEND")
            Attested(running, output).ssh("sudo systemctl poweroff || true")
            running.guest.wait_end(90)
            return said

    def plant(module: str) -> str:
        image = modules.closure([module], "test")[module]
        return _PLANT.format(image=base64.b64encode(image).decode())

    with image_copy(config.launch.disks[0].path, tmp_path / "disk") as disk:
        boot_and(plant("dummy"), 1)
        found = boot_and("ls /sys/module; modprobe x; sort -u /planted | sed s/^/planted-/\n" + plant("tsm"), 2).split()
        assert "dummy" in found
        # It runs when something asks for a module later; in vain by then.
        assert "planted-1" in found and "planted-0" not in found
        boot_and("", 3, ended="the root's modules brought tsm back")
