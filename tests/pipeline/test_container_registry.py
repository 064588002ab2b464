# SPDX-License-Identifier: Apache-2.0
"""Container images from a registry: pinned by digest, kept by content, and refused where they differ."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sevsnp.archives.tar import read_tar
from sevsnp.containers.make import make_container_root
from sevsnp.containers.registry import image_reference, pull_image, read_pins
from sevsnp.errors import UserError
from sevsnp.store.kept_files import in_use, prune
from tests.support.container_images import MadeImage, directory, index_of, member, push, tar_bytes
from tests.support.registry_server import Registry, no_login

LIMIT = 1 << 20


def image(text: str, **fields: Any) -> MadeImage:
    layer = [directory("usr"), directory("usr/sbin"), member("usr/sbin/init", text), member("etc/os-release", "ID=x\n")]
    return MadeImage([tar_bytes(layer)], **fields)


@pytest.fixture
def pull(tmp_path: Path, no_login: Path) -> Callable[[str], str]:
    """Pull an image; the content of its init."""

    def pulled(reference: str) -> str:
        output, packages = tmp_path / "pulled.tar", tmp_path / "packages.tar"
        output.unlink(missing_ok=True)
        pull_image(
            reference=reference,
            pins=str(pins(tmp_path)),
            cache_dir=str(tmp_path / "cache"),
            limit=LIMIT,
            output=output,
        )
        packages.write_bytes(tar_bytes([member("etc/os-release", "ID=debian\n")]))
        root = tmp_path / "root.tar"
        make_container_root(
            image=output, name=f"IMAGE={reference}", tag="", docker=False, packages=packages, output=root
        )
        content = read_tar(root)["usr/sbin/init"].content
        assert content
        return content.read().decode()

    return pulled


def pins(tmp_path: Path) -> Path:
    return tmp_path / "config" / "image-pins.json"


__all__ = ["no_login"]

Pull = Callable[[str], str]


def test_a_tag_is_pinned_and_a_moved_tag_is_reported(
    registry: Registry, pull: Pull, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"docker://{registry.host}/moving/name"
    first = push(registry.host, "moving/name", "1", image("first"))
    assert pull(f"{place}:1") == "first"
    assert f"pinned from now on, in {pins(tmp_path)}: {place}:1@{first}" in capsys.readouterr().out
    assert read_pins(pins(tmp_path)) == {f"{place}:1": first}
    assert pull(f"{place}:1") == "first" and "has moved" not in capsys.readouterr().out
    second = push(registry.host, "moving/name", "1", image("second"))
    assert pull(f"{place}:1") == "first"
    said = capsys.readouterr().out
    moved = f"the tag has moved: {place}:1 is now {second}; to take that: IMAGE={place}@{second}"
    assert moved in said and f"{place}:1@{first}, as it is pinned" in said
    # What is printed works; and another user, without the pin, gets what the tag is now (control).
    assert pull(f"{place}@{second}") == "second" and read_pins(pins(tmp_path)) == {f"{place}:1": first}
    pins(tmp_path).unlink()
    assert pull(f"{place}:1") == "second"


def test_without_a_network_the_pinned_image_comes_from_the_cache(
    own_registry: Registry, pull: Pull, tmp_path: Path
) -> None:
    reference = f"docker://{own_registry.host}/name:1"
    found = push(own_registry.host, "name", "1", image("it"))
    assert pull(reference) == "it"
    own_registry.stop()
    assert pull(reference) == "it"
    assert pull(f"docker://{own_registry.host}/name@{found}") == "it"
    # A damaged file in the cache is not taken; there is nowhere to get it anew.
    for path in (tmp_path / "cache" / "images").iterdir():
        path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="Connection refused"):
        pull(reference)
    own_registry.start()
    assert pull(reference) == "it"
    with pytest.raises(UserError, match="Not Found") as caught:
        pull(f"docker://{own_registry.host}/other:1")
    assert "check the name, the tag" in caught.value.hint


def test_the_cache_of_images_has_a_limit(
    own_registry: Registry,
    pull: Pull,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The image used longest ago is removed; each pull works, also of an image larger than the limit."""
    place, kept = f"docker://{own_registry.host}/name", tmp_path / "cache" / "images"
    for number in (1, 2, 3):
        push(own_registry.host, "name", str(number), image(f"{number}" * 200_000, pack=""))
        assert pull(f"{place}:{number}").startswith(f"{number}")
    assert len(list(kept.iterdir())) > 9 and "removed" not in capsys.readouterr().out  # control: all of them fit
    assert pull(f"{place}:1").startswith("1")
    monkeypatch.setattr(sys.modules[__name__], "LIMIT", 500_000)
    assert pull(f"{place}:3").startswith("3")
    assert f"removed from {kept}, to keep to CACHE_SIZE: 3 files" in capsys.readouterr().out
    own_registry.stop()
    assert pull(f"{place}:1").startswith("1")
    with pytest.raises(UserError, match="Connection refused"):
        pull(f"{place}:2")


def test_nothing_is_removed_while_another_run_reads(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "blob"
    path.parent.mkdir()
    path.write_bytes(b"x")
    with in_use(tmp_path / "kept"):
        assert prune(tmp_path / "kept", 0) == 0 and path.exists()
    assert prune(tmp_path / "kept", 0) == 1 and not path.exists()  # control


def test_the_image_for_amd64_is_chosen_from_an_index(registry: Registry, pull: Pull) -> None:
    place = f"docker://{registry.host}/index/name"
    arm, ours = image("arm", architecture="arm64"), image("ours")
    push(registry.host, "index/name", "both", arm, ours, index=index_of(arm, ours))
    assert pull(f"{place}:both") == "ours"
    push(registry.host, "index/name", "none", arm, index=index_of(arm))
    push(registry.host, "index/name", "single", arm)
    for tag in ("none", "single"):
        with pytest.raises(UserError, match=r"linux/arm64, expected (one for )?linux/amd64"):
            pull(f"{place}:{tag}")


def test_bytes_that_differ_from_their_digest_are_refused(own_registry: Registry, pull: Pull, tmp_path: Path) -> None:
    """The files of the registry are changed, so that it sends other bytes under the same digests."""
    made = image("it", pack="")
    found = push(own_registry.host, "name", "1", made)
    reference = f"docker://{own_registry.host}/name@{found}"
    for name, data in made.blobs().items():
        own_registry.blob(name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        own_registry.stop()
        own_registry.start()  # it remembers what it has read
        with pytest.raises(UserError) as caught:
            pull(reference)
        assert (
            "found SHA-256" in str(caught.value) or "more than its" in str(caught.value) or "500" in str(caught.value)
        )
        own_registry.blob(name).write_bytes(data)
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert pull(reference) == "it"  # control: the right bytes


def test_references() -> None:
    sha = f"sha256:{'a' * 64}"
    for text, host, repository, tag, digest in (
        ("docker://h.example/name", "h.example", "name", "latest", ""),
        ("docker://h.example:5000/a/b:1.2", "h.example:5000", "a/b", "1.2", ""),
        (f"docker://localhost/a@{sha}", "localhost", "a", "", sha),
        (f"docker://h.example/a:1@{sha}", "h.example", "a", "1", sha),
    ):
        found = image_reference(text)
        assert (found.place.host, found.place.repository, found.tag, found.digest) == (host, repository, tag, digest)
    assert image_reference("docker://127.0.0.1:5000/a").place.scheme == "http"
    bad = ("Debian", "h.example/Upper", "u:p@h.example/a", "docker.io/", "/debian", "h.example/a@sha256:short", "")
    for text in (f"docker://{place}" for place in (*bad, "h.example/../a")):
        with pytest.raises(UserError, match="expected docker://HOST/NAME"):
            image_reference(text)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("docker://debian", "docker://docker.io/library/debian:latest"),
        ("docker://debian:13", "docker://docker.io/library/debian:13"),
        ("docker://library/debian:13", "docker://docker.io/library/debian:13"),
        ("docker://user/name:1", "docker://docker.io/user/name:1"),
        ("docker://docker.io/debian:13", "docker://docker.io/library/debian:13"),
        ("docker://index.docker.io/user/name:1", "docker://docker.io/user/name:1"),
    ],
)
def test_short_names_are_expanded_as_docker_does(text: str, whole: str) -> None:
    """Control: a name with a dot or a colon, or localhost, is the name of a host."""
    found = image_reference(text)
    assert str(found) == whole and found.place.host == "registry-1.docker.io" and found.place.scheme == "https"
    assert found.place.logins == ("https://index.docker.io/v1/", "registry-1.docker.io")
    for host in ("h.example", "debian:5000", "localhost"):
        other = image_reference(f"docker://{host}/debian:13").place
        assert (other.host, other.repository, other.logins) == (host, "debian", (host,))


def test_a_malformed_file_of_pins_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pins").write_text('{"a": "latest"}')
    with pytest.raises(UserError, match="a: expected sha256: and 64"):
        read_pins(tmp_path / "pins")
    assert read_pins(tmp_path / "none") == {}
