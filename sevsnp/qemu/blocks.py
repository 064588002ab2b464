# SPDX-License-Identifier: Apache-2.0
"""The block devices of every QEMU that we start: the format is given, and one file is opened for each."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from sevsnp.errors import UserError
from sevsnp.qemu.disk_format import DiskFormat, check_whole

# Drivers of ours that follow a backing file named in the image unless it is switched off. The others have none (vhdx
# refuses a parent, vpc does not know one), and QEMU refuses the word `backing` for them.
_BACKED = (DiskFormat.QCOW2, DiskFormat.VMDK)
_CLUSTER_BITS = 16


@dataclass(frozen=True)
class BlockFile:
    """A disk image as QEMU opens it: only as ``form``.

    With ``overlay``, the name of a file that is made for it, changes go there and the image stays as it is. Without
    ``flush``, this machine's kernel decides when changes go to its disk.
    """

    role: str
    path: Path
    form: DiskFormat = DiskFormat.RAW
    read_only: bool = False
    overlay: Path | None = None
    flush: bool = True

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that QEMU writes to."""
        return (self.overlay,) if self.overlay else () if self.read_only else (self.path,)

    @property
    def only_read(self) -> tuple[Path, ...]:
        """The files that QEMU opens only for reading."""
        return (self.path,) if self.overlay or self.read_only else ()

    def arguments(self) -> list[str]:
        """The option that creates it, as a block node named ``role``.

        Raises UserError for an image that names another file: QEMU never opens such an image.
        """
        check_whole(self.path, self.form)
        node = self._node(self.path, self.form, self.read_only or self.overlay is not None)
        if self.overlay:
            _make_overlay(self.overlay, virtual_size(self.path, self.form))
            node = {**self._node(self.overlay, DiskFormat.QCOW2, False), "backing": node}
        return ["-blockdev", json.dumps({**node, "node-name": self.role})]

    def _node(self, path: Path, form: DiskFormat, read_only: bool) -> dict[str, object]:
        cache = {} if self.flush else {"cache": {"no-flush": True}}
        file = {"driver": "file", "filename": str(path.resolve()), "read-only": read_only, **cache}
        node: dict[str, object] = {"driver": form.value, "read-only": read_only, "file": file, **cache}
        return {**node, "backing": None} if form in _BACKED else node


def virtual_size(path: Path, form: DiskFormat) -> int:
    """The size of the disk in an image, in bytes. Raises UserError for formats other than raw and qcow2."""
    if form is DiskFormat.RAW:
        return path.stat().st_size
    if form is DiskFormat.QCOW2:
        with path.open("rb") as stream:
            stream.seek(24)
            return int(struct.unpack(">Q", stream.read(8))[0])
    raise UserError(f"{path}: found a {form.name} disk, expected raw or qcow2")


def _make_overlay(path: Path, size: int) -> None:
    """An empty qcow2 image of ``size`` bytes (QEMU docs/interop/qcow2): header, refcounts, L1 table, a cluster each."""
    cluster = 1 << _CLUSTER_BITS
    tables = -(-size // (cluster * cluster // 8))
    if tables > cluster // 8:
        raise UserError(f"{path}: a disk of {size} bytes, expected 4 TiB at most")
    header = struct.pack(
        *(">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, _CLUSTER_BITS, size, 0),
        *(tables, 3 * cluster, cluster, 1, 0, 0),
        *(0, 0, 0, 4, 104),
    )
    with path.open("xb") as stream:
        stream.write(header.ljust(cluster, b"\0"))
        stream.write(struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0"))
        stream.write(struct.pack(">HHHH", 1, 1, 1, 1).ljust(cluster, b"\0"))
        stream.write(bytes(cluster))
