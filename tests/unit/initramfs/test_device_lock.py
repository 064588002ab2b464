# SPDX-License-Identifier: Apache-2.0
"""The devices that lose their drivers, and the modules that a root names, on directory trees like the kernel's."""

from pathlib import Path

import pytest

from tests.support.key_guest import guest_module

device_lock, linux = guest_module("device_lock"), guest_module("linux")
VERIFIED = (("virtio", "virtio_blk", "virtio0"), ("virtio", "virtio_net", "virtio1"), ("virtio", "virtio_console", "p"))


def device(sysfs: Path, bus: str, driver: str, name: str, child: str = "") -> None:
    """A device with a driver; ``child`` is the virtio device on its card, which has one too."""
    place = sysfs / "bus" / bus / "devices" / name
    place.mkdir(parents=True)
    folder = sysfs / "bus" / bus / "drivers" / driver
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(place)
    if not (folder / "module").is_symlink():
        (folder / "module").symlink_to(sysfs)
    if child:
        (place / child).mkdir()
        (place / child / "driver").symlink_to(sysfs)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    for one in VERIFIED:
        device(tmp_path, *one)
    device(tmp_path, "pci", "virtio-pci", "00:01", child="virtio0")
    device(tmp_path, "platform", "rtc_cmos", "rtc_cmos")
    return tmp_path


@pytest.mark.parametrize(
    "one",
    [
        ("serio", "atkbd", "serio0"),
        ("platform", "i8042", "i8042"),
        ("acpi", "tpm_crb", "MSFT0101:00"),
        ("pci", "serial", "00:05"),
        ("pci", "virtio-pci", "00:06"),  # nothing has its virtio device
        ("pci_express", "pciehp", "00:07:pcie004"),
        ("virtio", "virtio_rng", "virtio9"),
        ("usb", "usb", "usb1"),
        ("never-heard-of", "driver", "device"),
    ],
)
def test_a_device_that_is_a_channel_to_the_host_is_unwanted(sysfs: Path, one: tuple[str, str, str]) -> None:
    kept = device_lock._KEPT | {device_lock.EMULATED}
    assert device_lock._unwanted(str(sysfs), kept) == []
    device(sysfs, *one)
    assert device_lock._unwanted(str(sysfs), kept) == [one]


def test_the_virtio_console_is_unwanted_without_the_emulation(sysfs: Path) -> None:
    assert device_lock._unwanted(str(sysfs), device_lock._KEPT) == [VERIFIED[2]]


def test_every_bus_stops_probing_or_init_stops(tmp_path: Path) -> None:
    for name in ("pci", "usb"):
        (tmp_path / "bus" / name).mkdir(parents=True)
        (tmp_path / "bus" / name / "drivers_autoprobe").write_text("1\n")
    device_lock.close_buses(str(tmp_path))
    assert {path.read_text() for path in tmp_path.glob("bus/*/drivers_autoprobe")} == {"0"}
    # One that does not take it.
    (tmp_path / "bus" / "usb" / "drivers_autoprobe").unlink()
    (tmp_path / "bus" / "usb" / "drivers_autoprobe").symlink_to("/dev/null")
    with pytest.raises(linux.Stop, match="usb/drivers_autoprobe: still on"):
        device_lock.close_buses(str(tmp_path))


def test_the_kernel_modules_that_a_root_names_are_read(tmp_path: Path) -> None:
    files = {
        "etc/modules": "# a comment\nnamed option=1\n\n",
        "etc/modules-load.d/a.conf": "first\n; comment\n",
        "usr/lib/modules-load.d/a.conf": "hidden\n",
        "usr/lib/modules-load.d/b.conf": "second\nfirst\n--config=/x\n",
        "usr/lib/modules-load.d/README": "not-read\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "etc/modules-load.d/c.conf").symlink_to(tmp_path / "etc/modules")
    (tmp_path / "usr/lib/modules-load.d/c.conf").write_text("masked\n")
    assert device_lock.root_modules(str(tmp_path)) == ["named", "first", "second"]
    assert device_lock.root_modules(str(tmp_path / "nowhere")) == []


def test_dependencies_of_a_module_come_before_it(tmp_path: Path) -> None:
    lines = "kernel/net/tls-x.ko.xz: kernel/b.ko.xz kernel/a.ko.xz\nkernel/a.ko.xz:\n"
    (tmp_path / "modules.dep").write_text(lines)
    place = f"{tmp_path}/kernel"
    assert device_lock.module_files(str(tmp_path)) == {
        "tls_x": [f"{place}/a.ko.xz", f"{place}/b.ko.xz", f"{place}/net/tls-x.ko.xz"],
        "a": [f"{place}/a.ko.xz"],
    }
    assert device_lock.module_files(str(tmp_path / "nowhere")) == {}


def test_key_combinations_of_the_host_are_ignored(tmp_path: Path) -> None:
    device_lock.ignore_host_keys(str(tmp_path))
    assert (tmp_path / "sysctl.d/zz-host-input.conf").read_text() == "kernel.sysrq = 0\n"
    assert (tmp_path / "systemd/system/ctrl-alt-del.target").readlink() == Path("/dev/null")
