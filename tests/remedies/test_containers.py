# SPDX-License-Identifier: Apache-2.0
"""Hints about container images, and about archives with a root or a disk inside."""

from pathlib import Path

from sevsnp.archives.rootfs import Layer, make_rootfs, text_entry
from sevsnp.containers.form import given
from sevsnp.containers.inside import unpack_disk
from sevsnp.containers.make import make_container_root
from sevsnp.containers.registry import image_reference, pull_image
from sevsnp.images.bootable import bootable_entries
from sevsnp.images.identity import ImageKind
from tests.conftest import PROJECT
from tests.support.container_images import (
    MadeImage,
    archive_of,
    directory,
    docker_files,
    layout_files,
    member,
    push,
    symlink,
    tar_bytes,
    write_layout,
)
from tests.support.registry_server import no_login, running, unpack_registry
from tests.support.table import Told, remedies

__all__ = ["no_login"]
INIT = [
    directory("usr"),
    directory("usr/sbin"),
    member("usr/sbin/init"),
    member("usr/sbin/sshd"),
    member("usr/bin/sudo"),
]


def image(architecture: str = "amd64") -> MadeImage:
    return MadeImage([tar_bytes([*INIT, member("etc/os-release", "ID=alpine\n")])], architecture=architecture)


def make(text: str, tmp_path: Path) -> None:
    packages = tmp_path / "packages.tar"
    make_rootfs([Layer("guest", [text_entry("etc/os-release", "ID=debian\n")])], packages)
    found = given(text)
    make_container_root(
        image=found.path,
        name=f"IMAGE={text}",
        tag=found.tag,
        docker=found.docker,
        packages=packages,
        output=tmp_path / "root.tar",
    )


@remedies("sevsnp.containers.manifest", "choose one: {}", "build or pull the image for it: --platform linux/amd64")
def test_one_image_of_several_in_a_layout(told: Told, tmp_path: Path) -> None:
    several = write_layout(tmp_path / "it", layout_files(image(), image(), tags=["1", "2"]))
    hint = told.hint(lambda: make(str(several), tmp_path))
    make(hint.partition("IMAGE=")[2], tmp_path)
    arm, ours = (archive_of(tmp_path / machine, layout_files(image(machine))) for machine in ("arm64", "amd64"))
    told.instead(lambda: make(str(arm), tmp_path), lambda: make(str(ours), tmp_path))


@remedies("sevsnp.containers.source", "choose one: {}")
def test_one_image_of_several_in_an_archive(told: Told, tmp_path: Path) -> None:
    files = docker_files(image(), tags=["name:1"])
    second = files["manifest.json"].replace(b"name:1", b"name:2")
    files["manifest.json"] = files["manifest.json"][:-1] + b"," + second[1:]
    saved = archive_of(tmp_path / "saved.tar", files)
    hint = told.hint(lambda: make(str(saved), tmp_path))
    make(hint.partition("IMAGE=")[2], tmp_path)


@remedies("sevsnp.containers.bootable", "add them where the image is made, in its Containerfile: RUN {}")
def test_a_container_without_an_init(told: Told, tmp_path: Path) -> None:
    bare = MadeImage([tar_bytes([member("etc/os-release", "ID=alpine\n")])])
    path = tmp_path / "it.tar"
    archive_of(path, layout_files(bare))
    # What those packages have.
    told.mended(lambda: make(str(path), tmp_path), lambda: archive_of(path, layout_files(image())))


@remedies("sevsnp.containers.inside", "take out the one with the root, and give it as IMAGE: tar -xf {} {}")
def test_one_disk_of_several(told: Told, tmp_path: Path) -> None:
    disk = bytes(510) + b"\x55\xaa" + bytes(512)
    ova = tmp_path / "my machine.ova"
    ova.write_bytes(tar_bytes([member("m.ovf"), member("root disk.vmdk", disk), member("data.vmdk", disk)]))
    told.obey(told.hint(lambda: unpack_disk(image=ova, output=tmp_path / "disk")))
    assert (told.cwd / "root disk.vmdk").read_bytes() == disk


@remedies(
    "sevsnp.images.bootable",
    "pack it from inside that directory, as root, and give what comes out: tar -xpf {} && tar -C {} -cf {} .",
)
def test_a_root_below_a_directory(told: Told, tmp_path: Path) -> None:
    tar = tmp_path / "my root.tar"
    below = [directory("my root"), directory("my root/etc"), directory("my root/usr"), directory("my root/usr/sbin"),
             member("my root/usr/sbin/init"), symlink("my root/sbin", "usr/sbin")]  # fmt: skip
    tar.write_bytes(tar_bytes(below))

    def read(path: Path) -> None:
        bootable_entries(path, ImageKind.VERITY, PROJECT / "guest-vm" / "denied.yaml")

    told.obey(told.hint(lambda: read(tar)))
    read(tar.with_name("my root.tar.root"))


@remedies(
    "sevsnp.containers.registry",
    "host and name are in lower case, without a user name",
    "check the name, the tag, and whether docker login is needed",
)
def test_a_malformed_or_unknown_reference(told: Told, tmp_path: Path, no_login: Path) -> None:
    told.instead(lambda: image_reference("docker://h.example/Name"), lambda: image_reference("docker://h.example/name"))
    (tmp_path / "program").mkdir()
    server = next(servers := running(unpack_registry(tmp_path / "program"), tmp_path / "registry"))
    push(server.host, "name", "1", image())

    def pull(tag: str) -> None:
        pull_image(
            reference=f"docker://{server.host}/name:{tag}",
            pins=str(tmp_path / "pins"),
            cache_dir=str(tmp_path / "cache"),
            limit=1 << 30,
            output=tmp_path / "pulled.tar",
        )

    told.instead(lambda: pull("2"), lambda: pull("1"))
    servers.close()  # type: ignore[attr-defined]
