# SPDX-License-Identifier: Apache-2.0
"""What IMAGE is: a root file system tar, a disk, a container image, or an archive with one of them inside.

Told by the first bytes alone, since every run asks it. Whoever reads the file checks all of it.
"""

import io
import re
import stat
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sevsnp.archives.tar_reader import TAR_ERRORS, Reader
from sevsnp.containers.unpack import first_bytes, is_compressed, is_tar
from sevsnp.qemu.disk_format import is_disk_image, starts_like_a_disk

_LOOKED_AT = 1 << 20
REGISTRY_PREFIX = "docker://"
_LAYOUT_PREFIXES, _DOCKER_PREFIX = ("oci:", "oci-archive:"), "docker-archive:"
# The first member of an OCI layout, and of what `docker save`, podman and skopeo write.
_CONTAINER = re.compile(
    r"(?:blobs|oci-layout|index\.json|manifest\.json|repositories|(?:sha256:)?[0-9a-f]{64})(?:[/.].*)?", re.DOTALL
)
# The first member of an OVA (DSP0243, 5.3.1), and of a disk as a cloud's image.
_DISK = re.compile(r"[^/]+\.ovf|disk\.raw", re.IGNORECASE)


class Form(Enum):
    """A form of IMAGE; the value is its name for the user."""

    TAR = "root filesystem tar"
    PACKED_TAR = "compressed root filesystem tar"
    DISK = "disk image"
    DISK_INSIDE = "archive with a disk image"
    CONTAINER = "container image"
    REGISTRY = "container image in a registry"


@dataclass(frozen=True)
class Given:
    """IMAGE as it was given: its ``form`` and ``path``; of a container image also the tag and whether it is Docker's.

    ``text`` is what the user wrote; a registry's image has no path.
    """

    text: str
    form: Form
    path: Path
    tag: str = ""
    docker: bool = False


def given(text: str) -> Given:
    """What ``text``, a value of IMAGE, means. A file that is missing or unreadable is taken for a tar."""
    if text.startswith(REGISTRY_PREFIX):
        return Given(text, Form.REGISTRY, Path())
    for prefix in (*_LAYOUT_PREFIXES, _DOCKER_PREFIX):
        if text.startswith(prefix):
            place = text.removeprefix(prefix)
            path, tag = _place(place)
            return Given(text, Form.CONTAINER, path, tag, prefix == _DOCKER_PREFIX)
    path = Path(text).expanduser()
    return Given(text, _form(path), path)


def _place(text: str) -> tuple[Path, str]:
    whole = Path(text).expanduser()
    before, colon, tag = text.rpartition(":")
    return (whole, "") if not colon or whole.exists() else (Path(before).expanduser(), tag)


def _form(path: Path) -> Form:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return Form.CONTAINER if (path / "oci-layout").is_file() else Form.TAR
        if not stat.S_ISREG(mode):
            return Form.TAR
        if is_disk_image(path):
            return Form.DISK
        packed = is_compressed(path)
        start = first_bytes(path, _LOOKED_AT)
    except OSError:
        return Form.TAR
    if packed and starts_like_a_disk(start):
        return Form.DISK_INSIDE
    first = _first_member(start)
    if _CONTAINER.fullmatch(first):
        return Form.CONTAINER
    if _DISK.fullmatch(first):
        return Form.DISK_INSIDE
    return Form.PACKED_TAR if packed else Form.TAR


def _first_member(start: bytes) -> str:
    """The name of the first member of a tar that is more than its root; empty if there is none."""
    if not is_tar(start):
        return ""
    try:
        with Reader.open(fileobj=io.BytesIO(start), mode="r:") as archive:
            names = (member.name.removeprefix("./") for member in archive)
            return next((name for name in names if name not in ("", ".")), "")
    except TAR_ERRORS:
        return ""
