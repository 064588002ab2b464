# SPDX-License-Identifier: Apache-2.0
"""Disk images that name another file, in each of the ways that QEMU supports."""

import json
import re
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sevsnp.system.command import run

MIB = 1 << 20
CANARY = b"canary of the owner's"
_SECTOR = 512


@dataclass(frozen=True)
class Place:
    """A directory with the canary, a file of the owner's. ``descriptor`` is an open descriptor of it, ``port`` the port
    of an NBD server."""

    directory: Path
    qemu_img: Path
    descriptor: int = -1
    port: int = 0

    @property
    def canary(self) -> Path:
        return self.directory / "canary"

    @property
    def image(self) -> Path:
        return self.directory / "image"

    @property
    def out(self) -> Path:
        return self.directory / "out"

    def put_canary(self) -> None:
        self.canary.write_bytes(CANARY.ljust(MIB, b"."))

    def create(self, form: str, *options: str) -> Path:
        """An image of 1 MiB. The canary is written again, because QEMU empties a data file."""
        run([self.qemu_img, "create", "-q", "-f", form, *options, self.image, "1M"])
        self.put_canary()
        return self.image


@dataclass(frozen=True)
class Hostile:
    """How an image is made, the format in which a careless program opens it, and the text of our refusal.

    ``reads`` is false if the name leads to a server, because the image's content then is not the canary.
    """

    make: Callable[[Place], Path]
    form: str
    refusal: str
    reads: bool = True


def edited(path: Path, place: int, data: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[place : place + len(data)] = data
    path.write_bytes(content)
    return path


def backed(name: Callable[[Place], str]) -> Callable[[Place], Path]:
    """A qcow2 image whose backing file is ``name``."""

    def make(place: Place) -> Path:
        return place.create("qcow2", "-u", "-b", name(place), "-F", "raw")

    return make


def json_name(place: Place) -> str:
    """QEMU's own way to name a file, with all block drivers."""
    return "json:" + json.dumps({"driver": "raw", "file": {"driver": "file", "filename": str(place.canary)}})


def descriptor_name(place: Place) -> str:
    return f"/proc/self/fd/{place.descriptor}"


def server_name(place: Place) -> str:
    return f"nbd:127.0.0.1:{place.port}"


def with_data_file(raw: str) -> Callable[[Place], Path]:
    def make(place: Place) -> Path:
        image = place.create("qcow2", "-o", f"data_file={place.canary},data_file_raw={raw}")
        if raw == "off":
            # Its first cluster is mapped to the data file's first, as after a write there.
            content = image.read_bytes()
            (table,) = struct.unpack_from(">Q", content, 40)
            second = table + (1 << 16)
            with image.open("r+b") as stream:
                for at, entry in ((table, second | 1 << 63), (second, 1 << 63)):
                    stream.seek(at)
                    stream.write(struct.pack(">Q", entry).ljust(1 << 16, b"\0"))
            _count(image, second)
        return image

    return make


def _count(image: Path, place: int) -> None:
    """Mark a cluster of an image as used once."""
    content = image.read_bytes()
    (table,) = struct.unpack_from(">Q", content, 48)
    (block,) = struct.unpack_from(">Q", content, table)
    edited(image, block + 2 * (place >> 16), b"\0\1")


def _flat(canary: Path) -> bytes:
    return (
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"
        f'createType="monolithicFlat"\nRW {MIB // _SECTOR} FLAT "{canary}" 0\n'
    ).encode()


def vmdk_descriptor(before: bytes = b"", lines: bytes = b"\n") -> Callable[[Place], Path]:
    """A descriptor whose only extent is the canary."""

    def make(place: Place) -> Path:
        place.image.write_bytes(before + _flat(place.canary).replace(b"\n", lines))
        return place.image

    return make


def vmdk_without_capacity(place: Place) -> Path:
    """A VMDK without a capacity: QEMU then takes the extents from the descriptor to which the header points."""
    image = place.create("vmdk")
    return edited(edited(image, 12, bytes(8)), _SECTOR, _flat(place.canary).ljust(2 * _SECTOR, b"\0"))


def vmdk_child(hint: Callable[[Place], str], form: str = "monolithicSparse") -> Callable[[Place], Path]:
    """A VMDK with a parent that its descriptor names at the usual place."""

    def make(place: Place) -> Path:
        if form == "streamOptimized":
            empty = place.directory / "empty"
            empty.write_bytes(bytes(MIB))
            run([place.qemu_img, "convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={form}", empty, place.image])
        else:
            place.create("vmdk", "-o", f"subformat={form}")
        (place.directory / "parent.vmdk").write_bytes(_flat(place.canary))
        text = place.image.read_bytes()[_SECTOR : 21 * _SECTOR].rstrip(b"\0")
        text = re.sub(rb"parentCID=ffffffff", b"parentCID=12345678", text)
        text += f'parentFileNameHint="{hint(place)}"\n'.encode()
        return edited(place.image, _SECTOR, text)

    return make


def parent_path(place: Place) -> str:
    return str(place.directory / "parent.vmdk")


def parent_json(place: Place) -> str:
    """The name without quotation marks, which would end the hint."""
    node = {"driver": "vmdk", "file": {"driver": "file", "filename": parent_path(place)}}
    return "json:" + json.dumps(node).replace('"', "'")


def vmdk_misplaced(make: Callable[[Place], Path]) -> Callable[[Place], Path]:
    """A VMDK whose header points to an honest descriptor at the end; QEMU still reads the one at byte 512."""

    def moved(place: Place) -> Path:
        honest = place.create("vmdk").read_bytes()[_SECTOR : 21 * _SECTOR]
        image = make(place)
        size = -(-image.stat().st_size // _SECTOR)
        with image.open("r+b") as stream:
            stream.seek(size * _SECTOR)
            stream.write(honest)
        return edited(image, 28, struct.pack("<Q", size))

    return moved


IMAGES = {
    "qcow2 with a backing file": Hostile(backed(lambda place: str(place.canary)), "qcow2", "backing file"),
    "qcow2 with a backing file by json": Hostile(backed(json_name), "qcow2", "backing file"),
    "qcow2 with a backing file by descriptor": Hostile(backed(descriptor_name), "qcow2", "backing file"),
    "qcow2 with a backing server": Hostile(backed(server_name), "qcow2", "backing file", reads=False),
    "qcow2 with a raw data file": Hostile(with_data_file("on"), "qcow2", "data are in another file"),
    "qcow2 with a data file": Hostile(with_data_file("off"), "qcow2", "data are in another file"),
    "VMDK descriptor": Hostile(vmdk_descriptor(), "vmdk", "VMDK descriptor"),
    "VMDK descriptor, lines of DOS": Hostile(vmdk_descriptor(lines=b"\r\n"), "vmdk", "VMDK descriptor"),
    "VMDK descriptor behind a comment": Hostile(vmdk_descriptor(b"# x\n\n"), "vmdk", "no disk image"),
    "VMDK without a capacity": Hostile(vmdk_without_capacity, "vmdk", "descriptor"),
    "VMDK with a parent": Hostile(vmdk_child(parent_path), "vmdk", "VMDK with a parent"),
    "VMDK with a parent by json": Hostile(vmdk_child(parent_json), "vmdk", "VMDK with a parent"),
    "VMDK for streams with a parent": Hostile(vmdk_child(parent_path, "streamOptimized"), "vmdk", "VMDK with a parent"),
    "VMDK with a parent at byte 512 only": Hostile(
        vmdk_misplaced(vmdk_child(parent_path)), "vmdk", "descriptor at sector"
    ),
}


def read_carelessly(place: Place, form: str) -> "subprocess.CompletedProcess[bytes]":
    """The disk's content in the file ``out``, as a program reads it that opens the image in QEMU's default way."""
    words = [str(place.qemu_img), "convert", "-f", form, "-O", "raw", str(place.image), str(place.out)]
    handed = (place.descriptor,) if place.descriptor >= 0 else ()
    return subprocess.run(
        words, pass_fds=handed, stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
    )
