# SPDX-License-Identifier: Apache-2.0
"""The appliance of the shared build, with an additional job of the tests."""

from pathlib import Path

from sevsnp.archives.cpio import with_parents, write_cpio
from sevsnp.archives.rootfs import text_entry
from sevsnp.images.initramfs import join_layers
from sevsnp.qemu.appliance import Appliance
from tests.conftest import Built

PROBE = Path(__file__).with_name("appliance_probe.py")


def appliance_with_probe(built: Built, directory: Path) -> Appliance:
    """An appliance whose initramfs, in ``directory``, has the job ``probe``."""
    layer, initrd = directory / "probe.cpio", directory / "initramfs"
    with layer.open("wb") as stream:
        write_cpio(with_parents([text_entry("usr/lib/sevsnp/appliance/probe.py", PROBE.read_bytes())]), stream)
    join_layers(layers=[built.build / "initramfs.appliance.cpio.zst", layer], output=initrd)
    return Appliance(built.qemu, built.build / "kernel" / "vmlinuz", initrd, built.build / "run" / "platform.json")
