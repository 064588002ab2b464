# SPDX-License-Identifier: Apache-2.0
"""The SBOM: valid CycloneDX, reproducible, with every package, its digest and its set."""

import datetime
import json
import random
import uuid
from typing import Any

import pytest

from sevsnp.packages.lock import read_lock
from sevsnp.release.sbom import SET_PROPERTY, make_sbom
from tests.conftest import PROJECT

PYTHON = {"cryptography": "50.0.2", "jinja2": "3.1.6"}
NOON = datetime.datetime(2020, 1, 2, 12, tzinfo=datetime.UTC)


def locked() -> dict[str, Any]:
    """All that packages.lock has, in the shape of the manifest."""
    lock = read_lock(PROJECT / "packages.lock")
    return {
        name: {
            package.name: {key: getattr(package, key) for key in ("version", "architecture", "sha256")}
            for package in lock.packages(name)
        }
        for name in lock.sets
    }


def few() -> dict[str, Any]:
    """Three packages of each set, of which several sets may have the same: the library takes a while for all."""
    return {title: dict(list(packages.items())[:3]) for title, packages in locked().items()}


def sbom(**changes: Any) -> bytes:
    given: dict[str, Any] = {"product": "p", "version": "1", "packages": few(), "distributions": PYTHON}
    return make_sbom(**{**given, "created": None, **changes})


def schema_errors(document: Any) -> list[str]:
    pytest.importorskip("jsonschema", reason="the schema validator is not installed")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document), all_errors=True)
    return [str(error.data)[:300] for error in found or ()]


@pytest.mark.parametrize("created", [None, NOON])
def test_the_sbom_is_valid(created: datetime.datetime | None) -> None:
    assert schema_errors(json.loads(sbom(created=created, packages=locked()))) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [(("specVersion",), 1.6), (("components", 0, "type"), "thing"), (("components", 0, "hashes", 0, "content"), "00")],
)
def test_control_the_validator_detects_faults(place: tuple[Any, ...], value: Any) -> None:
    document = json.loads(sbom())
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    assert schema_errors(document) != []


def test_every_package_is_listed_with_its_digest_and_sets() -> None:
    document = json.loads(sbom(packages=locked()))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    found = {}
    for component in document["components"]:
        sets = sorted(item["value"] for item in component["properties"] if item["name"] == SET_PROPERTY)
        digests = [(item["alg"], item["content"]) for item in component.get("hashes", ())]
        assert component["purl"] not in found
        found[component["purl"]] = (component["name"], component["version"], digests, sets)
    wanted: dict[str, Any] = {
        f"pkg:pypi/{name}@{version}": (name, version, [], ["python"]) for name, version in PYTHON.items()
    }
    for title, packages in locked().items():
        for name, facts in packages.items():
            version = facts["version"].replace("+", "%2B")
            purl = f"pkg:deb/debian/{name.replace('+', '%2B')}@{version}?arch={facts['architecture']}"
            entry = wanted.setdefault(purl, (name, facts["version"], [("SHA-256", facts["sha256"])], []))
            entry[3].append("firmware" if title == "ovmf" else title)
    assert found == {purl: (*entry[:3], sorted(entry[3])) for purl, entry in wanted.items()}
    shared = [sets for *_, sets in found.values() if len(sets) > 1]
    assert ["guest", "tools"] in shared or ["guest", "initramfs", "tools"] in shared


def test_its_references_hang_together() -> None:
    document = json.loads(sbom())
    components = {component["bom-ref"] for component in document["components"]}
    assert len(components) == len(document["components"])
    (root,) = [item for item in document["dependencies"] if item.get("dependsOn")]
    assert root["ref"] == document["metadata"]["component"]["bom-ref"]
    assert set(root["dependsOn"]) == components


def test_the_same_bytes_whatever_the_order() -> None:
    packages = few()
    shuffled = {
        title: dict(random.sample(list(packages[title].items()), len(packages[title])))
        for title in random.sample(list(packages), len(packages))
    }
    assert len({name for title in packages.values() for name in title}) > 3
    assert sbom() == sbom(packages=shuffled, distributions=dict(reversed(PYTHON.items())))


def test_the_serial_number_is_of_the_content() -> None:
    serials = set()
    differing: tuple[dict[str, Any], ...] = ({}, {"version": "2"}, {"created": NOON}, {"distributions": {}})
    for changes in differing:
        document = json.loads(sbom(**changes))
        serial = uuid.UUID(document["serialNumber"])
        assert serial.version == 5
        serials.add(serial)
    assert len(serials) == 4


def test_the_only_time_in_it_is_the_given_one() -> None:
    assert "timestamp" not in json.loads(sbom())["metadata"]
    assert json.loads(sbom(created=NOON))["metadata"]["timestamp"] == "2020-01-02T12:00:00Z"
