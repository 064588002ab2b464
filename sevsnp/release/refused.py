# SPDX-License-Identifier: Apache-2.0
"""The list of a release manifest that no verifier may accept: make, check and read it.

Launch digests of emulated VM configs prove nothing. If a firmware starts more than the measured files, no launch digest
with it proves anything.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sevsnp.attestation.appraisal import NeverAccepted
from sevsnp.errors import UserError
from sevsnp.firmware.known import REFUSED

_SIZES = {"launch_digests": 96, "firmware": 64}  # hex digits


def refused_of(launch: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """The list for the VM configs of a manifest: digest (hex) → description.

    ``launch`` has the results of :func:`sevsnp.release.launch.describe_launch`.
    """
    digests = {
        item["launch_digest"]: f"the emulated guest of {config} with {item['vcpus']} vCPU"
        for config, entry in launch.items()
        if not entry["production"]
        for item in entry["digests"]
    }
    return {"launch_digests": digests, "firmware": dict(REFUSED)}


def contradictions(
    launch: Mapping[str, Mapping[str, Any]], files: Mapping[str, Mapping[str, Any]], refused: Mapping[str, Any]
) -> Iterator[str]:
    """One line for each VM config that has something that ``refused`` lists. ``files`` are the artefacts by path."""
    for config, entry in launch.items():
        firmware = files.get(entry["files"]["firmware"], {}).get("sha256")
        if firmware in refused["firmware"]:
            yield f"{config}: its firmware is never to be accepted: {refused['firmware'][firmware]}"
        for item in entry["digests"] if entry["production"] else []:
            if named := refused["launch_digests"].get(item["launch_digest"]):
                yield f"{config}: its launch digest with {item['vcpus']} vCPU is never to be accepted: {named}"


def check_refused(refused: Any) -> None:
    """Raise ValueError, LookupError, TypeError or AttributeError unless ``refused`` has the shape of such a list."""
    if set(refused) != set(_SIZES):
        raise ValueError(f"refused: found {sorted(refused)!a}, expected {sorted(_SIZES)}")
    for kind, size in _SIZES.items():
        for digest, name in refused[kind].items():
            if not re.fullmatch(f"[0-9a-f]{{{size}}}", digest):
                raise ValueError(f"refused: {kind}: found {digest!a}, expected {size} hex digits")
            if not isinstance(name, str) or not name or not name.isprintable():
                raise ValueError(f"refused: {kind}: found {name!a}, expected what it is")


def read_refused(manifest: Path | None, public_key: Path | None, names: tuple[str, str]) -> NeverAccepted:
    """The list of a signed manifest. ``names`` are the user's names of the two parameters, for errors.

    Raises :class:`UserError` if a parameter is missing, or if the key has not signed the manifest.
    """
    from sevsnp.release.verify import read_manifest

    for name, value, other in zip(names, (manifest, public_key), reversed(names), strict=True):
        if value is None:
            raise UserError(f"{name}: not given, expected together with {other}: only a signed list counts")
    assert manifest and public_key
    document, _ = read_manifest(manifest, public_key)
    return NeverAccepted(**document["refused"])
