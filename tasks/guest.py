"""The guest's root file system, and the plain guest that boots from its own disk."""

from pathlib import Path

from tasks.graph import Task, artefact, command
from tasks.project import (
    DEBS,
    GUEST,
    KERNEL,
    PLAIN_INITRAMFS,
    RELEASE,
    RELEASE_MANIFEST,
    RUN,
    TOOLS,
    keys,
    run_options,
    settings,
)  # fmt: skip

PACKAGES = GUEST / "packages.tar"
ROOTFS = GUEST / "rootfs.tar"
DISK = GUEST / "sevsnptest.qcow2"
LOADER = RELEASE / "usr" / "lib" / "systemd" / "boot" / "efi" / "systemd-bootx64.efi"
FILES = Path("guest-vm/files")


def _keys_are_fine() -> bool:
    """Looked at every time: whoever else may read them, or has exchanged them, is found out by the task."""
    from sevsnp.errors import UserError
    from sevsnp.keys import ensure_keys

    try:
        return keys().owner_private.exists() and bool(ensure_keys(settings().config_dir()))
    except UserError:
        return False


def task__keys() -> Task:
    """The user's SSH key and the owner's key, made once."""
    paths = keys()
    return {
        **command("sevsnp.keys:make_keys", alone=True, config_dir=settings().config_dir()),
        "targets": [str(paths.user_public), str(paths.owner_certificate)],
        "uptodate": [_keys_are_fine],
    }


def task__guest_packages() -> Task:
    """The guest's installed packages: the slow step, which editing a file never repeats."""
    return artefact(
        "sevsnp.images.guest_packages:make_packages_layer",
        how={"debs": DEBS / "guest"},
        watch=[DEBS / "guest" / "packages.json"],
        programs=["mmdebstrap", "apt-get", "dpkg"],
        outputs={"output": PACKAGES},
    )


def guest_inputs() -> dict[str, Path]:
    """The files that the guest's root file system is made of, beside the directory FILES."""
    return {"packages": PACKAGES, "guest": Path("guest-vm/guest.yaml"), "authorized_key": keys().user_public}


def task__guest_rootfs() -> Task:
    """The guest's root filesystem tar: packages, our files and units, the user's public key."""
    return artefact(
        "sevsnp.images.guest:make_guest_rootfs",
        inputs=guest_inputs(),
        directories={"files": FILES},
        outputs={"output": ROOTFS},
    )


def task_create_new_vm() -> Task:
    """Make a Debian guest in build/guest: rootfs.tar and sevsnptest.qcow2"""
    return artefact(
        "sevsnp.images.guest_disk:make_guest_disk",
        inputs={"rootfs": ROOTFS, "kernel": KERNEL / "vmlinuz", "initramfs": PLAIN_INITRAMFS},
        how={"tools": TOOLS, "loader": LOADER},
        watch=[RELEASE_MANIFEST],
        outputs={"output": DISK},
    )


def task_run_guest() -> Task:
    """Boot the plain guest without SEV-SNP [IMAGE MEMORY SSH_PORT]"""
    return _plain("plain")


def task_run_sev_snp() -> Task:
    """Boot the plain guest's disk with SEV-SNP, unmeasured [IMAGE MEMORY …]"""
    return _plain("snp")


def task_run_sev_snp_direct_boot() -> Task:
    """Boot the plain guest with SEV-SNP and a measured kernel [IMAGE MEMORY …]"""
    return _plain("direct")


def _plain(mode: str) -> Task:
    values = settings()
    return command(
        "sevsnp.vm.plain:run_plain",
        mode=mode,
        image=values.path("IMAGE", DISK),
        own_image=not values.text("IMAGE"),
        release=RELEASE,
        kernel=KERNEL / "vmlinuz",
        initrd=PLAIN_INITRAMFS,
        launch={name: values[name] for name in ("PRODUCT", "CPUS", "CPU_MODEL", "POLICY", "GUEST_FEATURES")},
        platform=values.text("PLATFORM"),
        options=run_options(RUN / "guest"),
    )
