# SPDX-License-Identifier: Apache-2.0
"""Logging in to a real registry: passwords from where Docker keeps them, helpers, tokens; and its certificate."""

import hashlib
import os
from pathlib import Path

import pytest

from sevsnp.store.entries import Blob
from sevsnp.store.registry import Reference, Registry, Unavailable, parse_reference
from tests.support import registry_server
from tests.support.registry_logins import (
    ISSUER,
    SERVICE,
    Certificate,
    TokenServer,
    serving,
    write_config,
    write_helper,
    write_login,
)
from tests.support.registry_server import PASSWORD, USER, no_login, running

Server = registry_server.Registry


__all__ = ["no_login"]
pytestmark = pytest.mark.usefixtures("no_login")


def client(server: Server) -> Registry:
    return Registry(parse_reference(server.reference))


def stored(folder: Path, name: str, content: bytes) -> tuple[Blob, Path]:
    (folder / name).write_bytes(content)
    return Blob(hashlib.sha256(content).hexdigest(), len(content)), folder / name


def test_a_login(locked_registry: Server, no_login: Path, tmp_path: Path) -> None:
    blob, path = stored(tmp_path, "file", b"content")
    with pytest.raises(Unavailable, match=r"needs a login, but found none in .*docker/config.json"):
        client(locked_registry).entry(blob.sha256)
    write_login(no_login, locked_registry.host, USER, "not the password")
    with pytest.raises(Unavailable, match=r"refuses the login in .*docker/config.json") as refused:
        client(locked_registry).entry(blob.sha256)
    assert "password" not in str(refused.value)
    write_login(no_login, locked_registry.host, USER, PASSWORD)
    there = client(locked_registry)
    there.push(blob.sha256, b"{}", [(blob, path)])
    assert there.entry(blob.sha256) == b"{}"
    there.fetch(blob, tmp_path / "back")


@pytest.mark.parametrize("how", ["credsStore", "credHelpers"])
def test_a_login_from_a_helper(
    locked_registry: Server, no_login: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    host = locked_registry.host
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    write_config(no_login, {"auths": {host: {}}, how: "tests" if how == "credsStore" else {host: "tests"}})
    answers = {
        "echo 'credentials not found in native keychain'; exit 1": "docker-credential-tests gives no login",
        "echo '<html>'": "docker-credential-tests gives no login in the expected form",
        "sleep 60": "docker-credential-tests gives no login",
    }
    monkeypatch.setattr("sevsnp.store.oci_login._HELPER_SECONDS", 1.0)
    for body, message in answers.items():
        write_helper(tmp_path / "bin", "tests", body)
        with pytest.raises(Unavailable, match=message):
            client(locked_registry).entry("0" * 64)
    secret = f'{{"ServerURL": "%s", "Username": "{USER}", "Secret": "{PASSWORD}"}}'
    write_helper(tmp_path / "bin", "tests", f"""[ "$1 $host" = "get {host}" ] && printf '{secret}' "$host" """)
    assert client(locked_registry).entry("0" * 64) is None


def test_a_damaged_configuration_is_named(locked_registry: Server, no_login: Path) -> None:
    for text in ("{", "[]", '{"auths": 3}', '{"credsStore": "../evil"}'):
        write_config(no_login, {})
        (no_login / "config.json").write_text(text)
        with pytest.raises(Unavailable, match=r"none in .*config.json \(.*\)"):
            client(locked_registry).entry("0" * 64)


def test_tokens(registry_program: Path, no_login: Path, tmp_path: Path) -> None:
    certificate = Certificate(tmp_path / "issuer")
    tokens = TokenServer(certificate, USER, PASSWORD)
    blob, path = stored(tmp_path, "file", b"content")
    bundle = {"realm": tokens.realm, "service": SERVICE, "issuer": ISSUER}
    auth = {"token": {**bundle, "rootcertbundle": str(certificate.certificate_file)}}
    with serving(tokens.server):
        for server in running(registry_program, tmp_path / "registry", auth=auth):
            with pytest.raises(Unavailable, match="needs a login"):
                client(server).entry(blob.sha256)
            write_login(no_login, server.host, USER, PASSWORD)
            tokens.scopes.clear()
            there = client(server)
            # One token for pulling, then another that may push.
            assert there.entry(blob.sha256) is None
            there.push(blob.sha256, b"{}", [(blob, path)])
            assert there.entry(blob.sha256) == b"{}"
            there.fetch(blob, tmp_path / "back")
    assert [set(scope.rpartition(":")[2].split(",")) for scope in tokens.scopes] == [{"pull"}, {"pull", "push"}]


def test_certificates_are_verified(registry_program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = Certificate(tmp_path / "certificate")
    files = {"certificate": str(certificate.certificate_file), "key": str(certificate.key_file)}
    for server in running(registry_program, tmp_path / "registry", http={"tls": files}):
        reference = Reference("https", server.host, "cache")
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        with pytest.raises(Unavailable, match="certificate not accepted"):
            Registry(reference).entry("0" * 64)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate.certificate_file))
        assert Registry(reference).entry("0" * 64) is None
