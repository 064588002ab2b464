# SPDX-License-Identifier: Apache-2.0
"""A root file system with podman: the guest's own, and pinned packages on top of it."""

import sys
import tempfile
from pathlib import Path

from sevsnp.archives.rootfs import Layer, make_rootfs
from sevsnp.archives.tar import Entry, read_tar
from sevsnp.packages.pipeline import refresh_lock
from sevsnp.packages.sets import read_set
from sevsnp.system.command import run
from tests.conftest import Built
from tests.support.pinned import pinned_packages

LIST = Path(__file__).resolve().parents[1] / "data" / "podman-packages.yaml"
LOCK = LIST.with_suffix(".lock")
SET = "podman"


def make_podman_root(built: Built, output: Path) -> None:
    """Write the root file system as the tar ``output``, as a user would have it for IMAGE=."""
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        entries: dict[str, Entry] = {}
        for deb in pinned_packages(LOCK, read_set(LIST, SET)):
            tar = Path(scratch) / f"{deb.name}.tar"
            tar.write_bytes(run(["dpkg-deb", "--fsys-tarfile", deb]))
            entries |= read_tar(tar)
        entries.pop("", None)
        rootfs = Layer.from_tar(built.build / "guest" / "rootfs.tar")
        make_rootfs([rootfs, Layer("podman", list(entries.values()))], output)


if __name__ == "__main__":
    # python -m tests.support.podman_guest [MIRROR]: pin the list anew.
    refresh_lock(sets=[read_set(LIST, SET)], mirror="".join(sys.argv[1:2]), output=LOCK)
