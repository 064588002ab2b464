# SPDX-License-Identifier: Apache-2.0
"""The integrity workflow: a verified root, the VM configs, launch and attestation."""

from pathlib import Path
from typing import Any

from tasks.graph import Check, Task, artefact, command
from tasks.guest import FILES, deny_changes, deny_list, guest_inputs, own_rootfs, own_source
from tasks.project import (
    APPLIANCE_INITRAMFS,
    EMULATED_INITRAMFS,
    INITRAMFS,
    KERNEL,
    QEMU,
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
DATA = VERITY / "data"
DATA_IMAGE = DATA / "data.img"


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
        params={
            "filesystem": settings().text("VERITY_FILESYSTEM"),
            "label": SALT_LABEL,
            **deny_changes(),
            **_data_path(),
        },
        how={"tools": TOOLS, "source": own_source()},
        cached=not own,  # the user's own file system must not be shared
    )


def has_data() -> bool:
    """Whether the verified guest has a data disk."""
    return settings().number("DATA_SIZE") > 0


def data_files() -> list[Path]:
    """The files of the data disk; none if the guest has none."""
    if not has_data():
        return []
    from sevsnp.images.data_disk import FILES

    return [DATA / name for name in FILES]


def task__data_disk() -> Task:
    """The encrypted data disk of the verified guest, which is made once and belongs to one key."""
    if not has_data():
        return {"actions": None}
    values = settings()
    known: dict[str, Any] = {
        "config_dir": values.config_dir(),
        "key_file": values.text("LUKS_KEY_FILE"),
        "platform": values.text("PLATFORM"),
        "qemu": QEMU,
        "probe_cache": RUN / "platform.json",
    }
    which: dict[str, Any] = {"directory": DATA, "size": values.number("DATA_SIZE"), "volume": values.text("VOLUME")}
    made = command(
        "sevsnp.images.data_disk:make_data_disk",
        alone=True,
        needs=["packages", "unpack_kernel", "_appliance_initramfs"],
        kernel=KERNEL / "vmlinuz",
        initrd=APPLIANCE_INITRAMFS,
        tools=TOOLS,
        data_dir=values.data_dir(),
        **which,
        **known,
    )
    check = Check(
        "sevsnp.images.data_disk:is_current_disk",
        "no disk, or one of another size, volume or key than the settings say",
    )
    # No artefact: a change of code or kernel must not put another disk in the place of the guest's.
    return {
        **made,
        "targets": [str(path) for path in data_files()],
        "uptodate": [(check, [], {**which, "known": known})],
    }


def _data_identity() -> dict[str, Path]:
    """The inputs of a command line that names the data disk."""
    if not has_data():
        return {}
    names = {"data_header": DATA / "header.bin", "data_tables": DATA / "tables.sha256"}
    return {**names, "owner_certificate": keys().owner_certificate}


def _data_path() -> dict[str, str]:
    return {"data_path": settings().text("DATA_PATH")} if has_data() else {}


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
    by SHA-256, and the launch digest that a report must show. IMAGE is a root of your own. DATA_SIZE gives the guest an
    encrypted data disk, too.

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
        "sevsnp.guests.verity_guest:run_verity",
        "run_sev_snp_verity",
        "verity",
        directory=launched(config("snp")).parent,
        data_dir=settings().data_dir(),
        vm_config=settings().optional_path("VM_CONFIG"),
        disks={role: path for role, name in replaced.items() if (path := settings().optional_path(name))},
        asked=asked(),
        platform=text("PLATFORM"),
    )


def task_attest_verity() -> Task:
    """Verify the running guest before any login [PLATFORM NAME HOST PORT …]

    Sends a fresh nonce to the running guest, and checks its attestation report: certificates, signature, and every
    field against the VM config. Only if all is as expected are the files written with which ssh logs in. A guest that
    waits for the key of its data disk is verified in the same way first, and then gets the key.

    Next: log in with the command that it prints.
    """
    values = settings()
    return command(
        "sevsnp.guests.attesting:verity",
        needs=["_keys"],
        name=guest_name("verity"),
        runs=RUN,
        vm_config=values.path("VM_CONFIG", launched(config(values.text("PLATFORM")))),
        config_dir=values.config_dir(),
        key_file=values.text("LUKS_KEY_FILE"),
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
        "sevsnp.measurement.make_cmdline:make_verity_cmdline",
        inputs={"image": IMAGE, "roothash": ROOTHASH, "copied": COPIED, **_data_identity()},
        outputs={"output": output},
        params={
            "label": SALT_LABEL,
            "rootfs": values.text("VERITY_FILESYSTEM"),
            "writable": values.text("WRITABLE"),
            "tmpfs": {name: values.number(f"TMPFS_{name.upper()}") for name in ("etc", "home", "var", "tmp")},
            "acpi": checked(values.acpi),
            "dns": values.text("GUEST_DNS"),
            "platform": platform,
            **_data_path(),
        },
    )


def _config(platform: str, initrd: Path, cmdline: Path) -> Task:
    disks = {"verity-data": ("image", IMAGE), "verity-hash": ("hash_tree", TREE)}
    if has_data():
        disks["data"] = ("data", DATA_IMAGE)
    return vm_config("verity", platform, initrd=initrd, cmdline=cmdline, disks=disks, output=config(platform))
