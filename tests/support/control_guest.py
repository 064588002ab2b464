# SPDX-License-Identifier: Apache-2.0
"""The control guest of the hostile boot: the genuine guest without its defences, with software that trusts the host.

It starts as the genuine guest does (same kernel, same initramfs, a verified root), so the two differ in the defences:
the control has no hardening words on the command line, no masked units and generators, an fstab that names disks as
installers do, the kernel modules that read a host's offers, no lock on its devices, and cloud-init, LVM and the QEMU
guest agent.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import yaml

from sevsnp.archives.rootfs import Layer, link_entry, make_rootfs, text_entry
from sevsnp.archives.tar import Entry, read_tar
from sevsnp.images.filesystem import fixed_uuid, make_ext4
from sevsnp.images.guest import guest_layer, read_public_key
from sevsnp.images.guest_config import read_guest
from sevsnp.images.initramfs import join_layers, make_modules_layer
from sevsnp.images.verity import make_verity
from sevsnp.system.files import sha256_file
from sevsnp.system.yaml_loader import load
from sevsnp.vm_config.cmdline import build_cmdline
from sevsnp.vm_config.config import Disk, File, Launch
from sevsnp.vm_config.verity_word import VerityParameters, fixed_salt
from tests.conftest import Built
from tests.support.hostile_devices import no_lock_layer
from tests.support.hostile_disks import SWAP_UUID
from tests.support.pinned import PinnedSet

HERE = Path(__file__).resolve().parent
# No maintainer script runs; _own_layers enables what the scripts would enable.
PACKAGES = PinnedSet("control")

# The genuine guest's kernel cannot read these, because its root has no modules: fw_cfg, the seed's file system,
# devices.
MODULES = (
    *("qemu_fw_cfg", "fat", "vfat", "nls_cp437", "nls_ascii"),
    *("virtio_rng", "virtio_balloon", "e1000e", "xhci_pci", "usbhid", "hid_generic"),
)
TWIN_PLACE = "srv"
# Label, and so UUID, of the genuine root. The control's own root has another: if two disks have the same UUID, a race
# decides which one is mounted. A host needs to win it once, a test each time.
GENUINE_LABEL = "root"
LABEL = "control"

_CLOUD_UNITS = ("cloud-init-main", "cloud-init-local", "cloud-init-network", "cloud-config", "cloud-final")
_FSTAB = f"""\
UUID={fixed_uuid(f"ext4:{GENUINE_LABEL}")} /{TWIN_PLACE} ext4 ro,nofail 0 0
UUID={SWAP_UUID} none swap sw,nofail 0 0
"""


def _own_layers(built: Built, packages: Mapping[str, Entry]) -> list[Layer]:
    """The genuine guest's own layer without its defences, and the settings that make the control trust its host."""
    genuine = read_guest(built.project / "guest-vm" / "guest.yaml")
    enable = {**genuine.enable, "cloud-init.target": tuple(f"{unit}.service" for unit in _CLOUD_UNITS)}
    guest = replace(genuine, enable=enable, mask=(), mask_generators=(), remove=())
    own = guest_layer(guest, built.project / "guest-vm" / "files", packages, read_public_key(built.keys.user_public))
    shadow = next(entry for entry in own.entries if entry.name == "etc/shadow")
    assert shadow.content is not None
    unprovisioned = shadow.content.read().replace(b"root:*:", b"root:!unprovisioned:")
    trusting = [
        link_entry("usr/bin/nc", "nc.openbsd"),
        text_entry("etc/fstab", _FSTAB),
        # An image that its first boot sets up.
        text_entry("etc/shadow", unprovisioned, 0o640, shadow.uid, shadow.gid),
        text_entry("etc/locale.conf", "LANG=C.UTF-8\n"),
        text_entry("etc/vconsole.conf", "KEYMAP=us\n"),
        text_entry("etc/timezone", "Etc/UTC\n"),
        text_entry("etc/cloud/cloud.cfg.d/90-network.cfg", "network: {config: disabled}\n"),
    ]
    return [own, Layer("trusting", trusting)]


def _make_root(built: Built, scratch: Path, tools: Path) -> VerityParameters:
    base = read_tar(built.build / "guest" / "packages.tar")
    extra = PACKAGES.entries(scratch / "packages")
    layers = [Layer("packages", list(base.values())), Layer("control packages", list(extra.values()))]
    tar, image = scratch / "root.tar", scratch / "root.img"
    make_rootfs([*layers, *_own_layers(built, {**base, **extra})], tar)
    make_ext4(tar, image, tools=tools, label=LABEL)
    return make_verity(image, scratch / "tree.img", scratch / "roothash.txt", salt=fixed_salt("control"), tools=tools)


def _make_initramfs(built: Built, scratch: Path) -> None:
    """The genuine emulated initramfs with more modules in its emulated layer."""
    lists = load(built.project / "initramfs" / "modules.yaml")
    modules, layer = scratch / "modules.yaml", scratch / "modules.cpio.zst"
    modules.write_text(yaml.safe_dump({**lists, "emulated": [*lists["emulated"], *MODULES]}))
    make_modules_layer(version=built.build / "kernel" / "version", modules=modules, lists=["emulated"], output=layer)
    layers = [built.build / "initramfs.cpio.zst", layer, built.build / "layers" / "emulated.cpio.zst"]
    join_layers(layers=[*layers, no_lock_layer(built, scratch)], output=scratch / "initramfs")


def _make_cmdline(launch: Launch, parameters: VerityParameters, output: Path) -> None:
    """The genuine command line's own words with another root, without the hardening."""
    own = [word for word in launch.cmdline.path.read_text().split() if word.startswith("sevsnp.")]
    own = [f"sevsnp.verity={parameters.word()}" if word.startswith("sevsnp.verity=") else word for word in own]
    # systemd accepts a password for root only at a first boot.
    words = ["console=ttyS0", "loglevel=4", "panic=-1", "systemd.condition_first_boot=1", *own]
    output.write_text(build_cmdline(words))


def control_launch(built: Built) -> Launch:
    """A launch of the control guest on the emulated platform; built once for each build directory and list."""
    launch = built.config("emulated").launch
    done = built.build / "control"
    recipe = "".join(
        sha256_file(path)
        for path in (
            PACKAGES.list_file, PACKAGES.lock_file, Path(__file__), *sorted(HERE.glob("hostile_d*")),
            built.build / "guest" / "rootfs.tar",
            launch.initrd.path, launch.cmdline.path, launch.kernel.path, built.project / "guest-vm" / "guest.yaml",
        )
    )  # fmt: skip
    if not (done / "recipe").exists() or (done / "recipe").read_text() != recipe:
        scratch = built.build / "control.new"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        parameters = _make_root(built, scratch, (built.build / "snp-release" / "bin").resolve())
        _make_initramfs(built, scratch)
        _make_cmdline(launch, parameters, scratch / "cmdline")
        (scratch / "recipe").write_text(recipe)
        (scratch / "root.tar").unlink()
        shutil.rmtree(scratch / "packages")
        shutil.rmtree(done, ignore_errors=True)
        scratch.rename(done)

    def file(name: str) -> File:
        return File(done / name, sha256_file(done / name))

    def disk(role: str, name: str) -> Disk:
        path = done / name
        return Disk(role, path, path.stat().st_size, sha256_file(path))

    disks = (disk("verity-data", "root.img"), disk("verity-hash", "tree.img"))
    # The kernel without the stage, so that it has the host's tables.
    kernel = built.build / "kernel" / "vmlinuz"
    return replace(
        launch, kernel=File(kernel, sha256_file(kernel)), initrd=file("initramfs"), cmdline=file("cmdline"), disks=disks
    )
