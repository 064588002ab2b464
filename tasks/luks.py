"""The encrypted workflow: the LUKS2 root, its VM configs."""

from pathlib import Path
from typing import Any

from sevsnp.luks_key import was_given
from tasks.graph import Task, artefact
from tasks.guest import FILES, guest_inputs, own_rootfs
from tasks.project import (
    APPLIANCE_INITRAMFS,
    EMULATED_INITRAMFS,
    INITRAMFS,
    KERNEL,
    LUKS,
    QEMU,
    RELEASE_MANIFEST,
    RUN,
    TOOLS,
    checked,
    keys,
    settings,
)  # fmt: skip
from tasks.vm_config import vm_config

IMAGE = LUKS / "luks.img"
HEADER = LUKS / "header.bin"
HEADER_DIGEST = LUKS / "header.sha256"
TABLES_DIGEST = LUKS / "tables.sha256"


def config(platform: str) -> Path:
    return LUKS / f"vm-config-luks{'.emulated' if platform == 'emulated' else ''}.toml"


def cmdline(platform: str) -> Path:
    return LUKS / f"cmdline{'.emulated' if platform == 'emulated' else ''}"


def task__luks_image() -> Task:
    """The encrypted root's image, which belongs to one key."""
    values = settings()
    own = own_rootfs()
    tree: dict[str, Any] = {"rootfs": own} if own else guest_inputs()
    made = artefact(
        "sevsnp.images.luks:make_luks_image",
        inputs={**tree, "kernel": KERNEL / "vmlinuz", "initrd": APPLIANCE_INITRAMFS},
        directories={} if own else {"files": FILES},
        watch=[RELEASE_MANIFEST],
        outputs={
            "image": IMAGE,
            "header": HEADER,
            "header_digest": HEADER_DIGEST,
            "tables_digest": TABLES_DIGEST,
        },
        params={"free": values.number("LUKS_FREE")},
        how={
            "tools": TOOLS,
            "qemu": QEMU,
            "answers": RUN / "platform.json",
            "config_dir": values.config_dir(),
            "key_file": values.text("LUKS_KEY_FILE"),
            "working": RUN / "luks" / "luks.img",
        },
        cached=False,  # no two are alike, and what one holds is for its key's owner
    )
    made["uptodate"].append(_key_opens)
    return made


def task__luks_cmdline() -> Task:
    """The measured kernel command line of the encrypted workflow."""
    return _cmdline("snp")


def task__luks_cmdline_emulated() -> Task:
    """The same for the emulated VM config."""
    return _cmdline("emulated")


def task__luks_config() -> Task:
    """The production VM config of the encrypted workflow."""
    return _config("snp", INITRAMFS)


def task__luks_config_emulated() -> Task:
    """The emulated VM config of the encrypted workflow."""
    return _config("emulated", EMULATED_INITRAMFS)


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


def _key_opens(task: Any, values: Any) -> bool:
    """Whether the key of this run opens the image; one that it does not is made anew."""
    from sevsnp.errors import UserError

    # Loaded only where there may be something to ask: doit wants this for every task that needs the image.
    if not settings().text("LUKS_KEY_FILE") and not was_given():
        return True
    from sevsnp.images.luks import key_opens

    try:
        return key_opens(HEADER, settings().text("LUKS_KEY_FILE"))
    except UserError:
        return False  # the task says what is wrong, as its own failure


def _cmdline(platform: str) -> Task:
    return artefact(
        "sevsnp.vm.make_config:make_luks_cmdline",
        inputs={
            "header": HEADER,
            "header_digest": HEADER_DIGEST,
            "tables_digest": TABLES_DIGEST,
            "owner_certificate": keys().owner_certificate,
        },
        outputs={"output": cmdline(platform)},
        params={
            "acpi": checked(settings().acpi),
            "reports": settings().text("LUKS_REPORTS"),
            "platform": platform,
        },
        cached=False,
    )


def _config(platform: str, initrd: Path) -> Task:
    return vm_config(
        "luks",
        platform,
        initrd=initrd,
        cmdline=cmdline(platform),
        disks={"luks": ("image", IMAGE)},
        output=config(platform),
    )
