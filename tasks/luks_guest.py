# SPDX-License-Identifier: Apache-2.0
"""The encrypted workflow's guest: its launch, and the release of its key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.graph import Task, command
from tasks.luks import EARLIER, config
from tasks.project import (
    APPLIANCE_INITRAMFS,
    EMULATED_INITRAMFS,
    INITRAMFS,
    KERNEL,
    LUKS,
    QEMU,
    RUN,
    asked,
    certificate_sources,
    checked,
    firmware,
    guest_name,
    keys,
    launch_kernel,
    launching,
    own_acpi,
    release_manifest,
    settings,
    signing_key,
    stage_parts,
)  # fmt: skip
from tasks.vm_config import SETTINGS, launched


def left() -> list[str]:
    """The volumes that `doit clean` leaves, a line each, with the command that boots the volume."""
    from sevsnp.volumes import directory as volumes

    data_dir = settings().data_dir()
    return [*volumes.left(data_dir), *filter(None, [volumes.note_earlier(EARLIER, data_dir)])]


def task_run_sev_snp_luks() -> Task:
    """Boot the encrypted guest, which waits for attest_luks [VOLUME NAME DETACH …]

    Boots the guest that setup_luks has made, or with VOLUME another one that has run before, in the
    foreground, until it ends. It waits for its disk key, which only attest_luks of its owner can send. What the
    guest writes to its disk stays, outside build/.

    Next: ./doitw attest_luks in a second terminal, with PLATFORM=emulated for an emulated guest.
    """
    return launching(
        "sevsnp.guests.volume_guest:run_volume",
        "run_sev_snp_luks",
        "luks",
        # `doit clean` prints a command that boots a volume; it must work with these alone.
        needs=["packages"],
        **chosen_volume(),
        config_dir=settings().config_dir(),
        earlier=EARLIER,
        asked=asked(),
        platform=settings().text("PLATFORM"),
    )


def chosen_volume() -> Mapping[str, Any]:
    """The places of volumes, and the chosen volume."""
    values = settings()
    return {
        "directory": LUKS,
        "configs": launched(config("snp")).parent,
        "data_dir": values.data_dir(),
        "volume": values.text("VOLUME"),
        "vm_config": values.optional_path("VM_CONFIG"),
    }


def task_attest_luks() -> Task:
    """Verify the waiting guest, then send it its disk key [PLATFORM VOLUME NAME HOST …]

    Verifies the guest that waits for its disk key, as attest_verity does, and that this very connection and this very
    volume are in its report. Only then is the key sent. An emulated guest gets the key that was made here, which is
    then no longer sent to confidential guests.

    Next: log in with the command that it prints.
    """
    values = settings()
    return command(
        "sevsnp.guests.volume_guest:attest_volume",
        needs=["_keys"],
        name=guest_name("luks"),
        runs=RUN,
        **chosen_volume(),
        platform=values.text("PLATFORM"),
        config_dir=values.config_dir(),
        key_file=values.text("LUKS_KEY_FILE"),
        asked=asked(),
        host=values.text("HOST"),
        port=values.number("PORT") or values.number("ATTEST_PORT"),
        ssh_port=values.number("SSH_PORT"),
        emulated_root=values.path("EMULATED_ROOT", RUN / guest_name("luks") / "ark.pem"),
        user="user",
        template=Path("templates/ssh_config.j2"),
        **release_manifest(),
        **certificate_sources(),
    )


def task_update_luks() -> Task:
    """Give a volume that a guest has written the kernel and initramfs of now [VOLUME]

    Makes new VM configs for a volume whose disk stays as it is: with kernel, initramfs, firmware and settings as they
    are built now.

    Next: ./doitw run_sev_snp_luks VOLUME=…
    """
    chosen = {name: value for name, value in chosen_volume().items() if name != "vm_config"}
    return command("sevsnp.volumes.boot:update_volume", alone=True, needs=_needs(), **chosen, boot=_boot())


def task_adopt_luks() -> Task:
    """Keep the disk of an encrypted guest, from elsewhere, as a volume here [IMAGE]

    Copies luks.img of a host's state directory, of a backup or of an earlier release of this project to where volumes
    are kept, and makes the VM configs that boot it. Its key has to be among your keys, or is given.

    Next: ./doitw run_sev_snp_luks VOLUME=…
    """
    values = settings()
    return command(
        "sevsnp.volumes.boot:adopt_volume",
        alone=True,
        needs=[*_needs(), "_appliance_initramfs"],
        image=values.optional_path("IMAGE"),
        directory=LUKS,
        data_dir=values.data_dir(),
        config_dir=values.config_dir(),
        key_file=values.text("LUKS_KEY_FILE"),
        boot=_boot(),
        appliance={
            "qemu": QEMU,
            "kernel": KERNEL / "vmlinuz",
            "initrd": APPLIANCE_INITRAMFS,
            "probe_cache": RUN / "platform.json",
        },
    )


# The tasks that make the files of a boot.
_BOOT = ["packages", "unpack_kernel", "initramfs", "_emulated_initramfs", "_firmware", "_keys"]


def _needs() -> list[str]:
    return [*_BOOT, *(["_stage"] if own_acpi() else [])]


def _boot() -> Mapping[str, Any]:
    """The files and settings of a boot in the present build, for sevsnp.volumes.boot."""
    return {
        "template": Path("templates/vm-config.toml.j2"),
        "firmware": firmware(),
        "kernel": launch_kernel(),
        "stage": stage_parts(),
        "initrd": INITRAMFS,
        "emulated_initrd": EMULATED_INITRAMFS,
        "owner_certificate": keys().owner_certificate,
        "acpi": checked(settings().acpi),
        "reports": settings().text("LUKS_REPORTS"),
        "dns": settings().text("GUEST_DNS"),
        "settings": {name: settings()[name] for name in SETTINGS},
        "id_key": signing_key("ID_KEY"),
        "author_key": signing_key("AUTHOR_KEY"),
    }


def task_attest_luks_vm() -> Task:
    """The same as attest_luks, under its first name"""
    return {"actions": None, "task_dep": ["attest_luks"], "meta": {"unlisted": True}}
