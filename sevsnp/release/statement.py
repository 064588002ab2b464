# SPDX-License-Identifier: Apache-2.0
"""The release manifest in the form that supply-chain tools read: SLSA provenance in an in-toto statement, in DSSE.

Sources: in-toto Statement v1, SLSA provenance v1, DSSE v1 (the signed bytes, PAE). The signature is of the same kind as
the manifest's own (sevsnp.keys.signature). The builder is whoever has the key: no build service stands behind it.
"""

import base64
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from sevsnp.keys.signature import SigningKey, fingerprint, sign

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:openend2e-sevsnp:release-manifest:2"
BUILDER = "urn:openend2e-sevsnp:the-holder-of-the-manifest-key"


def make_statement(document: Mapping[str, Any], manifest_name: str, manifest: bytes) -> dict[str, Any]:
    """The statement of a release manifest: ``document`` is its content, ``manifest`` its bytes.

    Its subjects are the files of the release by path and SHA-256; symbolic links have no digest and are not among them.
    """
    files = document["artefacts"]
    subjects = [{"name": name, "digest": {"sha256": files[name]["sha256"]}} for name in sorted(files)
                if "sha256" in files[name]]  # fmt: skip
    created = {"finishedOn": document["created"]} if document["created"] else {}
    return {
        "_type": STATEMENT,
        "subject": subjects,
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"product": document["product"], "launch": document["launch"]},
                "internalParameters": {"python": document["python"]},
                "resolvedDependencies": [*_source(document["source"]), *_packages(document["packages"])],
            },
            "runDetails": {
                "builder": {"id": BUILDER},
                "metadata": created,
                "byproducts": [
                    {"name": manifest_name, "digest": {"sha256": sha256(manifest).hexdigest()}},
                    {"name": document["sbom"]["path"], "digest": {"sha256": document["sbom"]["sha256"]}},
                ],
            },
        },
    }


def _source(source: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not source.get("commit"):
        return []
    return [{"name": "source", "digest": {"gitCommit": source["commit"]}, "annotations": {"clean": source["clean"]}}]


def _packages(sets: Mapping[str, Mapping[str, Mapping[str, str]]]) -> list[dict[str, Any]]:
    """Each package once, by its package URL."""
    found: dict[str, dict[str, Any]] = {}
    for packages in sets.values():
        for name, facts in packages.items():
            version, architecture = (quote(facts[key], safe="") for key in ("version", "architecture"))
            uri = f"pkg:deb/debian/{quote(name, safe='')}@{version}?arch={architecture}"
            found[f"{uri} {facts['sha256']}"] = {"uri": uri, "digest": {"sha256": facts["sha256"]}}
    return [found[key] for key in sorted(found)]


def make_envelope(statement: Mapping[str, Any], key: SigningKey) -> bytes:
    """The statement in a DSSE envelope with one signature; ``keyid`` is the fingerprint of the public key."""
    payload = json.dumps(statement, indent=2, sort_keys=True).encode()
    signature = {"keyid": fingerprint(key.public_key()), "sig": _base64(sign(key, signed_bytes(payload)))}
    envelope = {"payloadType": PAYLOAD_TYPE, "payload": _base64(payload), "signatures": [signature]}
    return (json.dumps(envelope, indent=2) + "\n").encode()


def signed_bytes(payload: bytes) -> bytes:
    """What the signature in an envelope covers: DSSE's pre-authentication encoding of type and payload."""
    kind = PAYLOAD_TYPE.encode()
    return b" ".join((b"DSSEv1", b"%d" % len(kind), kind, b"%d" % len(payload), payload))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
