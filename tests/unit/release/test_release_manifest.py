# SPDX-License-Identifier: Apache-2.0
"""The manifest as a document: faults that are refused before any file is read, and the command lines in it."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.measurement.make_cmdline import make_verity_cmdline
from sevsnp.release.launch import boots_with_acpi, with_acpi
from sevsnp.release.manifest import TYPE, make_manifest, parse_manifest, render_manifest
from sevsnp.release.verify import MAX_MANIFEST, verify_manifest
from sevsnp.vm_config.verity_word import BLOCK_SIZE

SOURCE = Path("manifest.json")
DIGEST = "0" * 64


def document() -> dict[str, Any]:
    return {
        "artefacts": {"a/config": {"size": 1, "sha256": DIGEST}, "a/link": {"link": "config"}},
        "created": None,
        "launch": {"a/config": {"acpi": "own", "digests": [], "production": True}},
        "package_lists": ["a/config"],
        "packages": {},
        "product": {},
        "python": {},
        "refused": {"firmware": {"1" * 64: "bad"}, "launch_digests": {"2" * 96: "emulated"}},
        "sbom": {"path": "sbom", "size": 1, "sha256": DIGEST},
        "source": {},
        "trees": ["a"],
    }


def test_a_written_manifest_is_read_back() -> None:
    assert parse_manifest(render_manifest(document()), SOURCE) == document()
    assert render_manifest(dict(reversed(document().items()))) == render_manifest(document())


def set_at(*place: Any) -> Callable[[dict[str, Any]], None]:
    """An edit that sets the value at a place in the document: the last argument."""

    def edit(inner: dict[str, Any]) -> None:
        *way, last, value = place
        for key in way:
            inner = inner[key]
        inner[last] = value

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        set_at("artefacts", "/etc/passwd", {"size": 1, "sha256": DIGEST}),
        set_at("artefacts", "../outside", {"size": 1, "sha256": DIGEST}),
        set_at("artefacts", "a/../../outside", {"size": 1, "sha256": DIGEST}),
        set_at("sbom", "path", "../sbom"),
        set_at("trees", ["/"]),
        set_at("trees", ["a", ".."]),
        set_at("artefacts", "a/x", {"size": -1, "sha256": DIGEST}),
        set_at("artefacts", "a/x", {"size": True, "sha256": DIGEST}),
        set_at("artefacts", "a/x", {"size": 1.0, "sha256": DIGEST}),
        set_at("artefacts", "a/x", {"size": 1, "sha256": DIGEST.replace("0", "A")}),
        set_at("artefacts", "a/x", {"size": 1, "sha256": DIGEST + "0"}),
        set_at("artefacts", "a/x", {"size": 1}),
        set_at("artefacts", "a/x", {}),
        set_at("artefacts", "a/x", {"size": 1, "sha256": DIGEST, "optional": True}),
        set_at("artefacts", "a/x", {"link": 5}),
        set_at("artefacts", "a/x", "0" * 64),
        set_at("artefacts", []),
        set_at("artefacts", {}),
        set_at("launch", {}),
        set_at("launch", {"a/other": {"acpi": "own"}}),
        set_at("launch", {"a/link": {"acpi": "own"}}),
        set_at("launch", "a/config", "acpi", "maybe"),
        set_at("launch", "a/config", "files", {"kernel": ["a/config"]}),
        set_at("launch", "a/config", []),
        set_at("package_lists", ["a/other"]),
        set_at("package_lists", 5),
        set_at("trees", [5]),
        set_at("sbom", None),
        set_at("more", 1),
        set_at("refused", {}),
        set_at("refused", None),
        set_at("refused", "more", {}),
        set_at("refused", "firmware", []),
        set_at("refused", "firmware", "1" * 96, "another length"),
        set_at("refused", "firmware", "A" * 64, "upper case"),
        set_at("refused", "firmware", "1" * 64, ""),
        set_at("refused", "firmware", "1" * 64, "\x1b[2J"),
        set_at("refused", "launch_digests", "1" * 64, "another length"),
        set_at("refused", "launch_digests", "2" * 96, 1),
        lambda it: it.pop("refused"),
        lambda it: it.pop("packages"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_structure_is_refused(edit: Callable[[dict[str, Any]], None]) -> None:
    changed = document()
    edit(changed)
    with pytest.raises(UserError, match=r"not a release manifest|expected one below the project"):
        parse_manifest(render_manifest(changed), SOURCE)


def test_a_key_that_is_there_twice_is_refused() -> None:
    text = render_manifest(document()).decode()
    for old in ('"created": null,', f'"size": 1,\n      "sha256": "{DIGEST}"', f'"sha256": "{DIGEST}",'):
        if old not in text:
            continue
        doubled = text.replace(old, f"{old.rstrip(',')}, {old}", 1)
        # Another reader takes the last of the two and goes on.
        json.loads(doubled)
        with pytest.raises(UserError, match=r"found the key .* twice"):
            parse_manifest(doubled.encode(), SOURCE)
        break
    else:
        pytest.fail("nothing was doubled")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        json.dumps({"type": TYPE, **document()}).encode(),  # the same content, but not as it is written and signed
        render_manifest(document()).replace(TYPE.encode(), TYPE[:-1].encode() + b"1"),
        render_manifest(document()).replace(TYPE.encode(), b"something else that this key has signed"),
    ],
)
def test_a_document_that_does_not_begin_with_its_type_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="not a release manifest that this version knows"):
        parse_manifest(data, SOURCE)


@pytest.mark.parametrize("tail", [b"", b"\xff}", b'"created": ' + b"[" * 200_000, b'"created": ' + b"9" * 5000 + b"}"])
def test_truncated_or_malformed_json_is_refused(tail: bytes) -> None:
    opening = render_manifest(document()).partition(b'  "artefacts"')[0]
    with pytest.raises(UserError, match="release manifest"):
        parse_manifest(opening + tail, SOURCE)


def test_a_huge_manifest_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "manifest.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UserError, match=f"more than {MAX_MANIFEST} bytes"):
        verify_manifest(manifest=tmp_path / "manifest.json", public_key=None, project=tmp_path)
    with pytest.raises(UserError, match="cannot be read"):
        verify_manifest(manifest=tmp_path / "none", public_key=None, project=tmp_path)


@pytest.mark.parametrize("platform", ["snp", "emulated"])
def test_the_second_command_line_equals_that_of_the_setup(tmp_path: Path, platform: str) -> None:
    (tmp_path / "image").write_bytes(bytes(3 * BLOCK_SIZE))
    (tmp_path / "roothash").write_text("1" * 64)
    lines = {}
    for acpi in (True, False):
        make_verity_cmdline(
            image=tmp_path / "image", roothash=tmp_path / "roothash", label="test", rootfs="ext4", writable="copy",
            tmpfs=dict.fromkeys(("etc", "home", "var", "tmp"), 1 << 20), acpi=acpi, platform=platform,
            output=tmp_path / "cmdline",
        )  # fmt: skip
        lines[acpi] = (tmp_path / "cmdline").read_text()
    assert lines[True] != lines[False]
    for start in lines.values():
        assert {acpi: with_acpi(start, acpi) for acpi in (True, False)} == lines


def test_a_foreign_command_line_is_refused() -> None:
    with pytest.raises(UserError, match="does not begin with the words"):
        with_acpi("console=ttyS0 acpi=off init=/bin/sh", True)


def test_acpi_follows_from_the_settings() -> None:
    from sevsnp.settings.resolved import resolve

    for setting in ("own", "on", "off"):
        for vcpus in (1, 2, 64):
            chosen = resolve({"ACPI": setting, "CPUS": str(vcpus)}, {}, Path("none"))
            try:
                wanted = chosen.acpi()
            except UserError:
                wanted = None
            assert boots_with_acpi(vcpus, setting) is wanted


@pytest.mark.parametrize(
    ("name", "said"), [("tree/pipe", "expected a file"), ("tree/none", "missing"), ("link/file", "not a symbolic link")]
)
def test_files_that_cannot_be_listed_are_refused_and_no_manifest_is_written(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    (tmp_path / "link").symlink_to("tree")
    os.mkfifo(tmp_path / "tree" / "pipe")
    with pytest.raises(UserError, match=f"{name}: .*{said}"):
        make_manifest(
            project=tmp_path, artefacts=[Path("tree/file"), Path(name)], trees=[], configs=[], package_lists=[],
            acpi="own", created="", key=None, output=tmp_path / "manifest.json", sbom=tmp_path / "sbom",
        )  # fmt: skip
    assert not (tmp_path / "manifest.json").exists() and not (tmp_path / "sbom").exists()
