# SPDX-License-Identifier: Apache-2.0
"""Where the blobs of a container image are: an OCI layout in a directory or a tar, or an archive of `docker save`.

Each blob is read as the stream of the bytes that a digest stands for; whoever reads it compares the digest.
"""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from sevsnp.archives.tar import Entry, Kind, read_tar
from sevsnp.containers.manifest import (
    INDICES,
    LARGEST_DOCUMENT,
    Configuration,
    Descriptor,
    candidates,
    document,
    for_platform,
    parse_configuration,
    parse_manifest,
    tagged,
    with_tag,
)
from sevsnp.containers.unpack import open_range
from sevsnp.errors import UserError
from sevsnp.store.oci_reference import clean
from sevsnp.system.files import CHUNK

_DEPTH = 3
_HEX = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")


class Files(Protocol):
    """The files of a layout or an archive, by their names in it."""

    @property
    def name(self) -> str: ...

    def open(self, path: str) -> BinaryIO:
        """Raises UserError if there is no such file."""
        ...

    def size(self, path: str) -> int:
        """In bytes; -1 if there is no such file."""
        ...


@dataclass(frozen=True)
class Directory:
    """The files below a directory. Links are not followed, and only regular files are read."""

    root: Path
    name: str

    def open(self, path: str) -> BinaryIO:
        place = self.root / path
        try:
            # O_NONBLOCK: a FIFO would wait for a writer.
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise UserError(f"{self.name}: {path}: cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UserError(f"{self.name}: {path}: expected a regular file")
        return os.fdopen(descriptor, "rb")

    def size(self, path: str) -> int:
        with contextlib.suppress(UserError), self.open(path) as stream:
            return os.fstat(stream.fileno()).st_size
        return -1


@dataclass(frozen=True)
class Archive:
    """The files in an uncompressed tar; links inside it are followed once, as `docker save` makes them."""

    path: Path
    name: str
    entries: Mapping[str, Entry]

    @classmethod
    def read(cls, path: Path, name: str) -> "Archive":
        """Raises UserError for a file that is not a complete tar."""
        return cls(path, name, read_tar(path))

    def _entry(self, path: str) -> Entry | None:
        entry = self.entries.get(path)
        if entry is not None and entry.kind is Kind.SYMLINK:
            entry = self.entries.get(os.path.normpath(f"{path}/../{entry.target}"))
        return entry if entry is not None and entry.kind is Kind.FILE else None

    def open(self, path: str) -> BinaryIO:
        entry = self._entry(path)
        if entry is None or entry.content is None or entry.content.sparse:
            raise UserError(f"{self.name}: {clean(path)}: not in it, expected a file")
        return open_range(self.path, entry.content.offset, entry.content.size)

    def size(self, path: str) -> int:
        entry = self._entry(path)
        return -1 if entry is None or entry.content is None else entry.content.size


@dataclass(frozen=True)
class LayerFile:
    """A layer: its file, and the digests that it must have; those that nothing states are empty."""

    path: str
    packed: str = ""
    plain: str = ""
    size: int = -1


@dataclass(frozen=True)
class Image:
    """A container image in ``files``: its layers, the lowest first, how a container of it would start, and remarks."""

    files: Files
    layers: tuple[LayerFile, ...]
    configuration: Configuration
    notes: list[str] = field(default_factory=list)


def is_layout(files: Files) -> bool:
    """Whether these are the files of an OCI layout."""
    return files.size("index.json") >= 0 and files.size("oci-layout") >= 0


def read_image(files: Files, tag: str = "", *, docker: bool = False) -> Image:
    """The image for amd64 with ``tag`` in ``files``. ``docker``: by the list that `docker save` writes.

    An archive of a present `docker save` is both; it is read as a layout. Raises UserError for what is not complete,
    for several images without a tag, and for another machine's.
    """
    if is_layout(files) and not docker:
        return _from_layout(files, tag)
    # Its paths are the archive's; below a directory they could lead anywhere.
    if isinstance(files, Archive) and files.size("manifest.json") >= 0:
        return _from_docker(files, tag)
    raise UserError(
        f"{files.name}: found no container image, expected an OCI layout (oci-layout, index.json, blobs) or an archive "
        "of docker save (manifest.json)"
    )


def _read(files: Files, path: str) -> bytes:
    if files.size(path) > LARGEST_DOCUMENT:
        raise UserError(f"{files.name}: {clean(path)}: more than {LARGEST_DOCUMENT} bytes")
    with contextlib.closing(files.open(path)) as stream:
        return b"".join(iter(lambda: stream.read(CHUNK), b""))


def blob_path(digest: str) -> str:
    """The place of a blob in a layout (image-layout.md)."""
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _blob(files: Files, asked: Descriptor) -> bytes:
    """A document, compared with its descriptor."""
    path = blob_path(asked.digest)
    if 0 <= files.size(path) != asked.size:
        raise UserError(f"{files.name}: {path}: found {files.size(path)} bytes, expected {asked.size}")
    data = _read(files, path)
    if (found := hashlib.sha256(data).hexdigest()) != asked.digest.removeprefix("sha256:"):
        raise UserError(f"{files.name}: {path}: found SHA-256 {found}, expected {asked.digest.removeprefix('sha256:')}")
    return data


def _from_layout(files: Files, tag: str) -> Image:
    found = tagged(
        candidates(document(_read(files, "index.json"), f"{files.name}: index.json"), files.name), tag, files.name
    )
    for _ in range(_DEPTH):
        chosen = for_platform(found, files.name)
        data, name = _blob(files, chosen), f"{files.name}: {chosen.digest}"
        if chosen.media_type not in INDICES:
            return image_of(files, data, name)
        found = candidates(document(data, name), name)
    raise UserError(f"{files.name}: more than {_DEPTH} indices, one in the other")


def image_of(files: Files, manifest: bytes, name: str) -> Image:
    """The image of a manifest whose blobs are in ``files``, a layout."""
    read = parse_manifest(manifest, name)
    configuration = parse_configuration(_blob(files, read.config), f"{files.name}: {read.config.digest}")
    if len(configuration.diff_ids) != len(read.layers):
        raise UserError(
            f"{name}: {len(read.layers)} layers, but {len(configuration.diff_ids)} digests in the configuration"
        )
    layers = tuple(
        LayerFile(blob_path(layer.digest), layer.digest, plain, layer.size)
        for layer, plain in zip(read.layers, configuration.diff_ids, strict=True)
    )
    return Image(files, layers, configuration)


def _from_docker(files: Files, tag: str) -> Image:
    name = f"{files.name}: manifest.json"
    listed = document(b'{"images":' + _read(files, "manifest.json") + b"}", name)["images"]
    try:
        images = [
            (each["Config"], list(each["Layers"]), [str(one) for one in each.get("RepoTags") or ()]) for each in listed
        ]
        if not all(isinstance(text, str) for config, layers, _ in images for text in (config, *layers)):
            raise TypeError
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"{name}: found no list of images, expected Config, RepoTags and Layers of each") from None
    if tag:
        images = [each for each in images if any(tag in (one, one.rpartition(":")[2]) for one in each[2])]
    tags = sorted({one for _, _, names in images for one in names})
    if len(images) > 1:
        raise UserError(
            f"{files.name}: found several images, tagged {clean(', '.join(tags))}",
            f"choose one: {with_tag(files.name, 'docker-archive:', tags[0].rpartition(':')[2])}" if tags else "",
        )
    if not images:
        raise UserError(f"{files.name}: found no image{f' with the tag {clean(tag)}' if tag else ''}, expected one")
    config, layers, _ = images[0]
    paths = [os.path.normpath(path) for path in (config, *layers)]
    if files.size(paths[0]) < 0:
        note = f"no {clean(config)} in the archive: its layers cannot be compared with their digests"
        return Image(files, tuple(map(LayerFile, paths[1:])), Configuration((), {}), [note])
    data = _read(files, paths[0])
    if (stated := _HEX.fullmatch(paths[0])) and (found := hashlib.sha256(data).hexdigest()) != stated[1]:
        raise UserError(f"{files.name}: {clean(config)}: found SHA-256 {found}, expected the one in its name")
    configuration = parse_configuration(data, f"{files.name}: {clean(config)}")
    if len(configuration.diff_ids) != len(layers):
        raise UserError(f"{name}: {len(layers)} layers, but {len(configuration.diff_ids)} digests in {clean(config)}")
    pairs = zip(paths[1:], configuration.diff_ids, strict=True)
    return Image(files, tuple(LayerFile(path, plain=plain) for path, plain in pairs), configuration)
