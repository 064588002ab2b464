# SPDX-License-Identifier: Apache-2.0
"""Verify a release manifest: first its signature, then compare all its contents with the files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.release.contents import Contents, ContentsError
from sevsnp.release.launch import describe_launch
from sevsnp.release.manifest import packages_of, parse_manifest
from sevsnp.release.refused import contradictions, refused_of

MAX_MANIFEST = 16 << 20
MAX_SIGNATURE = 1 << 10
_ABSENT = "nothing"


def verify_manifest(*, manifest: Path, public_key: Path | None, project: Path) -> None:
    """Compare the files below ``project`` with ``manifest`` and print the result.

    If ``public_key`` is given, this key must have signed the manifest; the signature is checked before the manifest is
    parsed. Raises UserError that names every differing artefact and launch digest. No path in the manifest leads out of
    ``project``.
    """
    document, said = read_manifest(manifest, public_key)
    problems = list(differences(Contents(project), document))
    print(f"  {manifest}: {said}")
    if problems:
        count = f"{len(problems)} difference{'s' if len(problems) > 1 else ''}"
        raise UserError("\n".join([f"{manifest}: {count}", *(f"  {problem}" for problem in problems)]))
    digests = sum(len(entry["digests"]) for entry in document["launch"].values())
    print(f"  {len(document['artefacts'])} artefacts and {digests} launch digests are as the manifest says")
    refused = document["refused"]
    print(
        f"  never to be accepted: {len(refused['launch_digests'])} launch digests of emulated guests, "
        f"{len(refused['firmware'])} firmware images"
    )


def read_manifest(manifest: Path, public_key: Path | None) -> tuple[dict[str, Any], str]:
    """A manifest, and a text about its signature. Raises UserError if ``public_key`` did not sign the manifest."""
    data = _read(manifest, MAX_MANIFEST, "make one with: ./doitw manifest")
    said = _check_signature(data, manifest, public_key)
    return parse_manifest(data, manifest), said


def differences(contents: Contents, document: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each difference between a checked manifest and the files."""
    sbom = dict(document["sbom"])
    listed = {**document["artefacts"], sbom.pop("path"): sbom}
    files: dict[str, Any] = {}
    for name, said in sorted(listed.items()):
        try:
            found = contents.describe(name, said.get("size"))
        except ContentsError as error:
            yield f"{name}: {error}"
            continue
        if found == said:
            files[name] = found
        else:
            yield f"{name}: {_compared(said, found)}"
    for tree in document["trees"]:
        try:
            yield from (f"{name!a}: is not in the manifest" for name in contents.below(tree) if name not in listed)
        except ContentsError as error:
            yield f"{tree}: {error}"
    launch: dict[str, Any] = {}
    for config, said in sorted(document["launch"].items()):
        yield from _launch_differences(contents, files, listed, config, said, launch)
    if len(launch) == len(document["launch"]):  # otherwise the difference was already reported
        for place, here, there in _unequal(document["refused"], refused_of(launch)):
            yield f"refused: {place}: the manifest says {here!a:.200}, the files give {there!a:.200}"
        yield from contradictions(launch, files, document["refused"])
    yield from _package_differences(contents, files, document)


def _launch_differences(
    contents: Contents,
    files: dict[str, Any],
    listed: dict[str, Any],
    config: str,
    said: dict[str, Any],
    described: dict[str, Any],
) -> Iterator[str]:
    """Yield the differences from ``said``; the description from the files is added to ``described``."""
    named = said.get("files")
    needed = [config, *(named.values() if isinstance(named, dict) else ())]
    if bad := [name for name in needed if name in listed and name not in files]:
        yield f"{config}: its launch digests cannot be checked, because {', '.join(bad)} differs"
        return
    try:
        found = describe_launch(contents, files, config, said["acpi"])
    except ContentsError as error:
        yield f"{config}: {error}"
        return
    described[config] = found
    for place, here, there in _unequal(said, found):
        yield f"{config}: {place}: the manifest says {here!a:.200}, the files give {there!a:.200}"


def _package_differences(contents: Contents, files: dict[str, Any], document: dict[str, Any]) -> Iterator[str]:
    if any(name not in files for name in document["package_lists"]):
        return  # already reported
    try:
        found = packages_of(contents, files, document["package_lists"])
    except ContentsError as error:
        yield str(error)
        return
    for place, here, there in _unequal(document["packages"], found):
        yield f"packages: {place}: the manifest says {here!a:.200}, the lists say {there!a:.200}"


def _unequal(said: Any, found: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield each place where two JSON values differ: its path, and both values there."""
    if isinstance(said, list) and isinstance(found, list):
        said, found = dict(enumerate(said)), dict(enumerate(found))
    if isinstance(said, dict) and isinstance(found, dict):
        for key in [*found, *(key for key in said if key not in found)]:
            inner = f"{place}.{key}" if place else f"{key}"
            yield from _unequal(said.get(key, _ABSENT), found.get(key, _ABSENT), inner)
    elif type(said) is not type(found) or said != found:
        yield ascii(place)[1:-1], said, found


def _compared(said: dict[str, Any], found: dict[str, Any]) -> str:
    if "link" in said or "link" in found:
        kinds = [f"a symbolic link to {item['link']!a}" if "link" in item else "a file" for item in (found, said)]
        return f"found {kinds[0]}, the manifest says {kinds[1]}"
    if said["size"] != found["size"]:
        return f"{found['size']} bytes, the manifest says {said['size']}"
    return f"SHA-256 {found['sha256']}, the manifest says {said['sha256']}"


def _check_signature(data: bytes, manifest: Path, public_key: Path | None) -> str:
    """A text about the signature. Raises UserError if a key is given and did not make the signature."""
    signature = manifest.with_name(f"{manifest.name}.sig")
    if public_key is None:
        if signature.exists():
            return "signature not checked: no MANIFEST_PUBLIC_KEY is given; anybody may have written the manifest"
        return "not signed: anybody may have written the manifest"
    from sevsnp.keys.signature import fingerprint, is_signed, load_public_key

    key = load_public_key(public_key)
    if not signature.exists():
        raise UserError(
            f"{manifest}: not signed, expected a signature by {public_key}",
            "sign with: ./doitw manifest MANIFEST_KEY=FILE",
        )
    if not is_signed(key, _read(signature, MAX_SIGNATURE, ""), data):
        raise UserError(f"{signature}: is not a signature of {manifest.name} by {public_key}: nothing else was checked")
    return f"signed by {public_key} (SHA-256 of the key {fingerprint(key)})"


def _read(path: Path, limit: int, hint: str) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", hint) from None
    if len(data) > limit:
        raise UserError(f"{path}: more than {limit} bytes")
    return data
