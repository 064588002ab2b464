# SPDX-License-Identifier: Apache-2.0
"""The configuration for cloud-init, as YAML; and a cloud image that is downloaded by its digest, from a real server."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sevsnp.errors import UserError
from sevsnp.images.cloud_guest import cloud_config, fetch_cloud_image
from sevsnp.packages import download as downloading
from sevsnp.packages.by_digest import fetch_by_digest
from tests.conftest import PROJECT
from tests.support.mirror_server import Mirror

TEMPLATE = PROJECT / "templates" / "cloud-config.yaml"
DATA = bytes(range(256)) * 8000
DIGEST = hashlib.sha256(DATA).hexdigest()


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=60))
def test_any_key_is_written_and_read_back_unchanged(comment: str) -> None:
    """The user chooses the comment: quotes, colons and # in it must not become YAML."""
    text = cloud_config(TEMPLATE, f"ssh-ed25519 AAAA {comment}")
    assert text.startswith("#cloud-config\n")
    document = yaml.safe_load(text)
    (user,) = document.pop("users")
    assert user["ssh_authorized_keys"] == [f"ssh-ed25519 AAAA {comment}"] and user["lock_passwd"] is True
    assert document == yaml.safe_load(TEMPLATE.read_text())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("users: [default]\n", "users: found users, expected none"),
        ("ssh_authorized_keys: [x]\n", "ssh_authorized_keys: found users"),
        ("- a\n", "found no mapping"),
        ("", "found no mapping"),
        ("a: [\n", "not YAML"),
        ("a: 1\na: 2\n", "a is given twice"),
    ],
)
def test_other_templates_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        cloud_config(tmp_path / "t.yaml", "key")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(downloading.Meter, "wait", lambda self, seconds: self.stopped.wait(min(seconds, 0.01)))
    with Mirror() as started:
        started.files["/cloud.qcow2"] = DATA
        yield started


def test_an_image_is_fetched_once_and_checked(mirror: Mirror, tmp_path: Path) -> None:
    for _ in range(2):
        fetch_cloud_image(
            uri=f"{mirror.uri}/cloud.qcow2", sha256=DIGEST, cache_dir=str(tmp_path / "cache"), output=tmp_path / "image"
        )
        assert (tmp_path / "image").read_bytes() == DATA
    asked = len(mirror.requests)
    assert asked == 2  # its length, and itself
    found = fetch_by_digest("CLOUD_IMAGE", f"{mirror.uri}/cloud.qcow2", DIGEST, cache_dir=tmp_path / "cache")
    found.write_bytes(DATA[:-1])
    assert (
        fetch_by_digest("CLOUD_IMAGE", f"{mirror.uri}/cloud.qcow2", DIGEST, cache_dir=tmp_path / "cache").read_bytes()
        == DATA
    )
    assert len(mirror.requests) > asked


def test_an_interrupted_download_is_continued(mirror: Mirror, tmp_path: Path) -> None:
    mirror.breaks = [len(DATA), 1_000_000]
    assert fetch_by_digest("CLOUD_IMAGE", f"{mirror.uri}/cloud.qcow2", DIGEST, cache_dir=tmp_path).read_bytes() == DATA
    assert any("1000000" in str(request) for request in mirror.requests)


@pytest.mark.parametrize(
    ("uri", "sha256", "words"),
    [
        ("{}/cloud.qcow2", "1" * 64, "expected 1111"),
        ("{}/cloud.qcow2", "", "no SHA-256 is given for it"),
        ("{}/nonsuch", DIGEST, "the server does not have this file"),
        (
            "ftp://user:canary@192.0.2.1/x",
            DIGEST,
            "CLOUD_IMAGE=ftp://…@192.0.2.1/x: expected a path, or a URL that begins with http",
        ),
        ("http://user:canary@127.0.0.1:1/x", DIGEST, "CLOUD_IMAGE=http://…@127.0.0.1:1/x: cannot be fetched"),
    ],
)
def test_a_failed_download_is_named(mirror: Mirror, tmp_path: Path, uri: str, sha256: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        fetch_cloud_image(uri=uri.format(mirror.uri), sha256=sha256, cache_dir=str(tmp_path), output=tmp_path / "image")
    assert "canary" not in str(refused.value) and not (tmp_path / "image").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
