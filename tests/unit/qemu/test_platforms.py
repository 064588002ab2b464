# SPDX-License-Identifier: Apache-2.0
"""The choice of the platform: the probes, their time limit, their remembered results, and old versions of QEMU."""

import json
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sevsnp.errors import UserError
from sevsnp.host.bundle_run import main as run_bundle
from sevsnp.qemu import platforms
from sevsnp.qemu.confine import Access
from sevsnp.qemu.platforms import choose
from sevsnp.qemu.process import OLDEST, check_version, start
from sevsnp.stage.image import stage_image
from sevsnp.stage.tables import all_tables
from sevsnp.system.files import sha256_file
from sevsnp.vm_config.config import Disk, File, Launch, VmConfig, render_vm_config
from tests.support.evidence import make_launch
from tests.unit.stage.test_stage_image import linux

PROJECT = Path(__file__).resolve().parents[3]

EVERYTHING = Access(everything=True)
VERSION = 'if [ "$1" = --version ]; then echo "QEMU emulator version 10.0.2"; exit; fi'


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    made = make_launch(tmp_path, platform="snp", disks=())
    for name in ("firmware", "kernel"):
        (tmp_path / name).write_bytes(b"")
    firmware, file = (File(tmp_path / name, "0" * 64) for name in ("firmware", "kernel"))
    return replace(made, firmware=firmware, kernel=file, initrd=file, cmdline=file)


class Host:
    """A machine with a QEMU that counts how often it was started and does as ``script`` says."""

    def __init__(self, directory: Path) -> None:
        self.qemu, self.probe_cache, self.calls = (
            directory / "qemu",
            directory / "run" / "platform.json",
            directory / "calls",
        )
        self.set("exit 1")

    def set(self, script: str) -> None:
        self.qemu.unlink(missing_ok=True)  # another file, as a new version would be
        self.qemu.write_text(f'#!/bin/sh\n{VERSION}\necho "$@" >>"{self.calls}"\n{script}\n')
        self.qemu.chmod(0o755)

    def started(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def choose(self, requested: str, launch: Launch) -> tuple[str, str]:
        chosen = choose(requested, launch, self.qemu, self.probe_cache)
        return chosen.name, chosen.accelerator


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A machine with a /dev/kvm that may be opened, and no SEV-SNP."""
    (tmp_path / "kvm").write_bytes(b"")
    monkeypatch.setattr(platforms, "_KVM", tmp_path / "kvm")
    monkeypatch.setattr(platforms, "_SNP_PARAMETER", tmp_path / "none")
    # This QEMU writes down that it was started; a real one may not write there.
    monkeypatch.setattr(
        platforms, "start", lambda qemu, words, access, **rest: start(qemu, words, EVERYTHING, **rest)
    )  # fmt: skip
    return Host(tmp_path)


def test_without_kvm_no_qemu_is_started(host: Host, launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "kvm").unlink()
    for requested in ("auto", "emulated"):
        assert host.choose(requested, launch) == ("emulated", "tcg")
    assert host.started() == []
    with pytest.raises(UserError, match="PLATFORM=snp: this host cannot run SEV-SNP guests: ") as caught:
        host.choose("snp", launch)
    assert "PLATFORM=emulated" in caught.value.hint


def test_a_kvm_that_boots_speeds_up_the_emulation(host: Host, launch: Launch) -> None:
    host.set("exit 0")
    assert host.choose("auto", launch) == ("emulated", "kvm")
    assert len(host.started()) == 1 and "-accel kvm" in host.started()[0]


def test_the_probe_boots_the_kernel_inside_a_stage(host: Host, launch: Launch, tmp_path: Path) -> None:
    """The probe uses QEMU's own firmware, which does not start a stage."""
    launch.kernel.path.write_bytes(stage_image(b"code", all_tables(1), linux()))
    # Words of QEMU's command line: the one behind -kernel is the file, whose content is kept.
    host.set(f'for word; do [ "$last" = -kernel ] && cp "$word" "{tmp_path}/tried"; last=$word; done')
    assert host.choose("auto", launch) == ("emulated", "kvm")
    assert (tmp_path / "tried").read_bytes() == linux()


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$"])
def test_a_kvm_that_fails_is_not_used(host: Host, launch: Launch, script: str) -> None:
    host.set(script)
    assert host.choose("auto", launch) == ("emulated", "tcg")


def test_a_kvm_that_hangs_is_given_up(host: Host, launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    assert platforms._KVM_SECONDS == 5
    monkeypatch.setattr(platforms, "_KVM_SECONDS", 0.5)
    host.set("exec sleep 60")
    started: list[subprocess.Popen[bytes]] = []
    usual = platforms.start  # type: ignore[attr-defined]

    def noted(*words: Any, **more: Any) -> "subprocess.Popen[bytes]":
        started.append(usual(*words, **more))
        return started[-1]

    monkeypatch.setattr(platforms, "start", noted)
    assert host.choose("auto", launch) == ("emulated", "tcg")
    # It did not end by itself, which would have been after a minute.
    assert [process.returncode for process in started] in ([-signal.SIGTERM], [-signal.SIGKILL])
    assert choose("auto", launch, host.qemu, host.probe_cache).reason.endswith("in 0 s")


def test_results_of_probes_are_remembered(host: Host, launch: Launch) -> None:
    for _ in range(3):
        host.choose("auto", launch)
    assert len(host.started()) == 1
    assert len(json.loads(host.probe_cache.read_text())) == 1
    host.choose("emulated", launch)
    assert len(host.started()) == 1


def test_another_qemu_is_probed_again(host: Host, launch: Launch) -> None:
    assert host.choose("auto", launch) == ("emulated", "tcg")
    host.set("exit 0")
    os.utime(host.qemu, ns=(0, host.qemu.stat().st_mtime_ns + 1))
    assert host.choose("auto", launch) == ("emulated", "kvm")
    assert len(host.started()) == 2


def test_after_a_reboot_of_the_machine_it_is_probed_again(
    host: Host, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.choose("auto", launch)
    (tmp_path / "boot_id").write_text("another\n")
    monkeypatch.setattr(platforms, "_BOOT_ID", tmp_path / "boot_id")
    host.choose("auto", launch)
    assert len(host.started()) == 2


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[]", b"7", b'"text"'])
def test_damaged_results_of_probes_are_replaced(host: Host, launch: Launch, data: bytes) -> None:
    host.probe_cache.parent.mkdir()
    host.probe_cache.write_bytes(data)
    assert host.choose("auto", launch) == ("emulated", "tcg")
    assert len(host.started()) == 1 and json.loads(host.probe_cache.read_text())


@pytest.mark.parametrize(("said", "name"), [("Y\n", "snp"), ("1\n", "snp"), ("N\n", "emulated"), ("0\n", "emulated")])
def test_snp_is_chosen_if_a_guest_boots_with_it(
    host: Host, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, name: str
) -> None:
    (tmp_path / "sev_snp").write_text(said)
    monkeypatch.setattr(platforms, "_SNP_PARAMETER", tmp_path / "sev_snp")
    host.set("exit 0")
    assert host.choose("auto", launch) == (name, "kvm")
    assert any("sev-snp-guest" in line for line in host.started()) == (name == "snp")
    # Asked for, the emulation it is, on the same machine.
    assert host.choose("emulated", launch) == ("emulated", "kvm")


def test_a_kernel_parameter_alone_does_not_mean_snp(
    host: Host, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sev_snp").write_text("Y\n")
    monkeypatch.setattr(platforms, "_SNP_PARAMETER", tmp_path / "sev_snp")
    host.set('case "$*" in *sev-snp-guest*) exit 1;; esac')
    assert host.choose("auto", launch) == ("emulated", "kvm")
    with pytest.raises(UserError, match="a test kernel did not boot with SEV-SNP"):
        host.choose("snp", launch)


@pytest.mark.parametrize(
    ("said", "snp", "emulated"),
    [
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)", True, True),
        ("QEMU emulator version 11.0.0", True, True),
        ("QEMU emulator version 10.0.0-rc1", True, True),
        ("QEMU emulator version 9.1.0", True, False),
        ("QEMU emulator version 9.0.4", False, False),
        ("QEMU emulator version 8.2.2 (Debian 1:8.2.2+ds-0ubuntu1)", False, False),
        ("QEMU 10", False, False),
        ("", False, False),
    ],
)
def test_versions(tmp_path: Path, said: str, snp: bool, emulated: bool) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\necho '{said}'\n")
    qemu.chmod(0o755)
    for platform, accepted in (("snp", snp), ("emulated", emulated)):
        if accepted:
            check_version(qemu, platform)
        else:
            with pytest.raises(UserError, match=r"expected (\d+\.\d or newer|QEMU emulator version)"):
                check_version(qemu, platform)


def test_no_qemu_at_all(tmp_path: Path, host: Host, launch: Launch) -> None:
    host.qemu.unlink()
    with pytest.raises(UserError, match="qemu: no such program"):
        host.choose("auto", launch)
    assert not host.probe_cache.exists() or "no such program" not in host.probe_cache.read_text()
    (tmp_path / "qemu").write_text("no program")
    with pytest.raises(UserError, match="qemu: no such program"):
        check_version(tmp_path / "qemu", "snp")


def test_all_texts_name_the_same_versions_of_qemu() -> None:
    texts = [*(PROJECT / "docs").glob("*.md"), PROJECT / "README.md", PROJECT / "templates" / "bundle-run"]
    found = {path.name: set(re.findall(r"QEMU (\d+(?:\.\d+)?) or newer", path.read_text())) for path in texts}
    both = {"9.1", "10"}
    assert {tuple(int(part) for part in text.split(".")) for text in both} == {OLDEST["snp"], OLDEST["emulated"][:1]}
    assert {name: versions for name, versions in found.items() if versions} == {
        "README.md": both, "hardware.md": both, "bundle-run": both,
    }  # fmt: skip


@pytest.mark.parametrize(("words", "said"), [((), "no /dev/kvm"), (("--platform", "emulated"), "asked for")])
def test_a_bundle_names_the_reason_for_the_emulation(
    host: Host,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    said: str,
) -> None:
    """And does not claim that the user asked for the emulation."""
    monkeypatch.setattr(platforms, "_KVM", tmp_path / "none")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "root.img").write_bytes(bytes(4096))
    disk = Disk("root", bundle / "root.img", 4096, sha256_file(bundle / "root.img"))
    for name in ("launch.toml", "launch.emulated.toml"):
        platform = "emulated" if "emulated" in name else "snp"
        launch = make_launch(bundle, platform=platform, disks=(disk,))
        made = VmConfig(bundle / name, launch, None)
        made.source.write_text(render_vm_config(made))
    # The stand-in for QEMU ends at once.
    assert run_bundle([*words, "--qemu", str(host.qemu)], bundle) == 1
    out, err = capsys.readouterr()
    assert out.startswith(f"platform emulated: {said}\n"), (out, err)
