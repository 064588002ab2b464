# SPDX-License-Identifier: Apache-2.0
"""The integrity workflow: a verified root, the VM configs, launch and attestation."""

from pathlib import Path
from typing import Any

from tasks.graph import Task, artefact, command
from tasks.guest import FILES, deny_changes, deny_list, guest_inputs, own_rootfs, own_source
from tasks.project import (
    EMULATED_INITRAMFS,
    INITRAMFS,
    RELEASE_MANIFEST,
    RUN,
    TOOLS,
    VERITY,
    asked,
    certificate_sources,
    checked,
    guest_name,
    keys,
    launching,
    release_manifest,
    settings,
)  # fmt: skip
from tasks.vm_config import launched, vm_config

IMAGE = VERITY / "verity.img"
TREE = VERITY / "hash-tree.img"
ROOTHASH = VERITY / "roothash.txt"
COPIED = VERITY / "copied.json"
SALT_LABEL = "verity root"


def config(platform: str) -> Path:
    return VERITY / f"vm-config-verity{'.emulated' if platform == 'emulated' else ''}.toml"


def task__verity_root() -> Task:
    """The verified root's image, without identity and secrets; its hash tree and root hash."""
    own = own_rootfs()
    # The guest's parts, not its rootfs.tar: after an edit of a file that tar need not be written first.
    tree: dict[str, Any] = {"rootfs": own} if own else guest_inputs()
    return artefact(
        "sevsnp.images.verity_root:make_verity_root",
        inputs={**tree, "denied": deny_list()},
        directories={} if own else {"files": FILES},
        watch=[RELEASE_MANIFEST],
        outputs={"image": IMAGE, "hash_tree": TREE, "root_hash": ROOTHASH, "copied": COPIED},
        params={"filesystem": settings().text("VERITY_FILESYSTEM"), "label": SALT_LABEL, **deny_changes()},
        how={"tools": TOOLS, "source": own_source()},
        cached=not own,  # the user's own file system must not be shared
    )


def task__verity_cmdline() -> Task:
    """The measured kernel command line."""
    return _cmdline("snp", VERITY / "cmdline")


def task__verity_cmdline_emulated() -> Task:
    """The measured kernel command line of the emulated VM config."""
    return _cmdline("emulated", VERITY / "cmdline.emulated")


def task__verity_config() -> Task:
    """The production VM config."""
    return _config("snp", INITRAMFS, VERITY / "cmdline")


def task__verity_config_emulated() -> Task:
    """The emulated VM config."""
    return _config("emulated", EMULATED_INITRAMFS, VERITY / "cmdline.emulated")


def task_setup_verity() -> Task:
    """Make the verified root, its hash tree and the VM configs in build/verity

    Makes a read-only root file system with its dm-verity hash tree, the measured kernel command line that has the root
    hash, and two VM configs: one for SEV-SNP hardware and one for the emulation. A VM config has all that is launched,
    by SHA-256, and the launch digest that a report must show. IMAGE is a root of your own.

    Next: ./doitw run_sev_snp_verity
    """
    return {
        "actions": None,
        "file_dep": [str(path) for path in (IMAGE, TREE, ROOTHASH, config("snp"), config("emulated"))],
    }


def task_run_sev_snp_verity() -> Task:
    """Boot the verified guest, on SEV-SNP or emulated [MEMORY NAME DETACH …]

    Boots the guest that setup_verity has made, in the foreground, until it ends. PLATFORM=auto takes SEV-SNP where a
    test guest boots with it on this machine, else the emulation, and says which. What is measured (CPUS, POLICY and
    others) is in the VM config, and another value of it is refused here.

    Next: ./doitw attest_verity in a second terminal, with PLATFORM=emulated for an emulated guest.
    """
    replaced = {"verity-data": "VERITY_IMAGE", "verity-hash": "VERITY_HASH_TREE"}
    text = settings().text
    return launching(
        "sevsnp.host.run:run_workflow",
        "run_sev_snp_verity",
        "verity",
        directory=launched(config("snp")).parent,
        workflow="verity",
        vm_config=settings().optional_path("VM_CONFIG"),
        disks={role: path for role, name in replaced.items() if (path := settings().optional_path(name))},
        asked=asked(),
        platform=text("PLATFORM"),
    )


def task_attest_verity() -> Task:
    """Verify the running guest before any login [PLATFORM NAME HOST PORT …]

    Sends a fresh nonce to the running guest, and checks its attestation report: certificates, signature, and every
    field against the VM config. Only if all is as expected are the files written with which ssh logs in.

    Next: log in with the command that it prints.
    """
    values = settings()
    return command(
        "sevsnp.guests.attesting:verity",
        needs=["_keys"],
        name=guest_name("verity"),
        runs=RUN,
        vm_config=values.path("VM_CONFIG", launched(config(values.text("PLATFORM")))),
        asked=asked(),
        host=values.text("HOST"),
        port=values.number("PORT") or values.number("ATTEST_PORT"),
        ssh_port=values.number("SSH_PORT"),
        emulated_root=values.path("EMULATED_ROOT", RUN / guest_name("verity") / "ark.pem"),
        identity=keys().user_private,
        user="user",
        template=Path("templates/ssh_config.j2"),
        **release_manifest(),
        **certificate_sources(),
    )


def _cmdline(platform: str, output: Path) -> Task:
    values = settings()
    return artefact(
        "sevsnp.measurement.make_config:make_verity_cmdline",
        inputs={"image": IMAGE, "roothash": ROOTHASH, "copied": COPIED},
        outputs={"output": output},
        params={
            "label": SALT_LABEL,
            "rootfs": values.text("VERITY_FILESYSTEM"),
            "writable": values.text("WRITABLE"),
            "tmpfs": {name: values.number(f"TMPFS_{name.upper()}") for name in ("etc", "home", "var", "tmp")},
            "acpi": checked(values.acpi),
            "dns": values.text("GUEST_DNS"),
            "platform": platform,
        },
    )


def _config(platform: str, initrd: Path, cmdline: Path) -> Task:
    disks = {"verity-data": ("image", IMAGE), "verity-hash": ("hash_tree", TREE)}
    return vm_config("verity", platform, initrd=initrd, cmdline=cmdline, disks=disks, output=config(platform))
