# SPDX-License-Identifier: Apache-2.0
"""Makers of images for the table: containers, archives with a disk, and disks that are refused without a kernel."""

import io
import json
import lzma
import os
import subprocess
import tarfile
from pathlib import Path

import zstandard

from sevsnp.archives.rootfs import directory_entry, text_entry
from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.system.command import run
from tests.support.container_images import (
    MadeImage,
    archive_of,
    directory,
    docker_files,
    layout_files,
    member,
    tar_bytes,
    write_layout,
)
from tests.support.image_contents import MIB, noise, root, tar_of
from tests.support.image_table import Made
from tests.support.images_light import LIGHT, Maker, light

# Containers.


def _layers(place: Path) -> list[bytes]:
    """A root as a distribution's, and an application's layer over it with whiteouts."""
    unit = "[Unit]\nDescription=x\n[Service]\nExecStart=/bin/true\n"
    base = root(
        *(directory_entry(name) for name in ("bin", "etc/ssh", "etc/systemd", "etc/systemd/system", "usr/lib")),
        *(directory_entry(name) for name in ("usr/lib/systemd", "usr/lib/systemd/system", "opt", "etc/old")),
        *(text_entry(f"usr/lib/systemd/system/{name}", unit) for name in ("ssh.service", "qemu-guest-agent.service")),
        text_entry("usr/sbin/sshd", "", 0o755),
        text_entry("usr/bin/sudo", "", 0o4755),
        text_entry("bin/bash", "", 0o755),
        text_entry("etc/ssh/sshd_config", "Port 22\n"),
        text_entry("etc/group", "root:x:0:\n"),
        text_entry("etc/shadow", "root:*:1::::::\n", 0o640),
        text_entry("etc/gone", "x"),
        text_entry("etc/old/below", "x"),
    )
    lower = tar_of(base, place / "lower.tar").read_bytes()
    upper = tar_bytes(
        [
            member("etc/.wh.gone"),
            directory("etc/old"),
            member("etc/old/.wh..wh..opq"),
            member("etc/old/new", "new"),
            member("opt/run", "#!/bin/sh\n", mode=0o755),
            member(".dockerenv"),
        ]
    )
    return [lower, upper]


def _joined(place: Path) -> list[Entry]:
    """What is in these layers together."""
    from sevsnp.archives.tar import read_tar

    (place / "lower.tar").write_bytes(_layers(place)[0])
    base = read_tar(place / "lower.tar")
    gone = ("etc/gone", "etc/old/below")
    new = [text_entry("etc/old/new", "new"), text_entry("opt/run", "#!/bin/sh\n", 0o755), text_entry(".dockerenv", "")]
    return [*(entry for name, entry in base.items() if name not in gone), *new]


def _image(place: Path) -> MadeImage:
    return MadeImage(_layers(place), runs={"Cmd": ["/opt/run"], "Env": ["MODE=secret"]})


@light("an OCI layout")
def _layout(place: Path, tools: Path) -> Made:
    return Made(f"oci:{write_layout(place / 'layout', layout_files(_image(place)))}", _joined(place))


@light("an OCI layout in a compressed tar")
def _oci_archive(place: Path, tools: Path) -> Made:
    return Made(str(archive_of(place / "image", layout_files(_image(place)), "zstd")), _joined(place))


@light("docker save")
def _docker(place: Path, tools: Path) -> Made:
    return Made(f"docker-archive:{archive_of(place / 'image', docker_files(_image(place)))}", _joined(place))


@light("docker save without its configuration")
def _bare_docker(place: Path, tools: Path) -> Made:
    listed = json.dumps([{"Config": "c.json", "RepoTags": [], "Layers": ["layer.tar"]}]).encode()
    files = {"manifest.json": listed, "layer.tar": _layers(place)[0]}
    expected = [entry for entry in _joined(place) if entry.name not in ("etc/old/new", "opt/run", ".dockerenv")]
    return Made(
        str(archive_of(place / "image", files)),
        [*expected, text_entry("etc/gone", "x"), text_entry("etc/old/below", "x")],
    )


@light("a container for another machine")
def _arm_container(place: Path, tools: Path) -> Made:
    image = MadeImage(_layers(place), architecture="arm64")
    return Made(str(archive_of(place / "image", layout_files(image))), [])


@light("a container whose layer is another")
def _exchanged(place: Path, tools: Path) -> Made:
    image = _image(place)
    files = layout_files(image)
    swapped = {name: image.packed[0] if data == image.packed[1] else data for name, data in files.items()}
    return Made(str(archive_of(place / "image", swapped)), [])


@light("a container without an init")
def _no_init_container(place: Path, tools: Path) -> Made:
    entries = [entry for entry in root(release="ID=alpine\nPRETTY_NAME=Alpine\n") if entry.name != "usr/sbin/init"]
    layer = tar_of(entries, place / "layer.tar").read_bytes()
    return Made(str(archive_of(place / "image", layout_files(MadeImage([layer])))), [])


# Archives with a disk in them.


def _disk(place: Path, tools: Path, form: str = "raw", *options: str) -> bytes:
    raw = place / "disk.raw"
    raw.write_bytes(bytes(510) + b"\x55\xaa" + noise(MIB) + bytes(4 * MIB))
    if form != "raw":
        run([tools / "qemu-img", "convert", "-f", "raw", "-O", form, *options, raw, place / "disk.other"])
        return (place / "disk.other").read_bytes()
    return raw.read_bytes()


def _as_entry(disk: bytes) -> list[Entry]:
    return [Entry("disk", Kind.FILE, 0o644, content=Content.literal("disk", disk))]


@light("an OVA")
def _ova(place: Path, tools: Path) -> Made:
    disk = _disk(place, tools, "vmdk", "-o", "subformat=streamOptimized")
    files = [member("m.ovf", "<Envelope/>"), member("m.mf", ""), member("m-disk1.vmdk", disk)]
    (place / "m.ova").write_bytes(tar_bytes(files, tarfile.USTAR_FORMAT))
    return Made(str(place / "m.ova"), _as_entry(disk))


@light("an OVA with two disks")
def _two_disks(place: Path, tools: Path) -> Made:
    files = [member("m.ovf", "<Envelope/>"), member("a.vmdk", "a"), member("b.vmdk", "b")]
    (place / "m.ova").write_bytes(tar_bytes(files))
    return Made(str(place / "m.ova"), [])


@light("a disk for Google's cloud")
def _gce(place: Path, tools: Path) -> Made:
    disk = _disk(place, tools)
    subprocess.run(["tar", "--format=oldgnu", "-Sczf", "gce.tar.gz", "disk.raw"], cwd=place, check=True)
    return Made(str(place / "gce.tar.gz"), _as_entry(disk))


@light("a raw disk with xz")
def _raw_xz(place: Path, tools: Path) -> Made:
    disk = _disk(place, tools)
    (place / "disk.raw.xz").write_bytes(lzma.compress(disk, preset=0))
    return Made(str(place / "disk.raw.xz"), _as_entry(disk))


@light("a qcow2 with zstd")
def _qcow2_zstd(place: Path, tools: Path) -> Made:
    disk = _disk(place, tools, "qcow2")
    (place / "disk.qcow2.zst").write_bytes(zstandard.compress(disk, 1))
    return Made(str(place / "disk.qcow2.zst"), _as_entry(disk))


# Disks that are refused before a kernel sees them.


def _cut(form: str, *options: str, less: int = 3 * MIB // 4) -> Maker:
    def make(place: Path, tools: Path) -> Made:
        data = _disk(place, tools, form, *options)
        (place / "image").write_bytes(data[:-less])
        return Made(str(place / "image"), [])

    return make


LIGHT["half a download of a qcow2"] = _cut("qcow2")
LIGHT["half a download of a compressed qcow2"] = _cut("qcow2", "-c")
LIGHT["half a download of a VMDK"] = _cut("vmdk")
LIGHT["half a download of a streamOptimized VMDK"] = _cut("vmdk", "-o", "subformat=streamOptimized")
LIGHT["half a download of a VHDX"] = _cut("vhdx", less=5 * MIB)
LIGHT["half a download of a VHD"] = _cut("vpc")


@light("a raw disk that ends before its partition table says")
def _cut_raw(place: Path, tools: Path) -> Made:
    from sevsnp.images.disk import LINUX_DATA, Partition, write_disk

    content = place / "content"
    content.write_bytes(noise(4 * MIB))
    disk = place / "disk.raw"
    write_disk(disk, [Partition(LINUX_DATA, "11111111-1111-1111-1111-111111111111", "root", content)])
    os.truncate(disk, 3 * MIB)
    return Made(str(disk), [])


@light("a qcow2 with a backing file")
def _backed(place: Path, tools: Path) -> Made:
    _disk(place, tools)
    made = ("-b", place / "disk.raw", "-F", "raw", place / "image")
    run([tools / "qemu-img", "create", "-q", "-f", "qcow2", *made])
    return Made(str(place / "image"), [])


@light("a VirtualBox disk")
def _vdi(place: Path, tools: Path) -> Made:
    (place / "image").write_bytes(_disk(place, tools, "vdi"))
    return Made(str(place / "image"), [])


@light("a CD image")
def _iso(place: Path, tools: Path) -> Made:
    data = io.BytesIO(bytes(64 << 10))
    data.seek(0x8001)
    data.write(b"CD001")
    (place / "image.iso").write_bytes(data.getvalue())
    return Made(str(place / "image.iso"), [])


@light("a FIFO")
def _fifo(place: Path, tools: Path) -> Made:
    os.mkfifo(place / "image")
    return Made(str(place / "image"), [])


@light("a device")
def _device(place: Path, tools: Path) -> Made:
    return Made("/dev/null", [])


@light("a directory")
def _directory(place: Path, tools: Path) -> Made:
    (place / "image").mkdir()
    return Made(str(place / "image"), [])


__all__ = ["LIGHT"]
