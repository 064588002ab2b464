# SPDX-License-Identifier: Apache-2.0
"""Container images in every format: each gives the same root, digests are compared, the right one is chosen."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sevsnp.archives.rootfs import Layer, make_rootfs, text_entry
from sevsnp.archives.tar import Entry, read_tar
from sevsnp.containers.form import given
from sevsnp.containers.make import make_container_root
from sevsnp.errors import UserError
from tests.support.container_images import (
    DOCKER_MANIFEST,
    MadeImage,
    archive_of,
    digest,
    directory,
    docker_files,
    index_of,
    layout_files,
    member,
    symlink,
    tar_bytes,
    write_layout,
)

INIT = [directory("usr"), directory("usr/sbin"), member("usr/sbin/init", "#!", mode=0o755), symlink("sbin", "usr/sbin")]
LOWER = tar_bytes([*INIT, directory("etc"), member("etc/os-release", "ID=x\n"), member("etc/gone", "x")])
UPPER = tar_bytes([member("etc/.wh.gone"), member("etc/new", "new"), member(".dockerenv")])
RUNS = {
    "Entrypoint": ["/bin/serve"],
    "Cmd": ["--port", "80\x1b[31m"],
    "Env": ["PATH=/bin", "TOKEN=secret-word"],
    "User": "www",
    "WorkingDir": "/srv",
    "Volumes": {"/data": {}},
}


def image(**fields: Any) -> MadeImage:
    return MadeImage([LOWER, UPPER], **fields)


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    make_rootfs(
        [
            Layer(
                "guest", [text_entry("etc/os-release", "ID=debian\nVERSION_CODENAME=trixie\nPRETTY_NAME='Debian 13'\n")]
            )
        ],
        tmp_path / "p.tar",
    )
    return tmp_path / "p.tar"


@pytest.fixture
def make(tmp_path: Path, packages: Path) -> Callable[[str], dict[str, Entry]]:
    def made(text: str) -> dict[str, Entry]:
        found = given(text)
        assert found.form.name == "CONTAINER"
        output = tmp_path / "root.tar"
        make_container_root(
            image=found.path, name=f"IMAGE={text}", tag=found.tag, docker=found.docker, packages=packages, output=output
        )
        return read_tar(output)

    return made


def check(found: dict[str, Entry]) -> None:
    assert {"usr/sbin/init", "sbin", "etc/os-release", "etc/new", "etc/hosts"} <= found.keys()
    assert not found.keys() & {"etc/gone", "etc/.wh.gone", ".dockerenv"}


Make = Callable[[str], dict[str, Entry]]


@pytest.mark.parametrize("pack", ["", "gzip", "zstd"])
@pytest.mark.parametrize("form", ["directory", "tar", "tar.gz", "docker", "docker.xz", "both"])
def test_every_format_gives_the_same_root(tmp_path: Path, make: Make, form: str, pack: str) -> None:
    made = image(pack=pack)
    layout = layout_files(made)
    paths = {
        "directory": lambda: write_layout(tmp_path / "it", layout),
        "tar": lambda: archive_of(tmp_path / "it", layout),
        "tar.gz": lambda: archive_of(tmp_path / "it", layout, "gzip"),
        "docker": lambda: archive_of(tmp_path / "it", docker_files(made)),
        "docker.xz": lambda: archive_of(tmp_path / "it", docker_files(made), "xz"),
        "both": lambda: archive_of(tmp_path / "it", {**layout, **docker_files(made)}),
    }
    check(make(str(paths[form]())))


def test_the_output_names_the_image_and_the_changes(
    tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_layout(tmp_path / "it", layout_files(image(runs=RUNS)))
    make(f"oci:{path}")
    said = capsys.readouterr().out
    assert said.splitlines() == [
        f"  IMAGE=oci:{path}: container image, 2 layers",
        "  removed: /.dockerenv, which marks a container",
        "  added: /etc/hosts",
        "  warning: missing, and cannot be added: an SSH server, sudo: found x; packages can be added to "
        "Debian 13 only",
        '  not started: ["/bin/serve", "--port", "80\\u001b[31m"] in /srv as www: init starts what units name, so make '
        "one of it",
        "  not set: the environment variables TOKEN",
        "  no volumes: /data are directories of the root",
    ]


def test_several_images(tmp_path: Path, make: Make) -> None:
    arm, old, new = image(architecture="arm64"), image(runs={"Cmd": ["1"]}), image(runs={"Cmd": ["2"]})
    # An index within the index, as docker buildx writes them, with an attestation beside the images.
    note = {**old.descriptor, "platform": {"os": "unknown", "architecture": "unknown"}}
    inner = json.loads(index_of(arm, old))
    inner["manifests"].insert(0, note)
    data = json.dumps(inner).encode()
    outer = {"mediaType": inner["mediaType"], "digest": digest(data), "size": len(data)}
    files = layout_files(arm, old, index=json.dumps({"schemaVersion": 2, "manifests": [outer]}).encode())
    files[f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"] = data
    check(make(str(write_layout(tmp_path / "nested", files))))
    tagged = write_layout(tmp_path / "tagged", layout_files(old, new, tags=["1", "host.example/name:2"]))
    check(make(f"oci:{tagged}:1"))
    check(make(f"oci:{tagged}:2"))
    for text, said in (
        (f"oci:{tagged}", f"IMAGE=oci:{tagged}: found several images, tagged 1, 2"),
        (f"oci:{tagged}:3", "found the tags 1, 2, expected 3"),
    ):
        with pytest.raises(UserError, match=said):
            make(text)
    docker = archive_of(tmp_path / "saved.tar", docker_files(old, tags=["name:1", "name:latest"]))
    check(make(f"docker-archive:{docker}:latest"))
    with pytest.raises(UserError, match="found no image with the tag 2"):
        make(f"docker-archive:{docker}:2")


def test_an_image_for_another_architecture_is_refused(tmp_path: Path, make: Make) -> None:
    arm, power = image(architecture="arm64"), image(architecture="ppc64le")
    for name, files in (("two", layout_files(arm, power)), ("one", layout_files(arm)), ("saved", docker_files(arm))):
        with pytest.raises(UserError, match=r"arm64.*, expected (one for )?linux/amd64") as caught:
            make(str(archive_of(tmp_path / name, files)))
        assert "--platform linux/amd64" in caught.value.hint


def changed(files: dict[str, bytes], data: bytes, new: bytes) -> dict[str, bytes]:
    """The files with other bytes in place of one of them, whose name stays."""
    assert data in files.values()
    return {name: new if old == data else old for name, old in files.items()}


def swapped() -> MadeImage:
    """An image whose manifest has its layers' digests right, and whose configuration has the plain ones exchanged."""
    made = image()
    made.config["rootfs"]["diff_ids"].reverse()
    return made


OTHER = MadeImage([LOWER, tar_bytes([member("etc/evil", "evil")])])
WRONG: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "a layer": (lambda: changed(layout_files(image()), image().packed[1], OTHER.packed[1]), "layer 2 of 2: "),
    "a layer of the same size": (
        lambda: changed(layout_files(image(pack="")), UPPER, UPPER[:-1] + b"x"),
        "layer 2 of 2: SHA-256: found",
    ),
    "the configuration": (
        lambda: changed(layout_files(image()), image().config_bytes, image().config_bytes.replace(b"linux", b"linuX")),
        "found SHA-256",
    ),
    "the manifest": (
        lambda: changed(layout_files(image()), image().manifest, image().manifest.replace(b"gzip", b"gziP")),
        "found SHA-256",
    ),
    "the plain digests": (lambda: layout_files(swapped()), "layer 1 of 2: SHA-256 of its plain tar: found"),
    "a layer of docker save": (
        lambda: changed(docker_files(image()), UPPER, OTHER.layers[1]),
        "layer 2 of 2: SHA-256 of its plain tar: found",
    ),
    "the configuration of docker save": (
        lambda: changed(docker_files(image()), image().config_bytes, OTHER.config_bytes),
        "expected the one in its name",
    ),
    "a missing layer": (
        lambda: {n: d for n, d in layout_files(image()).items() if d != image().packed[1]},
        "not in it, expected a file",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_content_that_differs_from_its_digest_is_refused(tmp_path: Path, make: Make, case: str) -> None:
    files, said = WRONG[case]
    with pytest.raises(UserError, match=said):
        make(str(archive_of(tmp_path / "it.tar", files())))
    assert not (tmp_path / "root.tar").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # nothing half-written


def test_control_a_changed_layer_with_matching_digests_is_used(tmp_path: Path, make: Make) -> None:
    """Control: the changed layer becomes part of the root if the digests are changed with it."""
    found = make(str(archive_of(tmp_path / "it.tar", layout_files(OTHER))))
    assert "etc/evil" in found


DOCUMENTS: dict[str, tuple[dict[str, bytes], str]] = {
    "no JSON": ({"index.json": b"{"}, "not readable as JSON"),
    "a key twice": ({"index.json": b'{"a": 1, "a": 2}'}, "found the key 'a' twice"),
    "no object": ({"index.json": b"[]"}, "expected an object"),
    "deep": ({"index.json": b"[" * 100000}, "not readable as JSON"),
    "no list": ({"index.json": b'{"schemaVersion": 2}'}, "no list of manifests"),
    "a digest that is a path": (
        {"index.json": b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:../../etc/passwd", "size": 1}]}'},
        "expected sha256: and 64",
    ),
    "another hash": (
        {"index.json": b'{"schemaVersion": 2, "manifests": [{"digest": "sha512:00", "size": 1}]}'},
        "expected sha256:",
    ),
    "a size that is none": (
        {"index.json": b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:00", "size": -1}]}'},
        "malformed",
    ),
    "no image": ({"index.json": b'{"schemaVersion": 2, "manifests": []}'}, "found images for nothing"),
}


@pytest.mark.parametrize("case", DOCUMENTS)
def test_malformed_documents(tmp_path: Path, make: Make, case: str) -> None:
    files, said = DOCUMENTS[case]
    with pytest.raises(UserError, match=said):
        make(str(write_layout(tmp_path / "it", {"oci-layout": b"{}", **files})))


def test_no_file_outside_of_a_layout_is_read(tmp_path: Path, make: Make) -> None:
    """Its blobs may be links, and its list may be one in Docker's format with paths to anywhere."""
    secret = tmp_path / "secret.tar"
    secret.write_bytes(UPPER)
    made = image(pack="")
    layout = write_layout(tmp_path / "it", layout_files(made))
    check(make(str(layout)))  # control
    blob = layout / "blobs" / "sha256" / hashlib.sha256(UPPER).hexdigest()
    blob.unlink()
    blob.symlink_to(secret)
    assert blob.read_bytes() == UPPER  # control: who follows the link reads it
    with pytest.raises(UserError, match="cannot be read"):
        make(str(layout))
    files = {"oci-layout": b"{}", "manifest.json": b'[{"Config": "c", "Layers": ["../secret.tar"]}]'}
    with pytest.raises(UserError, match="found no container image"):
        make(str(write_layout(tmp_path / "docker", files)))


def test_layers_that_cannot_be_read_are_named(tmp_path: Path, make: Make) -> None:
    for old, new, said in (
        ("tar+gzip", "tar+gzip+encrypted", "a layer that is encrypted"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.example.model", "of the type application/vnd"),
    ):
        made = image()
        manifest = made.manifest.replace(old.encode(), new.encode())
        listed = {**made.descriptor, "digest": digest(manifest), "size": len(manifest)}
        files = layout_files(made, index=json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode())
        files[f"blobs/sha256/{hashlib.sha256(manifest).hexdigest()}"] = manifest
        with pytest.raises(UserError, match=said):
            make(str(archive_of(tmp_path / "it.tar", files)))


def test_dockers_own_media_types(tmp_path: Path, make: Make) -> None:
    check(make(str(archive_of(tmp_path / "it.tar", layout_files(image(media_type=DOCKER_MANIFEST))))))


def test_an_archive_without_its_configuration_is_used_with_a_note(
    tmp_path: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"manifest.json": b'[{"Config":"c.json","RepoTags":[],"Layers":["layer.tar"]}]', "layer.tar": LOWER}
    assert "etc/gone" in make(str(archive_of(tmp_path / "it.tar", files)))
    assert "no c.json in the archive: its layers cannot be compared" in capsys.readouterr().out


def test_a_root_without_an_init(tmp_path: Path, make: Make) -> None:
    for release, said, remedy in (
        ("ID=alpine\nPRETTY_NAME='Alpine Linux v3.20'\n", "found Alpine Linux v3.20", "RUN apk add openrc openssh"),
        ("ID=debian\nVERSION_CODENAME=bookworm\nVERSION_ID=12\n", "found debian 12", "RUN apt-get update"),
        ("ID=ubuntu\nVERSION_CODENAME=noble\n", "found ubuntu", "RUN apt-get update"),
        ("ID=debian\nVERSION_CODENAME=trixie\n", "no dpkg status in it", "RUN apt-get update"),
        ("", "found no os-release", "its own package manager"),
    ):
        made = MadeImage([tar_bytes([directory("etc"), member("etc/os-release", release)])])
        with pytest.raises(UserError, match="missing, and cannot be added: an init, an SSH server, sudo: ") as caught:
            make(str(archive_of(tmp_path / "it.tar", layout_files(made))))
        assert said in caught.value.message and remedy in caught.value.hint
