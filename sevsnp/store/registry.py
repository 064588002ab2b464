# SPDX-License-Identifier: Apache-2.0
"""The shared cache: entries as OCI artifacts in a registry, so that OCI tools can list, copy and delete them.

An entry is one image manifest, tagged with the entry's key. Its config is the entry's document. Its layers are the
blobs, compressed with zstd. Received content is checked against its digest while it is streamed. As with every
registry, the parties with write access to the repository decide which content a key stands for.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sevsnp.store.entries import Blob, EntryError, canonical
from sevsnp.store.oci_blob import Layer, compressed, largest_layer, restore
from sevsnp.store.oci_reference import Reference, Refused, Tampered, Unavailable, parse_reference

if TYPE_CHECKING:
    from sevsnp.store.oci_transport import Transport

__all__ = ["Reference", "Refused", "Registry", "Tampered", "Unavailable", "parse_reference"]

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ENTRY_TYPE = "application/vnd.openend2e-sevsnp.entry.v1+json"
BLOB_TYPE = "application/vnd.openend2e-sevsnp.blob.v1+zstd"
TITLE = "org.opencontainers.image.title"
BLOB_SHA256, BLOB_SIZE = "openend2e-sevsnp.blob.sha256", "openend2e-sevsnp.blob.size"

# Bytes. Registries refuse larger manifests themselves. An entry needs about a hundred bytes for each file of a tree.
MANIFEST_LIMIT = 4 << 20
DOCUMENT_LIMIT = 16 << 20
# Seconds.
_PAUSES = (0.1, 0.5)
_DIGEST = re.compile("sha256:[0-9a-f]{64}")


class Registry:
    """One repository as a cache. The first call opens the network connection; several threads may call.

    ``timeout`` is in seconds: for a connection, for an answer, and for how long a transfer may run below 128 KiB a
    second. Every method raises :class:`Unavailable` and :class:`Tampered`, and OSError for trouble with local files.
    """

    def __init__(self, reference: Reference, *, timeout: float = 10.0) -> None:
        self.reference, self._timeout = reference, timeout
        self._layers: dict[Blob, Layer] = {}
        # A registry ignores a second upload under the same digest: a repaired blob or document needs another digest.
        self._damaged: set[str] = set()
        # Keys whose manifests the registry cannot even send.
        self._unreadable: set[str] = set()
        self._opened: Transport | None = None
        self._opening = threading.Lock()

    def entry(self, key: str) -> bytes | None:
        """The document under ``key`` (64 hex digits); None if the registry has none."""
        data = self._manifest(_checked_key(key))
        if data is None:
            return None
        try:
            config, layers = parse_manifest(data)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Tampered(f"{self.reference}: manifest {key}: not the manifest of a cache entry") from None
        if config.size > DOCUMENT_LIMIT:
            raise Tampered(f"{self.reference}: entry {key}: {config.size} bytes, expected at most {DOCUMENT_LIMIT}")
        with self._transport.request("GET", f"blobs/{config.digest}", (200, 404)) as answer:
            if answer.status == 404:
                return None  # a part of the entry was deleted: a push completes it
            document = answer.document(config.size)
        if len(document) != config.size or _digest(document) != config.digest:
            self._damaged.add(config.digest)
            raise Tampered(f"{self.reference}: entry {key}: its document does not have the manifest's digest")
        self._layers.update(layers)
        return document.rstrip(b"\n")

    def _manifest(self, key: str) -> bytes | None:
        try:
            with self._transport.request(
                "GET", f"manifests/{key}", (200, 404), headers={"Accept": MANIFEST_TYPE}
            ) as answer:
                if answer.status == 404:
                    return None
                if answer.headers.get("Content-Type", "").startswith("text/html"):
                    raise Unavailable(f"{self.reference}: answers with a web page, expected a registry")
                data = answer.document(MANIFEST_LIMIT)
                said = answer.headers.get("Docker-Content-Digest", _digest(data))
        except Refused:
            self._unreadable.add(key)
            raise
        if said != _digest(data):
            self._damaged.add(said)
            raise Tampered(f"{self.reference}: manifest {key}: differs from the digest that the registry states")
        return data

    def fetch(self, blob: Blob, target: Path) -> None:
        """Write ``blob`` to ``target``.

        An entry read before must name the blob; after an error there is no ``target``.
        """
        layer = self._layers.get(blob)
        if layer is None:
            raise Tampered(f"{self.reference}: blob {blob.sha256}: not a layer of an entry that was read")
        with self._transport.request("GET", f"blobs/{layer.digest}", (200,)) as answer:
            try:
                restore(answer, layer, blob, target)
            except Tampered:
                self._damaged.add(layer.digest)
                raise

    def push(self, key: str, document: bytes, blobs: Sequence[tuple[Blob, Path]]) -> None:
        """Store an entry: the blobs that the registry lacks, the document, and last the manifest that names them.

        Compressed files are made beside the blobs, without names. Content that :meth:`entry` or :meth:`fetch` found
        damaged is sent again, encoded in different bytes with the same meaning.
        """
        _checked_key(key)
        if len(document) > DOCUMENT_LIMIT:
            raise Unavailable(f"{self.reference}: entry {key} has {len(document)} bytes, more than {DOCUMENT_LIMIT}")
        files = dict(blobs)
        if self._has(key, document, list(files)):
            return
        layers: dict[Blob, Layer] = {}
        for blob, path in files.items():
            known = self._layers.get(blob)
            damaged = known is not None and known.digest in self._damaged
            with compressed(blob, path, checksum=damaged) as (stream, layer):
                if not self._has_layer(layer.digest):
                    self._upload(layer, stream)
            layers[blob] = layer
        document = self._undamaged(document)
        config = Layer(_digest(document), len(document))
        if not self._has_layer(config.digest):
            self._upload(config, document)
        manifest = make_manifest(key, config, layers)
        if key in self._unreadable:
            self._damaged.add(_digest(manifest))
        manifest = self._undamaged(manifest)
        # A registry does not write its files atomically. While two clients send the same content, it can find the blobs
        # incomplete.
        for pause in _PAUSES:
            try:
                self._tag(key, manifest)
                return
            except Refused:
                time.sleep(pause)
        self._tag(key, manifest)

    def _tag(self, key: str, manifest: bytes) -> None:
        with self._transport.request(
            "PUT", f"manifests/{key}", (200, 201, 202), headers={"Content-Type": MANIFEST_TYPE},
            body=manifest, size=len(manifest),
        ) as answer:  # fmt: skip
            if answer.headers.get("Docker-Content-Digest", _digest(manifest)) != _digest(manifest):
                raise Tampered(f"{self.reference}: manifest {key}: the registry keeps another manifest than was sent")

    def _undamaged(self, data: bytes) -> bytes:
        """A JSON document, padded so that the registry has no damaged content under its digest."""
        while _digest(data) in self._damaged:
            data += b"\n"
        return data

    @property
    def _transport(self) -> "Transport":
        with self._opening:
            if self._opened is None:
                # requests and oras take longer to load than `doit list` to run.
                from sevsnp.store.oci_transport import Transport

                self._opened = Transport(self.reference, self._timeout)
            return self._opened

    def _has(self, key: str, document: bytes, blobs: Sequence[Blob]) -> bool:
        """Whether the registry has exactly this entry, complete: then no blob needs to be compressed."""
        try:
            if self.entry(key) != document:
                return False
        except Tampered:
            return False  # the push replaces it
        except Refused:
            if key in self._unreadable:
                return False
            raise
        layers = [self._layers.get(blob) for blob in blobs]
        good = [layer.digest for layer in layers if layer is not None and layer.digest not in self._damaged]
        return len(good) == len(layers) and all(map(self._has_layer, good))

    def _has_layer(self, digest: str) -> bool:
        with self._transport.request("HEAD", f"blobs/{digest}", (200, 404)) as answer:
            return answer.status == 200

    def _upload(self, layer: Layer, body: Any) -> None:
        with self._transport.request("POST", "blobs/uploads/", (202,)) as answer:
            url = self._transport.upload_url(answer)
        url = f"{url}{'&' if '?' in url else '?'}digest={layer.digest}"
        with self._transport.request("PUT", url, (201, 204), body=body, size=layer.size):
            pass


def make_manifest(key: str, config: Layer, layers: dict[Blob, Layer]) -> bytes:
    """The manifest of an entry: the same content gives the same bytes, without a time."""
    return canonical(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ENTRY_TYPE,
            "config": {"mediaType": ENTRY_TYPE, "digest": config.digest, "size": config.size},
            "layers": [
                {
                    "mediaType": BLOB_TYPE,
                    "digest": layer.digest,
                    "size": layer.size,
                    "annotations": {
                        TITLE: f"{blob.sha256}.zst",
                        BLOB_SHA256: blob.sha256,
                        BLOB_SIZE: str(blob.size),
                    },
                }
                for blob, layer in layers.items()
            ],
            "annotations": {TITLE: f"cache entry {key}"},
        }
    )


def parse_manifest(data: bytes) -> tuple[Layer, dict[Blob, Layer]]:
    """The config and the layers of an entry's manifest.

    Raises ValueError, LookupError or TypeError if it is malformed.
    """
    document = json.loads(data)
    if document["schemaVersion"] != 2 or document["artifactType"] != ENTRY_TYPE:
        raise ValueError("another kind of artifact")
    layers: dict[Blob, Layer] = {}
    for item in document["layers"]:
        size = item["annotations"][BLOB_SIZE]
        if not re.fullmatch("0|[1-9][0-9]{0,18}", size):
            raise ValueError(size)
        blob, layer = Blob(item["annotations"][BLOB_SHA256], int(size)), _descriptor(item, BLOB_TYPE)
        if layer.size > largest_layer(blob.size):
            raise EntryError(f"layer {layer.digest}: larger than its content")
        layers[blob] = layer
    return _descriptor(document["config"], ENTRY_TYPE), layers


def _descriptor(item: Any, media_type: str) -> Layer:
    digest, size = item["digest"], item["size"]
    if item["mediaType"] != media_type or not _DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
        raise ValueError(digest)
    return Layer(digest, size)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _checked_key(key: str) -> str:
    return Blob(key, 0).sha256
