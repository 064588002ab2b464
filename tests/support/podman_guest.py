# SPDX-License-Identifier: Apache-2.0
"""A root file system with podman: the guest's own, and pinned packages on top of it."""

import tempfile
from pathlib import Path

from sevsnp.archives.rootfs import Layer, make_rootfs
from tests.conftest import Built
from tests.support.pinned import PinnedSet


def make_podman_root(built: Built, output: Path) -> None:
    """Write the root file system as the tar ``output``, as a user would have it for IMAGE=."""
    with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
        entries = PinnedSet("podman").entries(Path(scratch))
        rootfs = Layer.from_tar(built.build / "guest" / "rootfs.tar")
        make_rootfs([rootfs, Layer("podman", list(entries.values()))], output)
