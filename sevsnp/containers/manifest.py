# SPDX-License-Identifier: Apache-2.0
"""Reads the documents of a container image: index, manifest and configuration, of OCI and of Docker.

Sources: OCI image specification (image-index.md, manifest.md, config.md), Docker image manifest version 2, schema 2.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sevsnp.errors import UserError
from sevsnp.store.oci_reference import clean
from sevsnp.system.files import each_key_once

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDICES, MANIFESTS = (OCI_INDEX, DOCKER_LIST), (OCI_MANIFEST, DOCKER_MANIFEST)
REF_NAME = "org.opencontainers.image.ref.name"
_FULL_NAME = "io.containerd.image.name"
_ATTESTATION = "vnd.docker.reference.type"
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(?:diff|foreign\.diff)\.tar(?:\.gzip|\.zstd)?)"
)
# Bytes. The specification asks registries for 4 MiB at least; larger documents are nobody's.
LARGEST_DOCUMENT = 8 << 20
_MOST_LAYERS = 1000
PLATFORM = "linux/amd64"


@dataclass(frozen=True)
class Descriptor:
    """A reference to a blob: ``digest`` is ``sha256:`` and 64 hex digits, ``size`` is in bytes."""

    media_type: str
    digest: str
    size: int
    platform: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """One image: its configuration and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Configuration:
    """What an image says about itself: the SHA-256 of each plain layer, and how a container of it would be started."""

    diff_ids: tuple[str, ...]
    runs: Mapping[str, Any]


def document(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises UserError that names the document ``name``."""
    try:
        found = json.loads(data, object_pairs_hook=each_key_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not readable as JSON: {clean(str(error))}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name}: found JSON of another kind, expected an object")
    return found


def descriptor(value: Any, name: str) -> Descriptor:
    """A descriptor in ``name``. Raises UserError for one that is malformed, or that has another hash than SHA-256."""
    try:
        digest, size, media_type = value["digest"], value["size"], value.get("mediaType", "")
        platform, notes = value.get("platform") or {}, value.get("annotations") or {}
        if not isinstance(digest, str) or type(size) is not int or size < 0 or not isinstance(media_type, str):
            raise TypeError
        place = "/".join(str(platform[key]) for key in ("os", "architecture") if key in platform)
        if _ATTESTATION in notes:
            place = "unknown/unknown"
        names = tuple(str(notes[key]) for key in (REF_NAME, _FULL_NAME) if key in notes)
    except (LookupError, TypeError, AttributeError):
        raise UserError(f"{name}: malformed descriptor, expected mediaType, digest and size") from None
    if not _DIGEST.fullmatch(digest):
        raise UserError(f"{name}: found the digest {clean(digest)!r}, expected sha256: and 64 lower-case hex digits")
    return Descriptor(media_type, digest, size, place, names)


def candidates(index: Mapping[str, Any], name: str) -> list[Descriptor]:
    """The images of an index, without attestations. Raises UserError."""
    listed = index.get("manifests")
    if index.get("schemaVersion") != 2 or not isinstance(listed, list):
        raise UserError(f"{name}: found no list of manifests, expected an OCI index of schema version 2")
    found = [descriptor(each, name) for each in listed]
    return [each for each in found if each.platform != "unknown/unknown"]


def for_platform(found: Sequence[Descriptor], name: str) -> Descriptor:
    """The image for amd64. Raises UserError that names what there is instead."""
    fitting = [each for each in found if each.platform == PLATFORM]
    if not fitting and len(found) == 1 and not found[0].platform:
        return found[0]  # its configuration says for which machine it is
    if not fitting:
        there = ", ".join(sorted({clean(each.platform) or "of no named platform" for each in found})) or "nothing"
        raise UserError(f"{name}: found images for {there}, expected one for {PLATFORM}", ARCHITECTURE)
    return fitting[0]


ARCHITECTURE = "build or pull the image for it: --platform linux/amd64"


def tagged(found: Sequence[Descriptor], tag: str, name: str) -> list[Descriptor]:
    """The images of a layout with ``tag``; all of them if it is empty and there is only one name.

    Raises UserError that lists the tags.
    """
    tags = sorted({_tag(each) for one in found for each in one.names})
    if tag:
        chosen = [one for one in found if tag in one.names or tag in map(_tag, one.names)]
        if not chosen:
            raise UserError(f"{name}: found the tags {_listed(tags)}, expected {clean(tag)}")
        return chosen
    if len(tags) > 1:
        raise UserError(
            f"{name}: found several images, tagged {_listed(tags)}", f"choose one: {with_tag(name, 'oci:', tags[0])}"
        )
    return list(found)


def with_tag(name: str, prefix: str, tag: str) -> str:
    """The setting that means one image of the archive or layout that ``name`` (IMAGE=…) means."""
    place = re.sub(r"^(?:oci|oci-archive|docker-archive):", "", name.removeprefix("IMAGE="))
    return f"IMAGE={prefix}{place}:{clean(tag)}"


def _tag(name: str) -> str:
    return name.rpartition("/")[2].rpartition(":")[2]


def _listed(tags: Iterable[str]) -> str:
    return clean(", ".join(tags)) or "none"


def parse_manifest(data: bytes, name: str) -> Manifest:
    """A manifest of an image. Raises UserError, also for an artifact that is no image."""
    found = document(data, name)
    if found.get("schemaVersion") == 1:
        raise UserError(f"{name}: a manifest of Docker's schema 1, expected schema 2 or OCI", OLD_SCHEMA)
    layers = found.get("layers")
    if found.get("schemaVersion") != 2 or not isinstance(layers, list) or "config" not in found:
        raise UserError(f"{name}: found no manifest of an image, expected schema version 2 with config and layers")
    if len(layers) > _MOST_LAYERS:
        raise UserError(f"{name}: {len(layers)} layers, expected at most {_MOST_LAYERS}")
    made = Manifest(descriptor(found["config"], name), tuple(descriptor(layer, name) for layer in layers))
    for layer in made.layers:
        if not _LAYER.fullmatch(layer.media_type):
            kind = clean(layer.media_type) or "none"
            what = "encrypted" if layer.media_type.endswith("+encrypted") else f"of the type {kind}"
            raise UserError(f"{name}: a layer that is {what}, expected a tar, plain or with gzip or zstd")
    return made


OLD_SCHEMA = "push it anew with a present tool"


def parse_configuration(data: bytes, name: str) -> Configuration:
    """The configuration of an image for Linux on amd64. Raises UserError for another machine."""
    found = document(data, name)
    runs, rootfs = found.get("config") or {}, found.get("rootfs")
    try:
        diff_ids = tuple(rootfs["diff_ids"])  # type: ignore[index]
        if not all(isinstance(one, str) and _DIGEST.fullmatch(one) for one in diff_ids):
            raise TypeError
    except (LookupError, TypeError):
        raise UserError(f"{name}: found no rootfs.diff_ids, expected the SHA-256 of each layer") from None
    machine = f"{found.get('os', '')}/{found.get('architecture', '')}"
    if machine != PLATFORM:
        raise UserError(f"{name}: found an image for {clean(machine)}, expected {PLATFORM}", ARCHITECTURE)
    return Configuration(diff_ids, runs if isinstance(runs, dict) else {})


def told(runs: Mapping[str, Any]) -> list[str]:
    """What becomes of the parts of the configuration that tell an engine how to start a container: a line for each.

    A guest is no container: its init starts what the image's units name.
    """
    lines = []
    command = [*_words(runs.get("Entrypoint")), *_words(runs.get("Cmd"))]
    if command:
        where = f" in {runs['WorkingDir']}" if runs.get("WorkingDir") else ""
        who = f" as {runs['User']}" if runs.get("User") else ""
        shown = json.dumps(command, ensure_ascii=False)
        lines.append(f"not started: {shown}{where}{who}: init starts what units name, so make one of it")
    # The values may be secrets.
    if names := sorted({text.partition("=")[0] for text in _words(runs.get("Env"))} - {"PATH"}):
        lines.append(f"not set: the environment variables {', '.join(names)}")
    if isinstance(volumes := runs.get("Volumes"), dict) and volumes:
        lines.append(f"no volumes: {', '.join(sorted(volumes))} are directories of the root")
    return [clean(line, 1000) for line in lines]


def _words(value: Any) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []
