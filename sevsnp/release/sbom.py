# SPDX-License-Identifier: Apache-2.0
"""The SBOM: every package that went into the build, as CycloneDX 1.6."""

import datetime
import json
import uuid
from collections.abc import Mapping
from typing import Any

# The part of the project that contains a component; a component in two parts has the property twice.
SET_PROPERTY = "openend2e-sevsnp:set"
# Clear names for those sets of packages.lock whose names a reader would not understand.
_SET_NAMES = {"ovmf": "firmware"}
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "openend2e-sevsnp sbom")

Packages = Mapping[str, Mapping[str, Mapping[str, Any]]]


def make_sbom(
    *,
    product: str,
    version: str,
    packages: Packages,
    distributions: Mapping[str, str],
    created: datetime.datetime | None,
) -> bytes:
    """The SBOM as JSON text, the same bytes for the same arguments.

    ``packages`` are Debian packages by set and name, each with version, architecture and sha256 (64 hex digits).
    ``distributions`` are Python distributions, name → version. They have no digest, because requirements.lock has
    several files for each. ``created`` is a time in UTC; None omits it. The serial number is a UUID of version 5 over
    the rest of the document.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    root = Component(name=product, version=version, type=ComponentType.APPLICATION, bom_ref=product)
    components = [*_debian(packages), *_python(distributions)]
    # The library always adds a time and a random serial number. Both are replaced below.
    bom = Bom(metadata=BomMetaData(component=root), components=components)
    bom.register_dependency(root, components)
    document = json.loads(make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string())
    del document["serialNumber"], document["metadata"]["timestamp"]
    if created is not None:
        document["metadata"]["timestamp"] = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    content = json.dumps(document, sort_keys=True)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}"
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _debian(packages: Packages) -> list[Any]:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    types = {"firmware": ComponentType.FIRMWARE, "kernel": ComponentType.OPERATING_SYSTEM}
    found: dict[tuple[str, str], Component] = {}
    for name in sorted(packages):
        shown = _SET_NAMES.get(name, name)
        for package, facts in sorted(packages[name].items()):
            purl = PackageURL("deb", "debian", package, facts["version"], {"arch": facts["architecture"]})
            key = (purl.to_string(), facts["sha256"])
            if key not in found:
                found[key] = Component(
                    name=package,
                    version=facts["version"],
                    type=types.get(shown, ComponentType.LIBRARY),
                    purl=purl,
                    bom_ref="#".join(key),
                    hashes=[HashType(alg=HashAlgorithm.SHA_256, content=facts["sha256"])],
                )
            found[key].properties.add(Property(name=SET_PROPERTY, value=shown))
    return list(found.values())


def _python(distributions: Mapping[str, str]) -> list[Any]:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    return [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            purl=(purl := PackageURL("pypi", None, name, version)),
            bom_ref=purl.to_string(),
            properties=[Property(name=SET_PROPERTY, value="python")],
        )
        for name, version in sorted(distributions.items())
    ]
