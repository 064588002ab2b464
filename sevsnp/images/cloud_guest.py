# SPDX-License-Identifier: Apache-2.0
"""A guest made from a cloud image: its disk, and the NoCloud seed from which cloud-init takes the user and the key.

The seed is a FAT image with the label CIDATA (cloud-init's documentation, "NoCloud"). Equal inputs give equal bytes.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from sevsnp.archives.rootfs import EPOCH
from sevsnp.errors import UserError
from sevsnp.images.guest import read_public_key
from sevsnp.packages.by_digest import fetch_by_digest
from sevsnp.qemu.disk_format import disk_format
from sevsnp.system import progress
from sevsnp.system.command import run
from sevsnp.system.copying import copy_file
from sevsnp.system.files import scratch_directory, sha256_file
from sevsnp.system.logins import without_login
from sevsnp.system.time_limits import seconds_for
from sevsnp.system.yaml_loader import dump, load

USER = "user"
_SECTORS = 4096  # 2 MiB: cloud-init's own documentation has seeds of this size
_OURS = ("users", "user", "ssh_authorized_keys")


def fetch_cloud_image(*, uri: str, sha256: str, cache_dir: str, output: Path) -> None:
    """Copy the cloud image at ``uri``, whose SHA-256 is ``sha256``, to ``output``. Raises UserError."""
    if not sha256:
        raise UserError(
            f"CLOUD_IMAGE={without_login(uri)}: no SHA-256 is given for it",
            "give the one that its maker says: CLOUD_IMAGE_SHA256=…",
        )
    with progress.amount("fetching the cloud image") as shown:
        found = fetch_by_digest(
            "CLOUD_IMAGE",
            uri,
            sha256,
            cache_dir=Path(cache_dir),
            progress=lambda size, sizes, *_: shown.at(size, sizes),
        )
    output.unlink(missing_ok=True)
    copy_file(found, output, 0o644)


def make_cloud_guest(
    *,
    sha256: str,
    size: int,
    user_data: Path,
    authorized_key: Path,
    tools: Path,
    output: Path,
    seed: Path,
    image: Path | None = None,
) -> None:
    """Write the disk ``output`` (qcow2) of at least ``size`` bytes with the content of ``image``, and its ``seed``.

    ``image`` is a disk image of any format that IMAGE takes, or None if the user gave none; ``sha256`` is empty if it
    is not to be checked.
    ``user_data`` is the cloud-config to which the user and the key are added. Raises UserError.
    """
    if image is None:
        raise UserError("CLOUD_IMAGE: not set, expected a cloud image", "choose one: CLOUD_IMAGE=…")
    if sha256 and (found := sha256_file(image)) != sha256:
        raise UserError(
            f"CLOUD_IMAGE={image}: found SHA-256 {found}, expected {sha256}",
            "give the digest that the maker of the image says",
        )
    form = disk_format(image)
    tools = tools.resolve()
    make_seed(seed, cloud_config(user_data, read_public_key(authorized_key)), tools)
    progress.step("converting the cloud image")
    limit = seconds_for(image.stat().st_size)
    # One coroutine: several would write clusters in the order in which they finish.
    run([tools / "qemu-img", "convert", "-q", "-m", "1", "-f", form.value, "-O", "qcow2", image, output], timeout=limit)
    told = json.loads(run([tools / "qemu-img", "info", "--output=json", "-f", "qcow2", output]))
    if told["virtual-size"] < size:
        run([tools / "qemu-img", "resize", "-q", "-f", "qcow2", output, str(size)])
    else:
        print(f"  {image}: the disk keeps its size of {told['virtual-size']} bytes; DISK_SIZE says {size}")
    run([tools / "qemu-img", "check", "-q", output], timeout=limit)


def cloud_config(template: Path, key: str) -> str:
    """The cloud-config in ``template``, a YAML mapping, with the account :data:`USER` that ``key`` logs in to.

    Raises UserError if the template names users itself.
    """
    document: Any = load(template, "a cloud-config")
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise UserError(f"{template}: found no mapping of names, expected a cloud-config")
    for name in _OURS:
        if name in document:
            raise UserError(f"{template}: {name}: found users, expected none: the one user is added", f"remove {name}")
    user = {
        "name": USER,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
        "ssh_authorized_keys": [key],
    }
    return "#cloud-config\n" + dump({**document, "users": [user]})


def make_seed(output: Path, user_data: str, tools: Path) -> None:
    """Write a NoCloud seed with ``user_data``, of which the name of the instance is made.

    Needs mformat and mcopy in ``tools``.
    """
    digest = hashlib.sha256(user_data.encode()).hexdigest()
    meta_data = dump({"instance-id": f"sevsnp-{digest[:16]}", "local-hostname": "sevsnp"})
    output.unlink(missing_ok=True)
    with output.open("wb") as stream:
        stream.truncate(_SECTORS * 512)
    environment = {"SOURCE_DATE_EPOCH": str(EPOCH), "MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"}
    geometry = ["-T", str(_SECTORS), "-h", "64", "-s", "32", "-c", "1"]
    run([tools / "mformat", "-i", output, *geometry, "-N", digest[:8], "-v", "CIDATA", "::"], env=environment)
    with scratch_directory(output) as scratch:
        for name, text in (("user-data", user_data), ("meta-data", meta_data)):
            (scratch / name).write_text(text, encoding="utf-8")
            run([tools / "mcopy", "-i", output, scratch / name, f"::/{name}"], env=environment)
