# SPDX-License-Identifier: Apache-2.0
"""Devices that a host plugs in, before the start and while the guest runs, and an image whose programs use them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import Layer, link_entry, make_rootfs, text_entry
from sevsnp.archives.tar import Entry
from sevsnp.images.adopt import make_image_rootfs
from sevsnp.images.filesystem import make_ext4
from sevsnp.images.initramfs import join_layers
from sevsnp.images.verity import make_verity
from sevsnp.qemu.process import escaped
from sevsnp.vm_config.config import VmConfig
from sevsnp.vm_config.verity_word import fixed_salt
from tests.conftest import Built
from tests.support.configs import file, honest
from tests.support.hands import Hands
from tests.support.shared_guests import variant

PORTS = ("port1", "port2", "port3")
# The devices that are plugged in while the guest runs: driver, properties.
LATER: tuple[tuple[str, dict[str, object]], ...] = (
    ("virtio-net-pci", {"mac": "52:54:00:00:00:01", "romfile": ""}),
    ("e1000e", {"mac": "52:54:00:00:00:02", "romfile": ""}),
    ("virtio-rng-pci", {}),
)
# A shell command: the bus and driver of every device that has a driver, a line each.
BOUND = (
    'for link in /sys/bus/*/drivers/*/*; do name=${link##*/}; [ -L "$link" ] && [ "$name" != module ] && '
    "echo $link | cut -d/ -f4,6; done | tr / ' '"
)
# The options of the guest's own card. The ROM is left out, because the firmware is not under test here.
_PLAIN = "romfile=,disable-legacy=on"
# The second line of defence. Without it the lock alone has to hold.
SECOND_LINE = (" i8042.nokbd", " i8042.noaux", " pcie_ports=compat", " acpiphp.disable=1", " sysctl.kernel.sysrq=0")
# Replacements for the lock's functions that lock nothing.
NO_LOCK = """\
def close_buses(sysfs): pass
def lock(root, **options): load_root_modules(root)
"""


# Devices that are present from the start and need no file.
SIMPLE = (
    *("-device", f"virtio-rng-pci,{_PLAIN}"),
    *("-device", f"virtio-balloon-pci,{_PLAIN}"),
    *("-device", "qemu-xhci,id=usb"),
    *("-device", "usb-kbd,bus=usb.0"),
    *("-device", "e1000e,romfile="),
)


def arguments(directory: Path) -> tuple[str, ...]:
    """QEMU options for :data:`SIMPLE` and more devices, and empty slots. The devices' files are in ``directory``."""
    disk, shared = directory / "nvme.img", directory / "shared"
    with disk.open("wb") as stream:
        stream.truncate(1 << 20)
    shared.mkdir()
    options = [
        # The slot tells a guest without ACPI about a new card.
        *("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"),
        *SIMPLE,
        *("-fsdev", f"local,id=shared,path={escaped(shared)},security_model=none"),
        *("-device", f"virtio-9p-pci,fsdev=shared,mount_tag=hostile,{_PLAIN}"),
        *("-blockdev", f"driver=file,node-name=nvme,filename={escaped(disk)}"),
        *("-device", "nvme,drive=nvme,serial=hostile"),
        *("-chardev", "null,id=hostile-line", "-device", "pci-serial,chardev=hostile-line"),
        *("-fw_cfg", "name=opt/hostile,string=hostile"),
    ]
    for number, port in enumerate(PORTS, 1):
        options += ["-device", f"pcie-root-port,id={port},chassis={number},slot={number}"]
    return tuple(options)


def plug_later(hands: Hands) -> None:
    """Plug in :data:`LATER`, one in each slot."""
    for port, (driver, properties) in zip(PORTS, LATER, strict=True):
        hands.plug(driver, port, id=f"later-{port}", **properties)


@dataclass(frozen=True)
class Adopted:
    """A verified guest made from an image with udev, modprobe and all modules, as ``adopt`` makes it."""

    locked: VmConfig
    unlocked: VmConfig


def make_adopted(
    built: Built,
    directory: Path,
    *,
    mark: str,
    more: Sequence[Entry] = (),
    without: Sequence[str] = (),
    channels: Path | None = None,
) -> Adopted:
    """The guest's own root as a foreign image: with modprobe and all modules, and with settings that switch SysRq on.

    ``more`` is added to the image, and ``without`` are the parts of the guest's own root that it lacks. ``channels``
    takes the place of host-channels.yaml.
    Both configs lack :data:`SECOND_LINE`; ``unlocked`` uses an initramfs without the lock.
    """
    tools = built.tools.resolve()
    image, adopted, root, tree = (directory / name for name in ("image.tar", "adopted.tar", "root.img", "tree.img"))
    kmod = (built.build / "snp-release" / "usr" / "bin" / "kmod").read_bytes()
    extra = [
        text_entry("usr/bin/kmod", kmod, 0o755),
        link_entry("usr/sbin/modprobe", "../bin/kmod"),
        text_entry("etc/sysctl.d/99-magic.conf", "kernel.sysrq = 1\n"),
        text_entry("etc/modules-load.d/own.conf", f"# of the image's own\n{mark}\n"),
        *more,
    ]
    listed = (built.project / "initramfs/modules.yaml").read_text()
    modules = directory / "modules.yaml"
    modules.write_text(listed[: listed.index("adopted_files:")] + 'adopted_files: ["*"]\n')
    make_rootfs([Layer.from_tar(built.build / "guest" / "rootfs.tar"), Layer("image", extra, remove=without)], image)
    make_image_rootfs(
        imported=image,
        authorized_key=built.keys.user_public,
        no_shell=built.project / "guest-vm/files/etc/systemd/system/emergency.service.d/10-guest.conf",
        switched_off=built.project / "guest-vm/switched-off.yaml",
        host_channels=channels or built.project / "guest-vm/host-channels.yaml",
        judged_programs=built.project / "guest-vm/judged-programs.yaml",
        modules=modules,
        version=built.build / "kernel" / "version",
        tools=tools,
        output=adopted,
    )
    make_ext4(adopted, root, tools=tools)
    parameters = make_verity(root, tree, directory / "roothash", salt=fixed_salt("adopted"), tools=tools)
    line = built.config("emulated").launch.cmdline.path.read_text()
    old = next(word for word in line.split() if word.startswith("sevsnp.verity="))
    locked = variant(
        built,
        directory,
        words={old: f"sevsnp.verity={parameters.word()}", **dict.fromkeys(SECOND_LINE, "")},
        disks={"verity-data": root, "verity-hash": tree},
        # With the stage, the kernel looks for no keyboard controller and no new card. Here the lock must hold alone.
        acpi="off",
    )
    for leftover in (image, adopted):
        leftover.unlink()
    return Adopted(locked, without_lock(built, locked, directory / "unlocked"))


def without_lock(built: Built, config: VmConfig, directory: Path) -> VmConfig:
    """The same guest with an initramfs whose lock only loads the root's modules; a complete and consistent config."""
    directory.mkdir()
    initrd = directory / "initramfs"
    join_layers(layers=[config.launch.initrd.path, no_lock_layer(built, directory)], output=initrd)
    return honest(config, directory, initrd=file(initrd))


def no_lock_layer(built: Built, directory: Path) -> Path:
    """A layer of the initramfs, in ``directory``, that replaces the lock and leaves the rest unchanged."""
    layer = directory / "no-lock.cpio"
    text = (built.project / "initramfs" / "device_lock.py").read_text()
    with layer.open("wb") as stream:
        write_cpio(with_parents([text_entry("usr/lib/sevsnp/device_lock.py", text + NO_LOCK)]), stream)
    return layer
