# SPDX-License-Identifier: Apache-2.0
"""Hints about what is built: packages, firmware, the manifest, platforms."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sevsnp.bench.attestation import bench_attestation
from sevsnp.firmware.make import make_firmware
from sevsnp.host_setup.platform_status import read_status
from sevsnp.images.guest_packages import make_packages_layer, read_packages
from sevsnp.packages.kernel import unpack_kernel
from sevsnp.qemu.platforms import choose
from sevsnp.vm_config.config import read_vm_config
from tests.conftest import Built
from tests.remedies.test_launch import CONFIG, as_nobody, needs_openssl, replace
from tests.support.debian_repository import build_deb
from tests.support.table import Told, failure, remedies


@pytest.mark.full
@needs_openssl
@remedies("sevsnp.release.verify", "make one with: ./doitw manifest", "sign with: ./doitw manifest MANIFEST_KEY=FILE")
def test_a_missing_or_unsigned_manifest(told: Told, checkout: Built) -> None:
    told.mends(lambda: told.doitw("verify_manifest"))
    keys = "(umask 077; openssl genpkey -algorithm ed25519 -out m.pem) && openssl pkey -in m.pem -pubout -out m.pub.pem"
    assert told.shell(keys).returncode == 0
    told.mends(lambda: told.doitw("verify_manifest", "MANIFEST_PUBLIC_KEY=m.pub.pem"), FILE="m.pem")


@pytest.mark.full  # makes an encrypted volume
@remedies("sevsnp.release.manifest", "make it again: ./doitw {}manifest")
def test_a_build_that_no_manifest_can_describe(told: Told, checkout: Built) -> None:
    replace(checkout.build / "luks" / "cmdline", b"another")
    told.mends(lambda: told.doitw("manifest"))


@remedies("sevsnp.images.guest_packages", "run: ./doitw packages")
def test_no_guest_packages(told: Told, checkout: Built) -> None:
    shutil.rmtree(checkout.build / "debs" / "guest")
    told.mends(lambda: read_packages(sorted((checkout.build / "debs" / "guest").glob("*.deb"))))


@pytest.mark.full  # installs a guest's packages
@remedies(
    "sevsnp.images.guest_packages", "the set of packages may not be whole; fetch what is missing: ./doitw packages"
)
def test_a_guest_package_that_is_missing(told: Told, checkout: Built, tmp_path: Path) -> None:
    debs = checkout.build / "debs" / "guest"
    for path in debs.glob("libc6_*.deb"):
        path.unlink()
    told.mends(lambda: make_packages_layer(debs, tmp_path / "layer.tar"))


@pytest.mark.full
@remedies("sevsnp.packages.kernel", "give a linux-image package for amd64, with its modules, as KERNEL_DEB=")
def test_a_package_without_a_kernel(told: Told, checkout: Built, tmp_path: Path) -> None:
    [kernel] = (checkout.build / "snp-release" / "linux" / "guest").glob("linux-image-*.deb")
    other = build_deb(tmp_path, "other")
    told.instead(
        lambda: unpack_kernel(deb=other, output=tmp_path / "kernel"),
        lambda: unpack_kernel(deb=kernel, output=tmp_path / "kernel"),
    )


@pytest.mark.full  # packs the firmware twice
@remedies(
    "sevsnp.firmware.make",
    "restore the ovmf-amdsev lines of packages.lock: git checkout packages.lock && ./doitw packages",
    "the pinned Python and its liblzma make the same again: ./doitw packages",
)
def test_changed_inputs_of_the_firmware(told: Told, checkout: Built, tmp_path: Path) -> None:
    stock, python = checkout.build / "snp-release" / "usr/share/ovmf/OVMF.amdsev.fd", checkout.tools / "python3"
    git = "git -c user.name=a -c user.email=a@b"
    assert told.shell(f"git init -q . && git add packages.lock && {git} commit -qm x").returncode == 0

    def make() -> None:
        make_firmware(stock=stock, python=python, output=tmp_path / "OVMF.fd")

    replace(stock, b"another build")
    told.mends(make)
    replace(python, b"#!/bin/sh\nhead -c 9000000\n")  # as a compressor that does not get it as small
    python.chmod(0o755)
    told.mends(make)
    shutil.rmtree(checkout.project / ".git")


@remedies("sevsnp.bench.attestation", "run: ./doitw _firmware")
def test_a_measurement_without_firmware(told: Told, checkout: Built) -> None:
    firmware = checkout.build / "firmware" / "OVMF.fd"
    firmware.unlink()

    def bench() -> None:
        bench_attestation(firmware=firmware, results=Path("/dev/null/results"))

    told.obey(told.hint(bench))
    with pytest.raises(OSError, match="/dev/null"):  # past the firmware, to results that cannot be written
        bench()


@remedies("sevsnp.qemu.platforms", "use PLATFORM=emulated, or see docs/hardware.md")
def test_no_hardware(told: Told, checkout: Built, tmp_path: Path) -> None:
    if Path("/dev/sev").exists():
        pytest.skip("this host has SEV hardware")

    def chosen(platform: str) -> Callable[[], object]:
        launch = read_vm_config(checkout.project / CONFIG).launch
        return lambda: choose(platform, launch, checkout.qemu, tmp_path / "answers.json")

    hint = told.hint(chosen("snp"))
    chosen(hint.partition("PLATFORM=")[2].partition(",")[0])()
    assert (checkout.project / hint.rpartition("see ")[2]).is_file()


@remedies("sevsnp.host_setup.platform_status", "run it as root, or as a user who may open it")
def test_a_device_of_the_secure_processor_for_root_alone(told: Told, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can be root")
    device = tmp_path / "sev"
    device.touch(0o600)
    told.hint(lambda: as_nobody(lambda: read_status(device)))
    assert "this user may not open it" not in failure(lambda: read_status(device))
