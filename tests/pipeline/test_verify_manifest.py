# SPDX-License-Identifier: Apache-2.0
"""`doit verify_manifest` on a real build: every difference is named, and the signature shows who made the manifest."""

import contextlib
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sevsnp.release.manifest import render_manifest
from sevsnp.system.files import sha256_file
from tests.conftest import Built
from tests.support.copies import one_line
from tests.support.released import CONFIG, LINK, Released, flipped, release, replace
from tests.unit.keys.test_signature import make_key, needs_openssl, public_half

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def released(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Released:
    return release(built, tmp_path_factory.mktemp("released"))


def test_an_untouched_build_is_accepted(released: Released) -> None:
    unchecked = released.built.doit("verify_manifest").stdout
    assert "signature not checked" in unchecked and "28 launch digests" in unchecked
    checked = released.built.doit("verify_manifest", f"MANIFEST_PUBLIC_KEY={released.public}").stdout
    assert f"signed by {released.public}" in checked and "not checked" not in checked
    elsewhere = released.manifest.with_name("elsewhere.json")
    with released.kept(elsewhere):
        shutil.copyfile(released.manifest, elsewhere)
        assert "not signed" in released.built.doit("verify_manifest", f"MANIFEST={elsewhere}").stdout


MEASURED = (
    "build/kernel/vmlinuz", "build/boot/stage-1.efi", "build/boot/stage.bin", "build/initramfs.cpio.zst",
    "build/firmware/OVMF.fd", "build/verity/cmdline", "build/verity/verity.img", "build/verity/hash-tree.img",
    CONFIG["snp"],
)  # fmt: skip
NOT_MEASURED = (
    "packages.lock", "build/debs/guest/packages.json", "build/initramfs.emulated.cpio.zst", "build/verity/roothash.txt",
    "build/guest/rootfs.tar", "build/guest/sevsnptest.qcow2", "build/host-bundle/run", "build/bin/get_report",
    "build/sbom.cdx.json",
)  # fmt: skip


@pytest.mark.parametrize("names", [*((name,) for name in MEASURED), NOT_MEASURED], ids=[*MEASURED, "not measured"])
def test_a_changed_artefact_is_named(released: Released, names: Sequence[str]) -> None:
    with contextlib.ExitStack() as stack:
        for path in (released.project / name for name in names):
            stack.enter_context(released.kept(path))
            flipped(path)
        said = released.refusal(released.public)
    assert [name for name in names if f"{name}: SHA-256 " not in said] == []
    assert (f"{CONFIG['snp']}: its launch digests cannot be checked" in said) is (names != NOT_MEASURED)


def test_every_difference_is_named_and_not_only_the_first(released: Released) -> None:
    project = released.project
    changed, missing, shorter = (
        project / name for name in ("packages.lock", "requirements.lock", "build/bin/get_report")
    )
    bundle = project / "build/host-bundle"
    size = shorter.stat().st_size
    linked, added, planted = bundle / "run", bundle / "lib/sitecustomize.py", bundle / "more"
    link = project / LINK
    with released.kept(changed, missing, shorter, linked, added, planted, link, project / CONFIG["emulated"]):
        flipped(changed)
        missing.unlink()
        replace(shorter, shorter.read_bytes()[:-1])
        linked.unlink()
        linked.symlink_to(project / "doitw")
        added.write_text("planted = True\n")
        planted.symlink_to("/etc")
        link.unlink()
        link.symlink_to("/usr/lib")
        flipped(project / CONFIG["emulated"])
        result = released.built.doit("verify_manifest", f"MANIFEST_PUBLIC_KEY={released.public}", check=False)
    assert result.returncode != 0
    assert "9 differences" in one_line(result.stdout)
    for said in (
        "packages.lock: SHA-256",
        "requirements.lock: missing",
        f"build/bin/get_report: {size - 1} bytes, the manifest says {size}",
        "build/host-bundle/run: found a symbolic link to ",
        "'build/host-bundle/lib/sitecustomize.py': is not in the manifest",
        "'build/host-bundle/more': is not in the manifest",
        f"{LINK}: found a symbolic link to '/usr/lib', the manifest says a symbolic link to 'usr/lib'",
        f"{CONFIG['emulated']}: SHA-256",
        f"{CONFIG['emulated']}: its launch digests cannot be checked, because {CONFIG['emulated']} differs",
    ):
        assert said in result.stdout, said


def test_a_link_to_a_file_outside_the_build_is_refused(released: Released, tmp_path: Path) -> None:
    folder, path = released.project / "build/kernel", released.project / "build/kernel/vmlinuz"
    place = tmp_path / "outside"
    shutil.copytree(folder, place, symlinks=True)
    with released.kept(path):
        path.unlink()
        path.symlink_to(place / "vmlinuz")
        # To a check that only compares digests nothing has happened.
        assert sha256_file(path) == released.document()["artefacts"]["build/kernel/vmlinuz"]["sha256"]
        assert f"vmlinuz: found a symbolic link to '{place}/vmlinuz'" in released.refusal()
    aside = folder.rename(folder.with_name("aside"))
    try:
        folder.symlink_to(place)
        assert sha256_file(path) == released.document()["artefacts"]["build/kernel/vmlinuz"]["sha256"]
        assert "build/kernel/vmlinuz: kernel: expected a directory, not a symbolic link" in released.refusal()
    finally:
        folder.unlink()
        aside.rename(folder)
    assert released.refusal() == ""


def edit_digest(document: dict[str, Any]) -> None:
    document["launch"][CONFIG["snp"]]["digests"][3]["launch_digest"] = "00" * 48


def edit_reference(document: dict[str, Any]) -> None:
    document["launch"][CONFIG["snp"]]["reference"]["minimum_tcb"] = "any"


def edit_settings(document: dict[str, Any]) -> None:
    document["launch"][CONFIG["snp"]]["settings"]["guest_policy"] = "0x20000"


def edit_production(document: dict[str, Any]) -> None:
    document["launch"][CONFIG["emulated"]]["production"] = True


def drop_digest(document: dict[str, Any]) -> None:
    del document["launch"][CONFIG["snp"]]["digests"][6]


def add_digest(document: dict[str, Any]) -> None:
    entries = document["launch"][CONFIG["snp"]]["digests"]
    entries.append({**entries[0], "launch_digest": "00" * 48})


def edit_package(document: dict[str, Any]) -> None:
    document["packages"]["kernel"][next(iter(document["packages"]["kernel"]))]["version"] = "0"


def drop_firmware(document: dict[str, Any]) -> None:
    document["refused"]["firmware"].popitem()


def drop_emulated(document: dict[str, Any]) -> None:
    document["refused"]["launch_digests"].popitem()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (edit_digest, "digests.3.launch_digest: the manifest says '0000"),
        (edit_reference, "reference.minimum_tcb: the manifest says 'any', the files give None"),
        (edit_settings, "settings.guest_policy: the manifest says '0x20000'"),
        (edit_production, "production: the manifest says True, the files give False"),
        (drop_digest, "digests.6: the manifest says 'nothing'"),
        (add_digest, "digests.7: the manifest says {"),
        (edit_package, "packages: kernel."),
        (drop_firmware, "refused: firmware."),
        (drop_emulated, "refused: launch_digests."),
    ],
)
def test_the_values_of_the_manifest_are_compared_with_the_files(
    released: Released, edit: Callable[[dict[str, Any]], None], said: str
) -> None:
    with released.kept(released.manifest, released.signature):
        document = released.document()
        released.resign(document)
        assert released.refusal(released.public) == ""
        edit(document)
        released.resign(document)
        # Even where the signature is right: a mistake of the owner is one, too.
        found = released.refusal(released.public)
    assert "1 difference\n" in found and said in found


@pytest.mark.parametrize("old", ["launch_digest", "kernel", "cmdline"])
def test_a_vm_config_that_does_not_match_its_files_is_named(released: Released, tmp_path: Path, old: str) -> None:
    path = released.project / CONFIG["snp"]
    config = released.built.config("snp")
    shutil.copyfile(config.launch.kernel.path, tmp_path / "vmlinuz")
    edits = {
        "launch_digest": (config.require_reference().launch_digest.hex(), "00" * 48, "says launch digest 0000"),
        "kernel": ("../boot/stage-1.efi", str(tmp_path / "vmlinuz"), "its kernel, .*, is not an artefact"),
        "cmdline": ('path = "cmdline"', 'path = "cmdline.emulated"', "its cmdline, .*, has SHA-256"),
    }
    before, after, said = edits[old]
    with released.kept(path, released.manifest, released.signature):
        text = path.read_text()
        assert before in text
        replace(path, text.replace(before, after).encode())
        document = released.document()
        document["artefacts"][CONFIG["snp"]] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
        released.resign(document)
        assert re.search(f"vm-config-verity.toml: {said}", released.refusal(released.public))


def test_only_the_signature_shows_that_an_attacker_made_the_manifest(released: Released, tmp_path: Path) -> None:
    changed = released.project / "build/bin/get_report"
    (tmp_path / "keys").mkdir()
    stranger = make_key(tmp_path / "keys")
    with released.kept(changed, released.manifest, released.signature):
        flipped(changed)
        document = released.document()
        document["artefacts"]["build/bin/get_report"]["sha256"] = sha256_file(changed)
        document.pop("type")
        replace(released.manifest, render_manifest(document))
        # The attack succeeds where no key is asked for, and that is said.
        assert released.refusal() == ""
        assert "is not a signature of manifest.json" in released.refusal(released.public)
        # Nothing in a manifest that is not the owner's is looked at, and no word of it is shown.
        result = released.built.doit("verify_manifest", f"MANIFEST_PUBLIC_KEY={released.public}", check=False)
        assert result.returncode != 0 and "is not a signature" in one_line(result.stdout)
        own = Released(released.built, stranger, public_half(stranger))
        own.resign(document)
        assert own.refusal(own.public) == ""
        assert "is not a signature of manifest.json" in released.refusal(released.public)
        released.signature.unlink()
        assert "not signed, expected a signature" in released.refusal(released.public)
        assert released.refusal() == ""
        replace(released.signature, bytes(1 << 20))
        assert "more than 1024 bytes" in released.refusal(released.public)
