# SPDX-License-Identifier: Apache-2.0
"""The release manifest: the digests of all artefacts, the measurements of the guests, and their sources.

The manifest is one JSON file. Its first line names its type, so that its signature is not valid for any other type. The
rest is sorted, so that equal artefacts give an equal manifest. Paths are relative to the project.
"""

import datetime
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sevsnp.errors import UserError
from sevsnp.release.contents import Contents, ContentsError, check_name
from sevsnp.release.launch import describe_launch
from sevsnp.release.origin import distributions, product, source_state
from sevsnp.release.refused import check_refused, contradictions, refused_of
from sevsnp.system.files import each_key_once, write_atomic

TYPE = "openend2e-sevsnp release manifest 2"
MAX_LIST = 16 << 20
_OPENING = f'{{\n  "type": "{TYPE}",\n'.encode()
_FACTS = ("version", "architecture", "sha256")


def make_manifest(
    *,
    project: Path,
    artefacts: Iterable[Path],
    trees: Iterable[Path],
    configs: Iterable[Path],
    package_lists: Iterable[Path],
    acpi: str,
    created: str,
    key: Path | None,
    output: Path,
    sbom: Path,
    if_built: Sequence[Path] = (),
    if_built_configs: Iterable[Path] = (),
) -> None:
    """Write the manifest and the SBOM, and the signature ``output``.sig if there is a ``key``; else remove an old one.

    With a key, the same is also an in-toto statement with SLSA provenance, beside ``output`` as ``.intoto.json``.

    ``artefacts`` are files. ``trees`` are directories that contain only files that the manifest lists. All paths are
    relative to ``project``. ``if_built`` are more artefacts, and ``if_built_configs`` the VM configs among them: they
    are listed where all of them exist. ``acpi`` is the setting ACPI. ``created`` is a time in seconds since 1970, empty
    for none. For an encrypted key, the user types the password on the terminal. Raises UserError for an artefact that
    is missing or a symbolic link, and for a VM config that does not match its files.
    """
    signing_key = None
    if key is not None:
        from sevsnp.keys.signature import load_signing_key, sign

        signing_key = load_signing_key(key)
    contents, moment = Contents(project), _seconds(created)
    if if_built and all((project / path).exists() for path in if_built):
        artefacts, configs = [*artefacts, *if_built], [*configs, *if_built_configs]
    try:
        document = _describe(contents, artefacts, trees, configs, package_lists, acpi)
    except ContentsError as error:
        # The tasks before this one make all artefacts except a volume.
        task = "setup_luks " if f"{error}".startswith("build/luks/") else ""
        raise UserError(str(error), f"make it again: ./doitw {task}manifest") from None
    about = product(project)
    found = distributions()
    write_atomic(sbom, _sbom(about, document["packages"], found, moment))
    document |= {
        "created": None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "product": about,
        "python": {"version": platform.python_version(), "distributions": found},
        "sbom": {"path": _name(sbom), **contents.describe(_name(sbom))},
        "source": source_state(project),
    }
    data = render_manifest(document)
    signature, envelope = output.with_name(f"{output.name}.sig"), output.with_suffix(".intoto.json")
    # Remove the old signature first, so that it is never beside the new manifest, even if this process is killed.
    signature.unlink(missing_ok=True)
    envelope.unlink(missing_ok=True)
    write_atomic(output, data)
    if signing_key is not None:
        from sevsnp.release.statement import make_envelope, make_statement

        write_atomic(signature, sign(signing_key, data))
        write_atomic(envelope, make_envelope(make_statement(document, output.as_posix(), data), signing_key))
    print(f"  {output}: {len(document['artefacts'])} artefacts, {'signed' if signing_key else 'not signed'}")


def packages_of(contents: Contents, files: Mapping[str, Mapping[str, Any]], lists: Iterable[str]) -> dict[str, Any]:
    """The packages in packages.json files by set and name: version, architecture, sha256. Raises ContentsError."""
    found: dict[str, Any] = {}
    for name in lists:
        try:
            sets = json.loads(contents.read(name, files[name]["sha256"], MAX_LIST))["sets"]
            for title, packages in sets.items():
                found[title] = {item["name"]: {fact: item[fact] for fact in _FACTS} for item in packages}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise ContentsError(f"{name}: not a list of packages") from None
    return found


def render_manifest(document: Mapping[str, Any]) -> bytes:
    """The text of a manifest: its type first, the rest sorted."""
    ordered = json.loads(json.dumps(document, sort_keys=True))
    return (json.dumps({"type": TYPE, **ordered}, indent=2) + "\n").encode()


def parse_manifest(data: bytes, source: Path) -> dict[str, Any]:
    """Read a manifest: check every path in it, and drop its type. Raises UserError for an unknown or repeated key."""
    if not data.startswith(_OPENING):
        raise UserError(f"{source}: not a release manifest that this version knows: expected its type: {TYPE}")
    try:
        document = json.loads(data, object_pairs_hook=each_key_once)
        del document["type"]
        _check(document)
    except RecursionError:
        raise UserError(f"{source}: nested too deeply for a release manifest") from None
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: not a release manifest: {error!s:.300}") from None
    return dict(document)


def _describe(
    contents: Contents,
    artefacts: Iterable[Path],
    trees: Iterable[Path],
    configs: Iterable[Path],
    package_lists: Iterable[Path],
    acpi: str,
) -> dict[str, Any]:
    names, tree_names = {_name(path) for path in artefacts}, sorted(_name(path) for path in trees)
    lists = sorted(_name(path) for path in package_lists)
    try:
        for name in tree_names:
            names.update(contents.below(name))
    except ContentsError as error:
        raise ContentsError(f"{name}: {error}") from None
    files = {}
    for name in sorted(names):
        try:
            files[check_name(name, "artefacts")] = contents.describe(name)
        except ContentsError as error:
            raise ContentsError(f"{name}: {error}") from None
    launch = {}
    for config in map(_name, configs):
        try:
            launch[config] = describe_launch(contents, files, config, acpi)
        except ContentsError as error:
            raise ContentsError(f"{config}: {error}") from None
    refused = refused_of(launch)
    for problem in contradictions(launch, files, refused):
        raise ContentsError(problem)
    return {
        "artefacts": files,
        "trees": tree_names,
        "launch": launch,
        "package_lists": lists,
        "packages": packages_of(contents, files, lists),
        "refused": refused,
    }


def _sbom(
    about: Mapping[str, str], packages: Any, python: Mapping[str, str], moment: datetime.datetime | None
) -> bytes:
    from sevsnp.release.sbom import make_sbom

    return make_sbom(
        product=about["name"], version=about["version"], packages=packages, distributions=python, created=moment
    )


def _seconds(text: str) -> datetime.datetime | None:
    if not text:
        return None
    if not re.fullmatch("[0-9]{1,11}", text):
        raise UserError(f"SOURCE_DATE_EPOCH: found {text!r}, expected seconds since 1970")
    return datetime.datetime.fromtimestamp(int(text), datetime.UTC)


def _name(path: Path) -> str:
    return check_name(path.as_posix(), "artefacts")


_KEYS = frozenset(
    (
        "artefacts", "created", "launch", "package_lists", "packages", "product", "python", "refused", "sbom",
        "source", "trees",
    )
)  # fmt: skip


def _check(document: Mapping[str, Any]) -> None:
    """Raise ValueError, LookupError or TypeError unless ``document`` has the shape of a manifest."""
    if set(document) != _KEYS:
        raise ValueError(f"found unknown or missing keys: {sorted(set(document) ^ _KEYS)!a}")
    if not document["artefacts"] or not document["launch"]:
        raise ValueError("found no artefact or no VM config in it")
    for name, facts in document["artefacts"].items():
        check_name(name, "artefacts")
        _check_facts(name, facts)
    sbom = dict(document["sbom"])
    _check_facts(check_name(sbom.pop("path"), "sbom"), sbom)
    for name in document["trees"]:
        check_name(name, "trees")
    for name in [*document["launch"], *document["package_lists"]]:
        if "sha256" not in document["artefacts"][name]:
            raise ValueError(f"{name!a}: expected a file")
    for name, entry in document["launch"].items():
        if entry["acpi"] not in ("own", "on", "off"):
            raise ValueError(f"{name!a}: acpi: found {entry['acpi']!a}")
        if not all(isinstance(path, str) for path in dict(entry.get("files", {})).values()):
            raise ValueError(f"{name!a}: files: found {entry['files']!a:.200}, expected paths")
    check_refused(document["refused"])


def _check_facts(name: str, facts: Mapping[str, Any]) -> None:
    if set(facts) == {"link"} and isinstance(facts["link"], str):
        return
    size, sha256 = facts.get("size"), facts.get("sha256")
    whole = type(size) is int and size >= 0 and isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)
    if set(facts) != {"size", "sha256"} or not whole:
        raise ValueError(f"{name!a}: found {facts!a}, expected size and sha256, or link")
