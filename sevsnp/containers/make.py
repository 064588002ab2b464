# SPDX-License-Identifier: Apache-2.0
"""Makes the root file system tar of a guest from a container image.

The layers are verified, and joined as a stream of entries: nothing is unpacked into files, and nothing of the image is
started here.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sevsnp.archives.tar import read_tar
from sevsnp.archives.tar_writer import write_tar
from sevsnp.archives.tree import Tree as EditedTree
from sevsnp.containers.bootable import add_what_is_missing
from sevsnp.containers.layers import Tree
from sevsnp.containers.manifest import told
from sevsnp.containers.source import Archive, Directory, Files, Image, LayerFile, read_image
from sevsnp.containers.unpack import LARGEST, is_compressed, unpack, unpack_file
from sevsnp.errors import UserError, called
from sevsnp.system import progress
from sevsnp.system.files import scratch_directory
from sevsnp.system.text import printable

# An engine leaves these files; systemd takes a machine that has one for a container.
_MARKS = (".dockerenv", "run/.containerenv")
_HOSTS = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
# Times stay as they are, even those later than the epoch of the project's own files.
_EPOCH = (1 << 33) - 1


def make_container_root(*, image: Path, name: str, tag: str, docker: bool, packages: Path, output: Path) -> None:
    """Write the root of the container image in ``image`` as the tar ``output``, and print what was changed.

    ``image`` is an OCI layout (a directory, or a tar, also a compressed one) or an archive of `docker save`, which
    ``docker`` insists on; ``name`` is what the user calls it, ``tag`` selects one of several images. ``packages`` is
    the tar with the installed packages of the project's own guest. Raises UserError for an image that is not complete
    or not for amd64, for a layer that differs from its digest, and if the root lacks an init that cannot be added.
    """
    with scratch_directory(output) as scratch:
        found = read_image(_files(image, name, scratch), tag, docker=docker)
        notes = [f"{name}: container image, {len(found.layers)} layers", *found.notes]
        tree, lost = _joined(found, name, scratch)
        notes += lost
        notes += _settled(tree)
        notes += add_what_is_missing(tree, read_tar(packages), name)
        notes += told(found.configuration.runs)
        progress.step("writing")
        write_tar(tree.ordered(), output, epoch=_EPOCH)
    for note in notes:
        print(f"  {printable(note)}")


def _files(image: Path, name: str, scratch: Path) -> Files:
    if image.is_dir():
        return Directory(image, name)
    if is_compressed(image):
        plain = scratch / "image.tar"
        progress.step("decompressing")
        unpack_file(image, name, plain)
        image = plain
    with called(image, name):
        return Archive.read(image, name)


def _joined(image: Image, name: str, scratch: Path) -> tuple[EditedTree, list[str]]:
    """The layers as one tree, and a line for each attribute that was left out."""
    tree, left = Tree(), LARGEST
    for number, layer in enumerate(image.layers, 1):
        shown = f"{name}: layer {number} of {len(image.layers)}"
        progress.step(f"layer {number} of {len(image.layers)}")
        plain = scratch / f"{number}.tar"
        left -= _unpacked(image, layer, shown, plain, left)
        with called(plain, shown):
            tree.apply(read_tar(plain, tree.linked).values(), shown)
    lost = [f"left out: the attribute {what} of {count} files" for what, count in sorted(tree.lost.items())]
    return EditedTree(tree.entries.values()), lost


def _unpacked(image: Image, layer: LayerFile, shown: str, plain: Path, left: int) -> int:
    """Write a layer's plain tar to ``plain``, compare its digests, and return its size in bytes."""
    with contextlib.closing(image.files.open(layer.path)) as stream:
        made = unpack(stream, shown, plain, largest=left)
    for what, found, expected in (
        ("bytes", str(made.packed_size), str(layer.size) if layer.size >= 0 else ""),
        ("SHA-256", made.packed_sha256, layer.packed.removeprefix("sha256:")),
        ("SHA-256 of its plain tar", made.sha256, layer.plain.removeprefix("sha256:")),
    ):
        if expected and found != expected:
            raise UserError(f"{shown}: {what}: found {found}, expected {expected}")
    return made.size


def _settled(tree: EditedTree) -> Iterator[str]:
    """Change what an engine sets up for each container, and a guest has of its own."""
    for mark in _MARKS:
        if tree.at(mark) is not None:
            tree.remove(mark)
            yield f"removed: /{mark}, which marks a container"
    if not tree.text("etc/hosts").strip():
        tree.write("etc/hosts", _HOSTS)
        yield "added: /etc/hosts"
