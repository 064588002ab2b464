# SPDX-License-Identifier: Apache-2.0
"""The run on SEV-SNP hardware: refused on other machines; its packed record contains no key."""

import base64
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from sevsnp.e2e.hardware import hardware_test
from sevsnp.e2e.hardware_record import RECORDED, host_facts, pack_record, recorded_files
from sevsnp.errors import UserError
from sevsnp.keys.luks_key import make_key
from sevsnp.qemu import platforms
from sevsnp.vm_config.config import VmConfig, render_vm_config
from tests.conftest import copy_project
from tests.support.evidence import make_launch
from tests.support.secret_search import forms, search

UUID = "00000000-1111-2222-3333-444444444444"
# Assembled here, so that no scanner takes this file for one with a key in it.
PEM = "-----BEGIN " + "PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END " + "PRIVATE KEY-----\n"
OPENSSH = "openssh-key" + "-v1\0"


@pytest.mark.skipif(Path("/dev/sev").exists(), reason="this host may have SEV-SNP")
def test_a_host_without_snp_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    copy_project(tmp_path / "project")
    done = subprocess.run(
        [sys.executable, "-m", "doit", "hardware_test", "PLATFORM=emulated"],  # never emulated, whatever is set
        cwd=tmp_path / "project", capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("✗ snp host: ")]
    assert line.startswith("✗ snp host: this host ") and "start SEV-SNP guests: " in line
    verdict = json.loads((tmp_path / "project/build/check_host.json").read_text())
    assert f": {verdict['cause']}: " in line
    assert not (tmp_path / "project/build/snp-release").exists()
    assert not (tmp_path / "project/build/hardware-test.tar.gz").exists()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A machine on which nothing shows that SEV-SNP is missing."""
    parts = {}
    for name in ("_KVM", "_SNP_PARAMETER"):
        parts[name] = tmp_path / name
        parts[name].write_text("Y\n")
        monkeypatch.setattr(platforms, name, parts[name])
    return parts


def recorded(directory: Path) -> Path:
    """A record as a run leaves it, with the files that name the user's own."""
    for workflow in ("verity", "luks"):
        place = directory / "run" / workflow
        place.mkdir(parents=True)
        for name in RECORDED:
            (place / name).write_text(f"{workflow} {name}\n")
        (place / "refused").mkdir()
        (place / "refused/evidence.json").write_text("{}\n")
        (place / "ssh_config").write_text("IdentityFile /secret/place/user_ed25519\n")
        (place / "known_hosts").write_text("guest\n")
    (directory / "e2e.json").write_text('{"platform": "snp"}\n')
    return directory


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return recorded(tmp_path / "record")


@pytest.fixture
def keys(tmp_path: Path) -> list[Path]:
    """A disk key as setup makes it, and the owner's key."""
    make_key(tmp_path / "keys", UUID)
    owner = tmp_path / "owner_key.pem"
    owner.write_text(PEM)
    owner.chmod(0o600)
    return [owner, tmp_path / "keys/volumes" / f"{UUID}.key"]


def unpacked(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        assert {(one.uid, one.gid, one.mtime, one.uname) for one in members} == {(0, 0, 0, "")}
        return {one.name: stream.read() for one in members if (stream := tar.extractfile(one))}


def test_results_evidence_and_logs_are_packed_and_nothing_else(record: Path, keys: list[Path], tmp_path: Path) -> None:
    config, checked = tmp_path / "vm-config-verity.toml", tmp_path / "check_host.json"
    config.write_text("format = 1\n")
    checked.write_text("{}\n")
    (record / "run/verity/qemu.log").unlink()
    (record / "run/verity/qemu.log").symlink_to(keys[1])  # a link is not followed
    log = record / "run/luks/serial.log"
    log.write_bytes(b"old\n" + bytes(16 << 20))
    output = tmp_path / "out/hardware-test.tar.gz"
    names = pack_record(recorded_files(record, [config, tmp_path / "none.toml"], checked), keys, output)
    found = unpacked(output)
    expected = {f"run/{workflow}/{name}" for workflow in ("verity", "luks") for name in RECORDED}
    expected |= {f"run/{workflow}/refused/evidence.json" for workflow in ("verity", "luks")}
    expected = (expected - {"run/verity/qemu.log"}) | {"e2e.json", "check_host.json", "vm-config-verity.toml"}
    assert {name.removeprefix("./hardware-test/") for name in found} == expected
    assert {f"./{name}" for name in names} == set(found)
    assert found["./hardware-test/run/luks/serial.log"] == bytes(16 << 20)  # the end of a long log
    assert output.stat().st_mode & 0o777 == 0o600
    everything = b"".join(found.values())
    for key in keys:
        assert search(everything, key.read_bytes()) == []
    assert b"user_ed25519" not in everything and b"PRIVATE" not in everything


def planted(keys: list[Path]) -> dict[str, bytes]:
    disk = {f"the disk key as {name}": form for name, form in forms(keys[1].read_bytes()).items()}
    inner = base64.b64encode(b"xx" + keys[1].read_bytes() + b"yy")
    return {
        **disk,
        "the disk key inside other base64": inner,
        "the owner's key": keys[0].read_bytes(),
        "an RSA key": PEM.replace("PRIVATE", "RSA " + "PRIVATE").encode(),
        "an OpenSSH key": OPENSSH.encode(),
        "an OpenSSH key in base64": base64.b64encode(OPENSSH.encode()),
    }


def test_a_key_in_a_file_ends_the_packing(record: Path, keys: list[Path], tmp_path: Path) -> None:
    """Control: the first packing is of the same record without the key."""
    log = record / "run/luks/serial.log"
    before = log.read_bytes()
    output = tmp_path / "out/hardware-test.tar.gz"
    pack_record(recorded_files(record, [], tmp_path / "none"), keys, output)
    output.unlink()
    for what, data in planted(keys).items():
        log.write_bytes(before + b"text " + data + b" text\n")
        with pytest.raises(UserError, match="nothing was packed") as found:
            pack_record(recorded_files(record, [], tmp_path / "none"), keys, output)
        assert found.value.message.startswith(f"{log}: found "), what
        assert not output.exists()


def test_facts_of_the_host(tmp_path: Path) -> None:
    for name, text in {
        "proc/cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC\nmicrocode\t: 0xa\nflags\t: x\n"
        "\nprocessor\t: 1\nmicrocode\t: 0xb\n",
        "proc/sys/kernel/osrelease": "6.12.1\n",
        "proc/sys/kernel/hostname": "secret-name\n",
        "sys/module/kvm_amd/parameters/sev_snp": "Y\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert host_facts("QEMU 10", tmp_path) == {
        "kernel": "6.12.1",
        "cpu": {"vendor_id": "AuthenticAMD", "model name": "EPYC", "microcode": "0xa"},
        "kvm_amd": {"sev_snp": "Y"},
        "qemu": "QEMU 10",
    }
    assert host_facts("", tmp_path / "none")["kernel"] == ""


@pytest.mark.usefixtures("machine")
def test_the_record_of_a_failed_run_is_packed_too(keys: list[Path], tmp_path: Path) -> None:
    """QEMU on this machine starts no guest with SEV-SNP: the probe reports this, and no emulation is used."""
    qemu = tmp_path / "qemu"
    qemu.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "QEMU emulator version 10.0.2" && exit\nexit 1\n')
    qemu.chmod(0o755)
    directory = tmp_path / "configs"
    directory.mkdir()
    config = VmConfig(directory / "vm-config-verity.toml", make_launch(directory, platform="snp"), None)
    config.source.write_text(render_vm_config(config))
    archive, record = tmp_path / "hardware-test.tar.gz", recorded(tmp_path / "build/hardware-test")
    with pytest.raises(UserError, match="PLATFORM=snp: this host cannot run SEV-SNP guests: ") as found:
        hardware_test(
            record=record, archive=archive, configs=[config.source], checked=tmp_path / "none", keys=keys[:1],
            key_dir=tmp_path / "keys", qemu=qemu, bundle=tmp_path, luks_bundle=tmp_path, directory=directory,
            luks_directory=directory, memory=1 << 30, probe_cache=tmp_path / "probe.json", identity=keys[0],
            user="user", template=tmp_path, luks={},
        )  # fmt: skip
    assert found.value.message.endswith(f"what to send: {archive}")
    packed = {name.removeprefix("./hardware-test/"): data for name, data in unpacked(archive).items()}
    assert set(packed) == {"failure.txt", "host.json", "vm-config-verity.toml"}  # nothing of an earlier run
    assert packed["failure.txt"].startswith(b"PLATFORM=snp: this host cannot run SEV-SNP guests: ")
    assert json.loads(packed["host.json"])["qemu"] == "QEMU emulator version 10.0.2"
