# SPDX-License-Identifier: Apache-2.0
"""The manifest as SLSA provenance: its subjects are the artefacts, and openssl verifies the envelope."""

import base64
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sevsnp.release.manifest import make_manifest
from sevsnp.release.statement import make_statement

KEYS: dict[str, Any] = {
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
}
DIGEST = "5" * 64


def make(directory: Path, key: Path | None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(directory)
    (directory / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    (directory / "one").write_bytes(b"first")
    (directory / "two").write_bytes(b"second")
    packages = {"guest": [{"name": "g++", "version": "1:2~3", "architecture": "amd64", "sha256": DIGEST}]}
    (directory / "packages.json").write_text(json.dumps({"sets": packages}))
    make_manifest(
        project=directory, artefacts=[Path("one"), Path("two"), Path("packages.json")], trees=[], configs=[],
        package_lists=[Path("packages.json")], acpi="own", created="1780000000", key=key,
        output=Path("manifest.json"), sbom=Path("sbom.json"),
    )  # fmt: skip
    return directory / "manifest.intoto.json"


@pytest.mark.parametrize("kind", KEYS)
def test_openssl_verifies_the_envelope(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(KEYS[kind].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key.chmod(0o600)
    public = KEYS[kind].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub.pem").write_bytes(public)
    envelope = json.loads(make(tmp_path, key, monkeypatch).read_bytes())
    assert envelope.keys() == {"payloadType", "payload", "signatures"}
    payload = base64.b64decode(envelope["payload"])
    (one,) = envelope["signatures"]
    der = KEYS[kind].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert one["keyid"] == hashlib.sha256(der).hexdigest()
    (tmp_path / "sig").write_bytes(base64.b64decode(one["sig"]))

    def verified(content: bytes) -> bool:
        # DSSE's own words: "DSSEv1", the type and the payload, each with its length.
        signed = f"DSSEv1 28 application/vnd.in-toto+json {len(content)} ".encode() + content
        (tmp_path / "signed").write_bytes(signed)
        if kind == "ed25519":
            argv = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pub.pem", "-rawin", "-in", "signed",
                    "-sigfile", "sig"]  # fmt: skip
        else:
            argv = [
                "openssl",
                "dgst",
                f"-sha{kind.replace('p', '')}",
                "-verify",
                "key.pub.pem",
                "-signature",
                "sig",
                "signed",
            ]
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, timeout=60, check=False).returncode == 0

    assert verified(payload) and not verified(payload.replace(b'"one"', b'"two"', 1))
    statement = json.loads(payload)
    digests = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    assert digests["one"] == hashlib.sha256(b"first").hexdigest() and digests.keys() == {"one", "two", "packages.json"}
    made = statement["predicate"]["runDetails"]["byproducts"]
    manifest = hashlib.sha256((tmp_path / "manifest.json").read_bytes()).hexdigest()
    assert made[0] == {"name": "manifest.json", "digest": {"sha256": manifest}} and made[1]["name"] == "sbom.json"
    build = statement["predicate"]["buildDefinition"]
    assert {"uri": "pkg:deb/debian/g%2B%2B@1%3A2~3?arch=amd64", "digest": {"sha256": DIGEST}} in build[
        "resolvedDependencies"
    ]
    assert statement["predicate"]["runDetails"]["metadata"]["finishedOn"].startswith("2026-")


def test_without_a_key_no_statement_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.intoto.json").write_text("an old one")
    assert not make(tmp_path, None, monkeypatch).exists()
    assert (tmp_path / "manifest.json").exists()


def test_links_are_not_subjects_and_unknown_sources_are_not_dependencies() -> None:
    document = {
        "artefacts": {"a": {"sha256": DIGEST, "size": 1}, "link": {"link": "a"}}, "created": None, "launch": {},
        "packages": {}, "product": {}, "python": {}, "sbom": {"path": "s", "sha256": DIGEST},
        "source": {"commit": None, "clean": None},
    }  # fmt: skip
    made = make_statement(document, "m", b"x")
    assert [one["name"] for one in made["subject"]] == ["a"]
    assert made["predicate"]["buildDefinition"]["resolvedDependencies"] == []
    document["source"] = {"commit": "c" * 40, "clean": False}
    (source,) = make_statement(document, "m", b"x")["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["digest"] == {"gitCommit": "c" * 40} and source["annotations"] == {"clean": False}
