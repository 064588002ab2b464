# SPDX-License-Identifier: Apache-2.0
"""The encrypted workflow: the LUKS2 root and its VM configs; and the same for end to end, with a volume of its own."""

from pathlib import Path
from typing import Any

from tasks.graph import Check, Task, action, artefact, clean
from tasks.guest import FILES, deny_changes, deny_list, guest_inputs, own_rootfs, own_source
from tasks.project import (
    APPLIANCE_INITRAMFS,
    BUILD,
    E2E,
    EMULATED_INITRAMFS,
    INITRAMFS,
    KERNEL,
    LUKS,
    QEMU,
    RELEASE_MANIFEST,
    RUN,
    TOOLS,
    VERITY,
    checked,
    keys,
    settings,
)  # fmt: skip
from tasks.vm_config import vm_config

HEADER, HEADER_DIGEST, TABLES_DIGEST = LUKS / "header.bin", LUKS / "header.sha256", LUKS / "tables.sha256"
IMAGE = LUKS / "luks.img"
# The disk that guests of an earlier release wrote to.
EARLIER = RUN / "luks" / "luks.img"
# End to end only looks around in its guest; what is written to this space ends with the guest.
E2E_FREE = 64 << 20


def _of_guests(bundle: str, name: str) -> list[Path]:
    """The disks called ``name`` of guests that run from a host bundle, each with a directory of its own."""
    return [found for places in ("*", "states/**") for found in sorted((BUILD / bundle).glob(f"{places}/{name}"))]


# Possible places of this checkout's disks, beside the volumes' own directories.
DISKS = tuple(dict.fromkeys((
    IMAGE, E2E / "luks.img", BUILD / "host-bundle-luks" / "luks.img", BUILD / "host-bundle-luks" / "state" / "luks.img",
    EARLIER, VERITY / "data" / "data.img", BUILD / "host-bundle" / "data.img",
    BUILD / "host-bundle" / "state" / "data.img",
    *_of_guests("host-bundle-luks", "luks.img"), *_of_guests("host-bundle", "data.img"),
)))  # fmt: skip


def config(platform: str, directory: Path = LUKS) -> Path:
    return directory / f"vm-config-luks{'.emulated' if platform == 'emulated' else ''}.toml"


def cmdline(platform: str, directory: Path = LUKS) -> Path:
    return directory / f"cmdline{'.emulated' if platform == 'emulated' else ''}"


def task__luks_image() -> Task:
    """The encrypted root's image, which belongs to one key."""
    values = settings()
    config_dir, key_file = values.config_dir(), values.text("LUKS_KEY_FILE")
    made = _image(LUKS, values.number("LUKS_FREE"), config_dir, key_file, values.text("PLATFORM"))
    made["actions"] += [
        _drop_replaced(LUKS, config_dir),
        action("sevsnp.volumes.directory:say_what_stays", header=HEADER, earlier=EARLIER, data_dir=values.data_dir()),
    ]
    return made


def task__e2e_image() -> Task:
    """The same for end to end, whose key is of no use for anything else."""
    made = _image(E2E, E2E_FREE, E2E, None, "emulated")
    made["actions"].append(_drop_replaced(E2E, E2E))
    made["clean"].append((clean, [[E2E / "volumes"]]))
    return made


def task__luks_cmdline() -> Task:
    """The measured kernel command line of the encrypted workflow."""
    return _cmdline(LUKS, "snp")


def task__luks_cmdline_emulated() -> Task:
    """The same for the emulated VM config."""
    return _cmdline(LUKS, "emulated")


def task__e2e_cmdline() -> Task:
    """The measured kernel command line of end to end's encrypted guest."""
    return _cmdline(E2E, "snp")


def task__e2e_cmdline_emulated() -> Task:
    """The same for the emulated VM config."""
    return _cmdline(E2E, "emulated")


def task__luks_config() -> Task:
    """The production VM config of the encrypted workflow."""
    return _config(LUKS, "snp", INITRAMFS)


def task__luks_config_emulated() -> Task:
    """The emulated VM config of the encrypted workflow."""
    return _config(LUKS, "emulated", EMULATED_INITRAMFS)


def task__e2e_config() -> Task:
    """The production VM config of end to end's encrypted guest."""
    return _config(E2E, "snp", INITRAMFS)


def task__e2e_config_emulated() -> Task:
    """The emulated VM config of end to end's encrypted guest."""
    return _config(E2E, "emulated", EMULATED_INITRAMFS)


def task_setup_luks() -> Task:
    """Make the encrypted root and its VM configs in build/luks [IMAGE …]

    Makes an encrypted root (LUKS2 with dm-crypt and dm-integrity) that belongs to one key, and two VM configs whose
    measured command line has the digest of its header. The key is LUKS_KEY from the environment, or the file that
    LUKS_KEY_FILE names, or it is made here and kept with your keys. A throw-away VM writes the image.

    Next: ./doitw run_sev_snp_luks
    """
    return {
        "actions": None,
        "file_dep": [str(path) for path in (IMAGE, HEADER, config("snp"), config("emulated"))],
    }


def _image(directory: Path, free: int, config_dir: Path, key_file: str | None, platform: str) -> Task:
    own = own_rootfs()
    tree: dict[str, Any] = {"rootfs": own} if own else guest_inputs()
    header, image = directory / "header.bin", directory / "luks.img"
    known: dict[str, Any] = {
        "config_dir": config_dir,
        "key_file": key_file,
        "platform": platform,
        "qemu": QEMU,
        "probe_cache": RUN / "platform.json",
    }
    made = artefact(
        "sevsnp.images.luks:make_luks_image",
        inputs={**tree, "denied": deny_list(), "kernel": KERNEL / "vmlinuz", "initrd": APPLIANCE_INITRAMFS},
        directories={} if own else {"files": FILES},
        watch=[RELEASE_MANIFEST],
        outputs={
            "image": image,
            "header": header,
            "header_digest": directory / "header.sha256",
            "tables_digest": directory / "tables.sha256",
        },
        params={"free": free, **deny_changes()},
        how={"tools": TOOLS, "data_dir": settings().data_dir(), "place": image, "source": own_source(), **known},
        cached=False,  # each image differs, and its content belongs to the key's owner
    )

    check = Check("sevsnp.images.luks_current:is_current", "the key of this run does not belong to the volume")
    made["uptodate"].append((check, [header], known))
    return made


def _drop_replaced(directory: Path, config_dir: Path) -> Any:
    """The action that removes the key of a replaced volume."""
    return action(
        "sevsnp.volumes.keys:drop_replaced",
        config_dir=config_dir,
        image=directory / "luks.img",
        disks=DISKS,
        data_dir=settings().data_dir(),
    )


def _cmdline(directory: Path, platform: str) -> Task:
    return artefact(
        "sevsnp.measurement.make_cmdline:make_luks_cmdline",
        inputs={
            "header": directory / "header.bin",
            "header_digest": directory / "header.sha256",
            "tables_digest": directory / "tables.sha256",
            "owner_certificate": keys().owner_certificate,
        },
        outputs={"output": cmdline(platform, directory)},
        params={
            "acpi": checked(settings().acpi),
            "reports": settings().text("LUKS_REPORTS"),
            "dns": settings().text("GUEST_DNS"),
            "platform": platform,
        },
        cached=False,
    )


def _config(directory: Path, platform: str, initrd: Path) -> Task:
    return vm_config(
        "luks",
        platform,
        initrd=initrd,
        cmdline=cmdline(platform, directory),
        disks={"luks": ("image", directory / "luks.img")},
        output=config(platform, directory),
    )
