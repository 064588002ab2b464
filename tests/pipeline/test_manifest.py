# SPDX-License-Identifier: Apache-2.0
"""`doit manifest` on a real build: its list of files, its launch digests, and its signature."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sevsnp.measurement.make_cmdline import make_verity_cmdline
from sevsnp.release.launch import USUAL_VCPUS
from sevsnp.stage.image import stage_image
from sevsnp.stage.tables import all_tables
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import VmConfig
from tests.conftest import Built
from tests.support.copies import copy_built, one_line
from tests.support.released import CONFIG, LINK, Released, release, replace
from tests.unit.keys.test_signature import CHECK, encrypted_key, make_key, needs_openssl, openssl, public_half
from tests.unit.release.test_release_sbom import schema_errors

pytestmark = needs_openssl

LUKS = tuple(
    f"build/luks/{name}"
    for name in (
        "luks.img", "header.bin", "header.sha256", "tables.sha256", "cmdline", "cmdline.emulated",
        "vm-config-luks.toml", "vm-config-luks.emulated.toml",
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def released(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Released:
    return release(built, tmp_path_factory.mktemp("released"))


def test_the_manifest_lists_every_built_file(released: Released) -> None:
    document = released.document()
    artefacts = document["artefacts"]
    bundle = {
        path.relative_to(released.project).as_posix()
        for path in (released.project / "build/host-bundle").rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    assert LINK in bundle and bundle <= set(artefacts)
    assert set(artefacts) - bundle == {
        "packages.lock", "requirements.lock", "build/snp-release/packages.json",
        "build/debs/initramfs/packages.json", "build/debs/guest/packages.json", "build/debs/appliance/packages.json",
        "build/firmware/OVMF.fd", "build/kernel/vmlinuz", "build/kernel/version",
        "build/boot/stage.bin", "build/boot/acpi-1.bin", "build/boot/stage-1.efi",
        "build/initramfs.cpio.zst", "build/initramfs.emulated.cpio.zst", "build/initramfs.plain.cpio.zst",
        "build/initramfs.appliance.cpio.zst", *LUKS,
        "build/guest/packages.tar", "build/guest/rootfs.tar", "build/guest/sevsnptest.qcow2",
        "build/verity/verity.img", "build/verity/hash-tree.img", "build/verity/roothash.txt",
        "build/verity/cmdline", "build/verity/cmdline.emulated", *CONFIG.values(), "build/bin/get_report",
    }  # fmt: skip
    for name, facts in artefacts.items():
        path = released.project / name
        if "link" in facts:
            assert facts == {"link": os.readlink(path)} and name == LINK
        else:
            assert facts == {"size": path.stat().st_size, "sha256": sha256_file(path)}


def test_the_manifest_has_no_path_of_this_machine_and_no_secret(released: Released) -> None:
    body = released.key.read_text().splitlines()[1].encode()
    assert body in released.key.read_bytes()
    left = [released.manifest, released.signature, released.project / "build/sbom.cdx.json"]
    for path in (*left, *released.project.glob(".doit.db*")):
        data = path.read_bytes()
        assert body not in data, path
        assert path.name.startswith(".doit.db") or os.fsencode(released.project) not in data, path
    shown = released.built.doit("manifest", f"MANIFEST_KEY={released.key}").stdout
    assert body.decode() not in shown and "signed" in shown


def test_the_manifest_has_packages_versions_and_settings(released: Released) -> None:
    document = released.document()
    lock = tomllib.loads((released.project / "packages.lock").read_text())["sets"]
    assert document["packages"] == {
        name: {
            item["name"]: {key: item[key] for key in ("version", "architecture", "sha256")}
            for item in table["packages"]
        }
        for name, table in lock.items()
        if name != "compiler"  # FIRMWARE=source alone is made with it
    }
    for name in ("doit", "cryptography", "zstandard"):
        assert document["python"]["distributions"][name] == importlib.metadata.version(name)
    entry = document["launch"][CONFIG["snp"]]
    assert (entry["workflow"], entry["platform"], entry["production"]) == ("verity", "snp", True)
    assert document["launch"][CONFIG["emulated"]]["production"] is False
    launch = released.built.config("snp").launch
    assert entry["settings"]["host_data"] == launch.host_data.hex()
    assert int(entry["settings"]["guest_policy"], 16) == launch.guest_policy
    assert entry["cmdline"] == launch.cmdline.path.read_text()
    assert document["product"]["name"] == "openend2e-sevsnp"
    assert document["source"] == {"commit": None, "clean": None}  # the copy is no checkout


def test_the_manifest_has_the_commit_and_whether_the_checkout_is_clean(released: Released) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git here")
    repository = released.project / ".git"

    def git(*words: str) -> str:
        argv = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example", *words]
        return subprocess.run(argv, cwd=released.project, capture_output=True, text=True, check=True).stdout.strip()

    with released.kept(released.manifest, released.signature, released.project / "new"):
        try:
            git("init", "-q")
            assert state(released) == {"commit": None, "clean": None}
            git("add", "-A")
            git("commit", "-q", "-m", "all of it")
            commit = git("rev-parse", "HEAD")
            assert state(released) == {"commit": commit, "clean": True}
            (released.project / "new").touch()
            assert state(released) == {"commit": commit, "clean": False}
        finally:
            shutil.rmtree(repository)


def state(released: Released) -> Any:
    released.built.doit("manifest")
    return released.document()["source"]


def test_the_sbom_is_valid_and_named_by_digest(released: Released) -> None:
    sbom = released.project / "build/sbom.cdx.json"
    assert released.document()["sbom"] == {
        "path": "build/sbom.cdx.json", "size": sbom.stat().st_size, "sha256": sha256_file(sbom)
    }  # fmt: skip
    document = json.loads(sbom.read_bytes())
    assert schema_errors(document) == []
    sets = {item["value"] for component in document["components"] for item in component["properties"]}
    assert sets == {"appliance", "tools", "firmware", "kernel", "initramfs", "guest", "python"}


def test_the_same_build_gives_the_same_bytes(built: Built, released: Released, tmp_path: Path) -> None:
    again = dataclasses.replace(released, built=copy_built(built, tmp_path / "another place"))
    again.built.doit("manifest", f"MANIFEST_KEY={again.key}", TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="5")
    for name in ("manifest.json", "manifest.json.sig", "sbom.cdx.json"):
        assert (again.project / "build" / name).read_bytes() == (released.project / "build" / name).read_bytes()
    again.built.doit("manifest", SOURCE_DATE_EPOCH="86400")
    assert again.document() | {"created": None, "sbom": None} == released.document() | {"sbom": None}
    assert again.document()["created"] == "1970-01-02T00:00:00Z"
    assert b'"timestamp": "1970-01-02T00:00:00Z"' in (again.project / "build/sbom.cdx.json").read_bytes()
    assert "SOURCE_DATE_EPOCH" in one_line(again.built.doit("manifest", check=False, SOURCE_DATE_EPOCH="now").stdout)


def cmdline(config: VmConfig, acpi: bool, output: Path) -> str:
    """The command line as the setup task makes it from the image and the settings, with ACPI or without."""
    data = next(disk.path for disk in config.launch.disks if disk.role == "verity-data")
    make_verity_cmdline(
        image=data, roothash=data.with_name("roothash.txt"), label="verity root", rootfs="ext4", writable="overlay",
        tmpfs={"etc": 1 << 30, "home": 8 << 30, "var": 2 << 30, "tmp": 1 << 30}, acpi=acpi,
        platform=config.launch.platform, output=output,
    )  # fmt: skip
    return output.read_text()


@pytest.mark.parametrize("platform", CONFIG)
def test_launch_digests_are_those_of_sev_snp_measure(released: Released, tmp_path: Path, platform: str) -> None:
    guest = pytest.importorskip("sevsnpmeasure.guest", reason="sev-snp-measure is not installed")
    from sevsnpmeasure.vcpu_types import CPU_SIGS

    config = released.built.config(platform)
    launch = config.launch
    entries = released.document()["launch"][CONFIG[platform]]["digests"]
    assert tuple(entry["vcpus"] for entry in entries) == USUAL_VCPUS
    line = cmdline(config, True, tmp_path / "cmdline")
    for entry in entries:
        vcpus = entry["vcpus"]
        assert entry["acpi"] is True
        assert entry["cmdline_sha256"] == hashlib.sha256(line.encode()).hexdigest()
        stage = tmp_path / "stage"
        code, kernel = (released.project / "build" / name for name in ("boot/stage.bin", "kernel/vmlinuz"))
        stage.write_bytes(stage_image(code.read_bytes(), all_tables(vcpus), kernel.read_bytes()))
        # Control: the digest depends on the tables that the stage has.
        digests = [
            guest.snp_calc_launch_digest(
                vcpus, CPU_SIGS[launch.vcpu_model], str(launch.firmware.path), str(started),
                str(launch.initrd.path), line, launch.guest_features, "",
            ).hex()
            for started in (stage, kernel)
        ]  # fmt: skip
        assert entry["launch_digest"] == digests[0] != digests[1]
    reference = config.require_reference()
    assert entries[0]["launch_digest"] == reference.launch_digest.hex()


@pytest.mark.full
def test_launch_digests_for_more_vcpus_are_those_of_a_setup_with_them(
    built: Built, released: Released, tmp_path: Path
) -> None:
    other = dataclasses.replace(released, built=copy_built(built, tmp_path / "project"))
    usual = {name: released.document()["launch"][name]["digests"] for name in CONFIG.values()}
    other.built.doit("setup_verity", "CPUS=4")
    # The volume is still that of one vCPU, which starts with another stage; it does not belong to this release.
    refused = other.built.doit("manifest", "CPUS=4", check=False).stdout
    assert "build/luks/vm-config-luks.toml: its kernel, build/boot/stage-1.efi, is not an artefact" in one_line(refused)
    assert "make it again: ./doitw setup_luks manifest CPUS=4" in refused
    shutil.rmtree(other.built.build / "luks")
    for platform, name in CONFIG.items():
        config = other.built.config(platform)
        assert config.launch.vcpus == 4
        (entry,) = [item for item in usual[name] if item["vcpus"] == 4]
        assert config.require_reference().launch_digest.hex() == entry["launch_digest"]
        assert config.launch.cmdline.sha256 == entry["cmdline_sha256"]
    other.built.doit("manifest", "CPUS=4")
    assert {name: entry["digests"] for name, entry in other.document()["launch"].items()} == usual
    other.built.doit("manifest", "CPUS=3")
    own = {name: entry["digests"] for name, entry in other.document()["launch"].items()}
    other.built.doit("manifest", "CPUS=3", "ACPI=on")
    for name, entry in other.document()["launch"].items():
        for digests in (own[name], entry["digests"]):
            assert [item["vcpus"] for item in digests] == [1, 2, 3, 4, 8, 16, 32, 64]
            assert all(item["acpi"] for item in digests)
        assert [item for item in own[name] if item["vcpus"] != 3] == usual[name]
        assert not {item["launch_digest"] for item in own[name]} & {item["launch_digest"] for item in entry["digests"]}
    assert other.refusal() == ""
    other.built.doit("manifest", "ACPI=off")
    for entry in other.document()["launch"].values():
        assert [(item["vcpus"], item["acpi"]) for item in entry["digests"]] == [(1, False)]
    assert other.refusal() == ""


# Every run of the unit tests signs with each kind.
@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.full] * (kind != "ed25519")) for kind in CHECK])
def test_stock_tools_check_the_signature(released: Released, tmp_path: Path, kind: str) -> None:
    key = make_key(tmp_path, kind)
    public = public_half(key)
    with released.kept(released.manifest, released.signature):
        released.built.doit("manifest", f"MANIFEST_KEY={key}")
        paths = {"public": public, "data": released.manifest, "signature": released.signature}
        assert openssl(CHECK[kind], True, **paths).returncode == 0
        assert f"signed by {public}" in released.built.doit("verify_manifest", f"MANIFEST_PUBLIC_KEY={public}").stdout
        replace(released.manifest, released.manifest.read_bytes() + b"\n")
        assert openssl(CHECK[kind], False, **paths).returncode != 0


def test_an_old_signature_is_removed(released: Released) -> None:
    with released.kept(released.manifest, released.signature):
        assert released.signature.exists()
        released.built.doit("manifest")
        assert not released.signature.exists()


@pytest.mark.parametrize("fault", ["mode", "encrypted", "none", "public"])
def test_a_key_that_cannot_sign_is_refused_before_anything_changes(
    released: Released, tmp_path: Path, fault: str
) -> None:
    key = encrypted_key(tmp_path, "pkcs8") if fault == "encrypted" else make_key(tmp_path)
    said = {
        "mode": "mode 0644, expected 0600",
        "encrypted": "no terminal to ask for its password",
        "none": "cannot be read",
        "public": "not a private key",
    }[fault]
    if fault == "mode":
        key.chmod(0o644)
    elif fault == "none":
        key.unlink()
    elif fault == "public":
        public_half(key).replace(key)
        key.chmod(0o600)
    before = released.manifest.read_bytes(), released.signature.read_bytes()
    result = subprocess.run(
        [sys.executable, "-m", "doit", "manifest", f"MANIFEST_KEY={key}"],
        cwd=released.project,
        env={**os.environ, "CONFIG_DIR": str(released.built.config_dir)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
        start_new_session=True,  # which has no terminal, wherever the tests run
    )
    assert result.returncode != 0 and said in one_line(result.stdout)
    assert (released.manifest.read_bytes(), released.signature.read_bytes()) == before
