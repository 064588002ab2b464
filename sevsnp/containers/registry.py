# SPDX-License-Identifier: Apache-2.0
"""Fetches a container image from a registry, pinned by its digest, and kept by content like every download.

A tag is somebody's word of the day. The first build asks which digest it names, prints it and keeps it; every later
build takes that digest, and says so if the tag has moved. With a digest in the reference nothing is asked.
"""

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from sevsnp.archives.rootfs import EPOCH
from sevsnp.archives.tar import Content, Entry, Kind
from sevsnp.archives.tar_writer import write_tar
from sevsnp.containers.manifest import (
    INDICES,
    LARGEST_DOCUMENT,
    MANIFESTS,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    candidates,
    document,
    for_platform,
    parse_configuration,
    parse_manifest,
)
from sevsnp.containers.source import blob_path
from sevsnp.containers.unpack import LARGEST
from sevsnp.errors import UserError
from sevsnp.store.kept_files import in_use, note_use, prune
from sevsnp.store.oci_reference import Reference, Refused, Tampered, Unavailable, parse_reference
from sevsnp.store.oci_transport import Transport
from sevsnp.system import progress
from sevsnp.system.files import CHUNK, scratch_directory, sha256_file, write_atomic

_REFERENCE = re.compile(
    r"docker://(?P<place>[^@]+?)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_EXPECTED = "expected docker://HOST/NAME, then :TAG or @sha256:DIGEST"
# A name without a host is one of Docker's own registry, which answers under another host than its name.
_DOCKER, _DOCKER_NAMES, _DOCKER_HOST = "docker.io", ("docker.io", "index.docker.io"), "registry-1.docker.io"
_OFFICIAL, _DOCKER_LOGIN = "library", "https://index.docker.io/v1/"
# Seconds without an answer.
_TIMEOUT = 20.0
_ATTEMPTS = 3
_DEPTH = 3


@dataclass(frozen=True)
class _Place(Reference):
    """A repository in a registry, under the name that the user gave it; ``called`` is the host's name for users."""

    called: str = ""

    @property
    def logins(self) -> tuple[str, ...]:
        return (_DOCKER_LOGIN, self.host) if self.called else (self.host,)

    def __str__(self) -> str:
        return f"docker://{self.called or self.host}/{self.repository}"


@dataclass(frozen=True)
class ImageReference:
    """An image in a registry: repository, tag, and digest (``sha256:`` and 64 hex digits); each may be empty."""

    place: Reference
    tag: str
    digest: str

    def __str__(self) -> str:
        return f"{self.place}{self.tag and f':{self.tag}'}"


def image_reference(text: str) -> ImageReference:
    """Read ``docker://host[:port]/name[:tag][@digest]``; without both, the tag is latest.

    A short name is expanded as docker does: ``debian`` is docker.io/library/debian, ``user/name`` docker.io/user/name.
    Raises UserError.
    """
    match = _REFERENCE.fullmatch(text)
    host, slash, name = match["place"].partition("/") if match else ("", "", "")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        host, name = _DOCKER, f"{host}{slash}{name}"
    if known := host in _DOCKER_NAMES:
        name = name if "/" in name else f"{_OFFICIAL}/{name}"
    try:
        found = parse_reference(f"oci://{_DOCKER_HOST if known else host}/{name}")
    except UserError:
        found = None
    if match is None or found is None:
        raise UserError(f"IMAGE={text}: {_EXPECTED}", "host and name are in lower case, without a user name")
    tag, digest = match["tag"] or "", match["digest"] or ""
    return ImageReference(
        _Place(found.scheme, found.host, found.repository, _DOCKER if known else ""),
        tag or ("" if digest else "latest"),
        digest,
    )


def pull_image(*, reference: str, pins: str, cache_dir: str, limit: int, output: Path) -> None:
    """Write the image for amd64 that ``reference`` names as an OCI layout in the tar ``output``.

    ``pins`` is the file that keeps the digest of each tag; blobs are kept below ``cache_dir``, at most ``limit`` bytes
    of them. Raises UserError for trouble with the registry, for what differs from its digest, and for an image of
    another machine.
    """
    asked, kept = image_reference(reference), Path(cache_dir) / "images"
    if not reference.startswith(str(asked.place)):
        print(f"  IMAGE={reference}: the short name of {asked}")
    with in_use(kept):
        _pull(asked, _Source(asked, kept), Path(pins), output)
    if removed := prune(kept, limit):
        print(f"  removed from {kept}, to keep to CACHE_SIZE: {removed} files that were not used for longest")


def _pull(asked: ImageReference, source: "_Source", pins: Path, output: Path) -> None:
    try:
        digest = _pinned(asked, source, pins)
        manifest = source.manifest(digest)
        for _ in range(_DEPTH):
            found = document(manifest, f"{asked}@{digest}")
            if found.get("mediaType", "") not in INDICES and "manifests" not in found:
                break
            digest = for_platform(candidates(found, str(asked)), str(asked)).digest
            manifest = source.manifest(digest)
        layout = _layout(asked, digest, manifest, source)
    except Refused as error:
        raise UserError(f"IMAGE={error}", "check the name, the tag, and whether docker login is needed") from None
    except (Unavailable, Tampered) as error:
        raise UserError(f"IMAGE={asked}: {error}") from None
    write_tar(layout, output, epoch=EPOCH)


def _layout(asked: ImageReference, digest: str, manifest: bytes, source: "_Source") -> list[Entry]:
    """The image as the files of an OCI layout (image-layout.md)."""
    read = parse_manifest(manifest, f"{asked}@{digest}")
    # Before gigabytes are fetched: is it for this machine?
    config = source.blob(read.config)
    parse_configuration(config.read_bytes(), f"{asked}@{digest}")
    total = sum(layer.size for layer in read.layers)
    if total > LARGEST:
        raise UserError(f"{asked}@{digest}: {total} bytes of layers, expected at most {LARGEST}")
    files = {blob_path(read.config.digest): config}
    with progress.amount("fetching the image", total) as shown:
        for layer in read.layers:
            files[blob_path(layer.digest)] = source.blob(layer, shown)
    described = {"mediaType": OCI_MANIFEST, "digest": digest, "size": len(manifest)}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described]}
    documents = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps(index).encode(),
        blob_path(digest): manifest,
    }
    entries = [Entry(name, Kind.FILE, 0o644, content=Content.literal(name, data)) for name, data in documents.items()]
    for name, path in files.items():
        content = Content(path.stat().st_size, (name, 0), path)
        entries.append(Entry(name, Kind.FILE, 0o644, content=content))
    return entries


def _pinned(asked: ImageReference, source: "_Source", pins: Path) -> str:
    """The digest to take; that of a tag is pinned in the file ``pins`` when it is asked for the first time."""
    if asked.digest:
        return asked.digest
    known = read_pins(pins)
    pinned = known.get(str(asked))
    if pinned is None:
        digest = source.now()
        write_atomic(pins, json.dumps({**known, str(asked): digest}, indent=2, sort_keys=True) + "\n")
        print(f"  pinned from now on, in {pins}: {asked}@{digest}")
        return digest
    # Without a network the pinned image is as good as before.
    with contextlib.suppress(Unavailable, Tampered):
        if (moved := source.now()) != pinned:
            print(f"  the tag has moved: {asked} is now {moved}; to take that: IMAGE={asked.place}@{moved}")
    print(f"  {asked}@{pinned}, as it is pinned in {pins}")
    return pinned


def read_pins(pins: Path) -> dict[str, str]:
    """The pinned digests by reference; none if there is no such file. Raises UserError."""
    try:
        found = document(pins.read_bytes(), str(pins))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{pins}: cannot be read: {error.strerror}") from None
    for name, digest in found.items():
        if not isinstance(digest, str) or not re.fullmatch("sha256:[0-9a-f]{64}", digest):
            raise UserError(f"{pins}: {name}: expected sha256: and 64 lower-case hex digits")
    return found


class _Source:
    """The blobs of one repository, from the cache where it has them."""

    def __init__(self, asked: ImageReference, cache: Path) -> None:
        self._asked, self._cache = asked, cache
        self._transport = Transport(asked.place, _TIMEOUT)

    def now(self) -> str:
        """The digest of the tag at this moment; the manifest is kept."""
        data = self._fetched_manifest(self._asked.tag)
        digest = hashlib.sha256(data).hexdigest()
        self._keep(digest, data)
        return f"sha256:{digest}"

    def manifest(self, digest: str) -> bytes:
        """The manifest or index with a digest."""
        wanted = digest.removeprefix("sha256:")
        path = self._cache / wanted
        if path.is_file() and sha256_file(path) == wanted:
            note_use(path)
            return path.read_bytes()
        data = self._fetched_manifest(digest)
        if (found := hashlib.sha256(data).hexdigest()) != wanted:
            raise Tampered(f"manifest {digest}: found SHA-256 {found}")
        self._keep(wanted, data)
        return data

    def _fetched_manifest(self, name: str) -> bytes:
        accepted = ", ".join((*INDICES, *MANIFESTS))
        with self._transport.request("GET", f"manifests/{name}", (200,), headers={"Accept": accepted}) as answer:
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise Unavailable("answers with a web page, as no registry does")
            return answer.document(LARGEST_DOCUMENT)

    def blob(self, wanted: Descriptor, shown: progress.Amount | None = None) -> Path:
        """The file in the cache with a blob, fetched if it is not there."""
        name = wanted.digest.removeprefix("sha256:")
        path = self._cache / name
        if path.is_file() and path.stat().st_size == wanted.size and sha256_file(path) == name:
            if shown:
                shown(wanted.size)
            note_use(path)
            return path
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                self._fetch(wanted, path, shown)
                break
            except Refused:
                raise
            except Unavailable:
                if attempt == _ATTEMPTS:
                    raise
        return path

    def _fetch(self, wanted: Descriptor, path: Path, shown: progress.Amount | None) -> None:
        digest, size = hashlib.sha256(), 0
        with (
            self._transport.request("GET", f"blobs/{wanted.digest}", (200,)) as answer,
            scratch_directory(path) as scratch,
        ):
            made = scratch / "blob"
            with made.open("wb") as stream:
                while piece := answer.read(CHUNK):
                    size += len(piece)
                    if size > wanted.size:
                        raise Tampered(f"blob {wanted.digest}: more than its {wanted.size} bytes")
                    digest.update(piece)
                    stream.write(piece)
                    if shown:
                        shown(len(piece))
            if size != wanted.size:
                raise Unavailable(f"blob {wanted.digest}: ends after {size} of {wanted.size} bytes")
            if f"sha256:{digest.hexdigest()}" != wanted.digest:
                raise Tampered(f"blob {wanted.digest}: found SHA-256 {digest.hexdigest()}")
            made.replace(path)

    def _keep(self, name: str, data: bytes) -> None:
        write_atomic(self._cache / name, data)
