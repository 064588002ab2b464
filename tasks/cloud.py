# SPDX-License-Identifier: Apache-2.0
"""The plain guest from a cloud image (GUEST_FROM=cloud-image): its disk, its seed, and its one boot with cloud-init."""

from pathlib import Path

from tasks.graph import Task, artefact, clean
from tasks.project import (
    DISK_FIRMWARE,
    GUEST,
    KERNEL,
    LAUNCHED,
    PLAIN_INITRAMFS,
    RELEASE_MANIFEST,
    TOOLS,
    keys,
    launching,
    settings,
)  # fmt: skip

IMAGE = GUEST / "cloud-image"
DISK, SEED = GUEST / "cloud.qcow2", GUEST / "cloud-seed.img"
SET_UP = GUEST / "cloud-set-up.qcow2"


def chosen() -> bool:
    return settings().text("GUEST_FROM") == "cloud-image"


def task__cloud_image() -> Task:
    """The cloud image, if CLOUD_IMAGE is an address."""
    values = settings()
    if not (chosen() and _is_address(values.text("CLOUD_IMAGE"))):
        return {"actions": None}
    return artefact(
        "sevsnp.images.cloud_guest:fetch_cloud_image",
        outputs={"output": IMAGE},
        params={"uri": values.text("CLOUD_IMAGE"), "sha256": values.text("CLOUD_IMAGE_SHA256")},
        how={"cache_dir": str(values.cache_dir())},
        cached=False,
    )


def _is_address(text: str) -> bool:
    return "://" in text


def guest() -> Task:
    """create_new_vm of GUEST_FROM=cloud-image."""
    values = settings()
    image = values.optional_path("CLOUD_IMAGE")
    if _is_address(values.text("CLOUD_IMAGE")):
        image = IMAGE
    return artefact(
        "sevsnp.images.cloud_guest:make_cloud_guest",
        inputs={
            **({"image": image} if image else {}),
            "user_data": Path("templates/cloud-config.yaml"),
            "authorized_key": keys().user_public,
        },
        outputs={"output": DISK, "seed": SEED},
        params={"sha256": values.text("CLOUD_IMAGE_SHA256"), "size": values.number("DISK_SIZE")},
        how={"tools": TOOLS},
        watch=[RELEASE_MANIFEST],
        needs=["unpack_kernel", "_plain_initramfs"],  # every plain guest is launched with their files
        cached=False,  # the user's own file system must not be shared
    )


def task_run_setup() -> Task:
    """Boot a cloud image once with its seed, until cloud-init is done [NAME …]

    Boots what create_new_vm GUEST_FROM=cloud-image has made, with the seed and a network that reaches nothing but this
    machine's ssh. It waits until cloud-init is done, switches cloud-init off in the guest, and keeps the disk as
    build/guest/cloud-set-up.qcow2.

    Next: ./doitw run_guest GUEST_FROM=cloud-image
    """
    values = settings()
    made = launching(
        "sevsnp.guests.cloud_setup:run_setup",
        "run_setup",
        "guest",
        disk=DISK,
        seed=SEED,
        output=SET_UP,
        firmware=DISK_FIRMWARE,
        kernel=KERNEL / "vmlinuz",
        initrd=PLAIN_INITRAMFS,
        launch={name: values[name] for name in LAUNCHED},
        identity=keys().user_private,
        template=Path("templates/ssh_config.j2"),
    )
    return {**made, "clean": [(clean, [[SET_UP]])]}
