# SPDX-License-Identifier: Apache-2.0
"""The guest's root file system, or that of the user's own image, and the plain guest that boots from its own disk."""

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sevsnp.store.recipe import recipe_digest
from sevsnp.store.session import index
from tasks import cloud
from tasks.graph import Task, artefact, command
from tasks.project import (
    APPLIANCE_INITRAMFS,
    DEBS,
    DISK_FIRMWARE,
    GUEST,
    KERNEL,
    LAUNCHED,
    PLAIN_INITRAMFS,
    QEMU,
    RELEASE,
    RELEASE_MANIFEST,
    RUN,
    TOOLS,
    firmware,
    keys,
    launching,
    settings,
)  # fmt: skip

if TYPE_CHECKING:
    from sevsnp.containers.form import Given

PACKAGES = GUEST / "packages.tar"
ROOTFS = GUEST / "rootfs.tar"
DISK = GUEST / "sevsnptest.qcow2"
LOADER = RELEASE / "usr" / "lib" / "systemd" / "boot" / "efi" / "systemd-bootx64.efi"
FILES = Path("guest-vm/files")
SWITCHED_OFF = Path("guest-vm/switched-off.yaml")
IMAGE_UNPACKED, IMAGE_DISK = GUEST / "image-unpacked.tar", GUEST / "image-disk"
IMAGE_PULLED = GUEST / "image-pulled.tar"
IMPORTED = GUEST / "image-imported.tar"
IMAGE_ROOTFS = GUEST / "image-rootfs.tar"
# The forms of IMAGE that become a guest only by changes; a root file system tar is the user's work already.
ADOPTED = ("DISK", "DISK_INSIDE", "CONTAINER", "REGISTRY")


def _keys_are_fine() -> bool:
    """Asked in every run: the task reports keys that others may read or that were exchanged."""
    paths, directory = keys(), settings().config_dir()
    files = [paths.user_private, paths.user_public, paths.owner_private, paths.owner_certificate]
    # The answer is remembered: to load what reads keys takes a fifth of a run that has nothing to do.
    name = f"keys:{os.geteuid()}:{recipe_digest('sevsnp.keys.pairs')}"
    return index().holds(name, [directory.resolve(), *files], _keys_pass)


def _keys_pass() -> bool:
    from sevsnp.errors import UserError
    from sevsnp.keys.pairs import ensure_keys

    try:
        return keys().owner_private.exists() and bool(ensure_keys(settings().config_dir()))
    except UserError:
        return False


def task__keys() -> Task:
    """The user's SSH key and the owner's key, made once."""
    paths = keys()
    return {
        **command("sevsnp.keys.pairs:make_keys", alone=True, config_dir=settings().config_dir()),
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


def deny_list() -> Path:
    """The list of what is in no root."""
    return settings().path("DENY_LIST", Path("guest-vm/denied.yaml"))


def deny_changes() -> dict[str, str]:
    """The user's changes of that list for one image, as parameters."""
    return {"keep": settings().text("KEEP"), "drop": settings().text("DROP")}


def guest_inputs() -> dict[str, Path]:
    """The files that the guest's root file system is made from, beside the directory FILES."""
    return {"packages": PACKAGES, "guest": Path("guest-vm/guest.yaml"), "authorized_key": keys().user_public}


def task__guest_rootfs() -> Task:
    """The guest's root filesystem tar: packages, our files and units, the user's public key."""
    return artefact(
        "sevsnp.images.guest:make_guest_rootfs",
        inputs=guest_inputs(),
        directories={"files": FILES},
        outputs={"output": ROOTFS},
    )


@cache
def _given(text: str) -> "Given":
    from sevsnp.containers.form import given

    return given(text)


def _image(*forms: str) -> "Given | None":
    """IMAGE if it has one of the ``forms`` (names of sevsnp.containers.form.Form), else None."""
    text = settings().text("IMAGE")
    found = _given(text) if text else None
    return found if found and found.form.name in forms else None


def own_rootfs() -> Path | None:
    """The root file system tar of the user's IMAGE, which is made of it where it is something else.

    None without an IMAGE.
    """
    if _image(*ADOPTED):
        return IMAGE_ROOTFS
    return IMAGE_UNPACKED if _image("PACKED_TAR") else settings().optional_path("IMAGE")


def own_source() -> str:
    """What the user gave as IMAGE, where the root is made from it; for messages. Empty where it is the root itself."""
    return settings().text("IMAGE") if _image("PACKED_TAR", *ADOPTED) else ""


def task__image_unpacked() -> Task:
    """The tar in IMAGE, a compressed tar."""
    image = _image("PACKED_TAR")
    if image is None:
        return {"actions": None}
    return artefact(
        "sevsnp.containers.inside:unpack_tar",
        inputs={"image": image.path},
        outputs={"output": IMAGE_UNPACKED},
        cached=False,  # the user's own file system must not be shared
    )


def task__image_disk() -> Task:
    """The disk in IMAGE, an archive or a compressed disk."""
    image = _image("DISK_INSIDE")
    if image is None:
        return {"actions": None}
    return artefact(
        "sevsnp.containers.inside:unpack_disk",
        inputs={"image": image.path},
        outputs={"output": IMAGE_DISK},
        cached=False,
    )


def task__image_import() -> Task:
    """The root file system of IMAGE as a tar: of a disk in the appliance, which is slow; of a container its layers."""
    if container := _image("CONTAINER", "REGISTRY"):
        return _container(container)
    disk = _image("DISK", "DISK_INSIDE")
    if disk is None:
        return {"actions": None}
    return artefact(
        "sevsnp.images.foreign:import_image",
        inputs={
            "image": disk.path if disk.form.name == "DISK" else IMAGE_DISK,
            "kernel": KERNEL / "vmlinuz",
            "initrd": APPLIANCE_INITRAMFS,
        },
        watch=[RELEASE_MANIFEST],
        outputs={"output": IMPORTED},
        params={"root_device": settings().text("ROOT_DEVICE")},
        how={"qemu": QEMU, "probe_cache": RUN / "platform.json"},
        cached=False,
    )


def _container(image: "Given") -> Task:
    """The joined layers of a container image."""
    path = image.path if image.form.name == "CONTAINER" else IMAGE_PULLED
    layout = {"image": path}
    return artefact(
        "sevsnp.containers.make:make_container_root",
        inputs={"packages": PACKAGES, **({} if path.is_dir() else layout)},
        directories=layout if path.is_dir() else {},
        outputs={"output": IMPORTED},
        params={"name": f"IMAGE={image.text}", "tag": image.tag, "docker": image.docker},
        cached=False,
    )


def task__image_pulled() -> Task:
    """IMAGE from a registry, as an OCI layout."""
    image = _image("REGISTRY")
    if image is None:
        return {"actions": None}
    values = settings()
    return artefact(
        "sevsnp.containers.registry:pull_image",
        outputs={"output": IMAGE_PULLED},
        params={"reference": image.text},
        how={
            "pins": str(values.config_dir() / "image-pins.json"),
            "cache_dir": str(values.cache_dir()),
            "limit": values.number("CACHE_SIZE"),
        },
        cached=False,
    )


def task__image_rootfs() -> Task:
    """The same as one that starts as a guest: nothing in it takes orders from the host."""
    if _image(*ADOPTED) is None:
        return {"actions": None}
    return artefact(
        "sevsnp.images.adopt:make_image_rootfs",
        inputs={
            "imported": IMPORTED,
            "authorized_key": keys().user_public,
            "no_shell": FILES / "etc" / "systemd" / "system" / "emergency.service.d" / "10-guest.conf",
            "switched_off": SWITCHED_OFF,
            "host_channels": Path("guest-vm/host-channels.yaml"),
            "judged_programs": Path("guest-vm/judged-programs.yaml"),
            "modules": Path("initramfs/modules.yaml"),
            "version": KERNEL / "version",
        },
        # Two builds of one version have different modules; the kernel image distinguishes them.
        watch=[KERNEL / "vmlinuz", RELEASE_MANIFEST],
        how={"tools": TOOLS},
        outputs={"output": IMAGE_ROOTFS},
        cached=False,
    )


def task_create_new_vm() -> Task:
    """Make a guest in build/guest, of Debian or from a cloud image [GUEST_FROM]

    Makes a small Debian from the lists in guest-vm/: a root file system tar, of which the measured guests are made too,
    and a disk image that boots by itself. With GUEST_FROM=cloud-image it takes CLOUD_IMAGE instead, and makes its disk
    and a seed with your key in build/guest: cloud.qcow2 and cloud-seed.img.

    Next: ./doitw run_guest, or for a cloud image ./doitw run_setup
    """
    if cloud.chosen():
        return cloud.guest()
    return artefact(
        "sevsnp.images.guest_disk:make_guest_disk",
        inputs={"rootfs": ROOTFS, "kernel": KERNEL / "vmlinuz", "initramfs": PLAIN_INITRAMFS},
        how={"tools": TOOLS, "loader": LOADER},
        watch=[RELEASE_MANIFEST],
        outputs={"output": DISK},
    )


def task_run_guest() -> Task:
    """Boot the plain guest without SEV-SNP [IMAGE MEMORY NAME DETACH …]

    Boots a disk image in an ordinary VM, in the foreground: that of create_new_vm, which has to be made before, or
    IMAGE. Nothing is measured or verified. For the guest of create_new_vm it writes an ssh_config, with which
    ./doitw ssh logs in; the host key that answers first is taken.

    Next: ./doitw setup_verity makes of it a guest that can be verified.
    """
    return _plain("run_guest", "plain")


def task_run_sev_snp() -> Task:
    """Boot the plain guest's disk with SEV-SNP, unmeasured [IMAGE MEMORY …]

    Boots a disk image as an SEV-SNP guest whose firmware alone is measured: kernel and disk are what the host says they
    are. It shows that the machine can run SEV-SNP guests; it is emulated where there is none.

    Next: ./doitw run_sev_snp_direct_boot measures the kernel too.
    """
    return _plain("run_sev_snp", "snp")


def task_run_sev_snp_direct_boot() -> Task:
    """Boot the plain guest with SEV-SNP and a measured kernel [IMAGE MEMORY …]

    Boots a disk image as an SEV-SNP guest with measured firmware, kernel, initramfs and command line; the disk is not
    protected.

    Next: ./doitw setup_verity protects the disk too.
    """
    return _plain("run_sev_snp_direct_boot", "direct")


def _plain(task: str, mode: str) -> Task:
    values = settings()
    return launching(
        "sevsnp.host.plain:run_plain",
        task,
        "guest",
        mode=mode,
        image=values.path("IMAGE", cloud.SET_UP if cloud.chosen() else DISK),
        cloud=cloud.chosen(),
        own_image=not values.text("IMAGE"),
        firmware=firmware() if mode == "direct" else DISK_FIRMWARE,
        kernel=KERNEL / "vmlinuz",
        initrd=PLAIN_INITRAMFS,
        launch={name: values[name] for name in LAUNCHED},
        platform=values.text("PLATFORM"),
        identity=keys().user_private,
        template=Path("templates/ssh_config.j2"),
    )
