# SPDX-License-Identifier: Apache-2.0
"""Small container images, made here: as OCI layouts, as archives of `docker save`, and pushed to a registry."""

import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import zstandard

from sevsnp.containers.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, REF_NAME

Pack = Callable[[bytes], bytes]
PACKERS: dict[str, Pack] = {
    "": lambda data: data,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "xz": lzma.compress,
}
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


def member(name: str, content: bytes | str = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a layer: a file with its content, or of another ``type``."""
    data = content.encode() if isinstance(content, str) else content
    info = tarfile.TarInfo(name)
    info.mode, info.size = 0o644, len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def directory(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def tar_bytes(members: Iterable[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class MadeImage:
    """An image: its plain layers, how they are packed, and its documents, which a test may change before it writes."""

    layers: Sequence[bytes]
    pack: str = "gzip"
    architecture: str = "amd64"
    runs: dict[str, Any] = field(default_factory=dict)
    media_type: str = OCI_MANIFEST

    def __post_init__(self) -> None:
        self.packed = [PACKERS[self.pack](layer) for layer in self.layers]
        self.config: dict[str, Any] = {
            "architecture": self.architecture,
            "os": "linux",
            "config": self.runs,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in self.layers]},
        }

    @property
    def config_bytes(self) -> bytes:
        return json.dumps(self.config).encode()

    @property
    def manifest(self) -> bytes:
        suffix = f"+{self.pack}" if self.pack in ("gzip", "zstd") else ""
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "config": self._described(self.config_bytes, "application/vnd.oci.image.config.v1+json"),
                "layers": [self._described(data, OCI_LAYER + suffix) for data in self.packed],
            }
        ).encode()

    @staticmethod
    def _described(data: bytes, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest(data), "size": len(data)}

    @property
    def descriptor(self) -> dict[str, Any]:
        platform = {"os": "linux", "architecture": self.architecture}
        return {**self._described(self.manifest, self.media_type), "platform": platform}

    def blobs(self) -> dict[str, bytes]:
        return {digest(data): data for data in (*self.packed, self.config_bytes, self.manifest)}


def index_of(*images: MadeImage, tags: Sequence[str] = ()) -> bytes:
    """An index of the images, each with its tag if there are some."""
    listed = [
        {**image.descriptor, **({"annotations": {REF_NAME: tags[number]}} if tags else {})}
        for number, image in enumerate(images)
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()


def layout_files(*images: MadeImage, index: bytes = b"", tags: Sequence[str] = ()) -> dict[str, bytes]:
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index or index_of(*images, tags=tags)}
    for image in images:
        files |= {f"blobs/sha256/{name.removeprefix('sha256:')}": data for name, data in image.blobs().items()}
    return files


def write_layout(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def archive_of(path: Path, files: dict[str, bytes], pack: str = "") -> Path:
    path.write_bytes(PACKERS[pack](tar_bytes(member(name, data) for name, data in files.items())))
    return path


def docker_files(image: MadeImage, tags: Sequence[str] = ("made:1",)) -> dict[str, bytes]:
    """The files of an archive in the old form of `docker save`: the layers are plain tars."""
    config = hashlib.sha256(image.config_bytes).hexdigest()
    layers = {f"{hashlib.sha256(layer).hexdigest()}/layer.tar": layer for layer in image.layers}
    names = [f"{hashlib.sha256(layer).hexdigest()}/layer.tar" for layer in image.layers]
    listed = [{"Config": f"{config}.json", "RepoTags": list(tags), "Layers": names}]
    return {**layers, f"{config}.json": image.config_bytes, "manifest.json": json.dumps(listed).encode()}


def push(host: str, repository: str, tag: str, *images: MadeImage, index: bytes = b"") -> str:
    """Push images to a registry on loopback; ``tag`` names the first, or ``index``. Returns the digest of the tag."""
    base = f"http://{host}/v2/{repository}"
    for image in images:
        for name, data in image.blobs().items():
            started = requests.post(f"{base}/blobs/uploads/", timeout=60)
            address = started.headers["Location"]
            sent = requests.put(f"{address}&digest={name}", data=data, timeout=60)
            assert sent.status_code == 201, sent.text
        _put(base, digest(image.manifest), image.manifest, image.media_type)
    top, media_type = (index, OCI_INDEX) if index else (images[0].manifest, images[0].media_type)
    _put(base, tag, top, media_type)
    return digest(top)


def _put(base: str, name: str, data: bytes, media_type: str) -> None:
    sent = requests.put(f"{base}/manifests/{name}", data=data, headers={"Content-Type": media_type}, timeout=60)
    assert sent.status_code == 201, sent.text


__all__ = ["DOCKER_MANIFEST", "MadeImage", "archive_of", "docker_files", "index_of", "layout_files", "member", "push"]
