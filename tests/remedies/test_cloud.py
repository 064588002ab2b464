# SPDX-License-Identifier: Apache-2.0
"""Hints about guests from cloud images; all steps from the image to a root that can be verified."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from sevsnp.host.state import running
from sevsnp.images.cloud_guest import cloud_config, fetch_cloud_image, make_cloud_guest
from tests.conftest import Built
from tests.support.cloud_image import cloud_image
from tests.support.table import Told, remedies
from tests.support.waiting import wait_until

LOGIN_SECONDS = 1200.0


@remedies("sevsnp.images.cloud_guest", "remove {}")
def test_users_in_the_cloud_config(told: Told, tmp_path: Path) -> None:
    template = tmp_path / "cloud-config.yaml"
    template.write_text("users: [default]\nssh_pwauth: false\n")
    told.mended(lambda: cloud_config(template, "key"), lambda: template.write_text("ssh_pwauth: false\n"))


@remedies(
    "sevsnp.images.cloud_guest", "choose one: CLOUD_IMAGE=…", "give the one that its maker says: CLOUD_IMAGE_SHA256=…"
)
def test_missing_settings_for_a_cloud_image(told: Told, checkout: Built, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes(1 << 20))

    def make(given: Path | None) -> Callable[[], None]:
        return lambda: make_cloud_guest(
            sha256="", size=1 << 24, user_data=checkout.project / "templates" / "cloud-config.yaml",
            authorized_key=checkout.keys.user_public, tools=checkout.tools, output=tmp_path / "disk.qcow2",
            seed=tmp_path / "seed.img", image=given,
        )  # fmt: skip

    told.instead(make(None), make(image))
    told.hint(
        lambda: fetch_cloud_image(
            uri="https://192.0.2.1/a.qcow2", sha256="", cache_dir=str(tmp_path), output=tmp_path / "image"
        )
    )


@remedies("sevsnp.host.plain", "boot it by its own boot loader: ./doitw run_sev_snp GUEST_FROM=cloud-image")
def test_a_direct_boot_of_a_cloud_image(told: Told, clone: Path) -> None:
    """The advised command gets as far as the disk, which is missing here. Control: another image."""
    words = told.hint(lambda: told.doitw("run_sev_snp_direct_boot", "GUEST_FROM=cloud-image")).rpartition(": ")[2]
    assert "build/guest/cloud-set-up.qcow2: no such file" in told.shell(words).stdout
    other = told.doitw("run_sev_snp_direct_boot", "GUEST_FROM=cloud-image", "IMAGE=none.raw")
    assert "none.raw: no such file" in other.stdout


@pytest.mark.boot
@pytest.mark.full  # installs a Debian, and boots it three times
@remedies("sevsnp.host.plain", "make one with: ./doitw run_setup")
@remedies(
    "sevsnp.guests.cloud_setup",
    "make it with: ./doitw create_new_vm GUEST_FROM=cloud-image CLOUD_IMAGE=FILE",
    "next: ./doitw run_guest GUEST_FROM=cloud-image DETACH=yes",
    "or, for a guest that can be verified: ./doitw setup_verity IMAGE={}",
)
def test_from_a_cloud_image_to_a_verified_root(told: Told, checkout: Built, tmp_path: Path) -> None:
    image = cloud_image(checkout, tmp_path)
    set_up = told.hint(lambda: told.doitw("run_guest", "GUEST_FROM=cloud-image")).rpartition(": ")[2]
    told.obey(told.hint(lambda: told.shell(set_up)), FILE=shlex.quote(str(image)))
    before = (checkout.build / "guest" / "cloud.qcow2").stat()
    done = told.shell(set_up)
    assert done.returncode == 0 and "cloud-init is done" in done.stdout, done.stdout
    first, second = (told.read(line) for line in done.stdout.splitlines()[-3:-1])
    # The disk is an output of the build, and the run has only copied it.
    assert (checkout.build / "guest" / "cloud.qcow2").stat().st_mtime_ns == before.st_mtime_ns
    told.obey(first)
    try:
        state = checkout.build / "run" / "guest"
        look = "cat /etc/cloud/cloud-init.disabled && sudo id -u && lsblk -dno SERIAL && cloud-init status"
        said = wait_until(lambda: _said(told, look), lambda: (state / "serial.log").read_text(), LOGIN_SECONDS)
        assert "\n0\n" in said and "root" in said and "seed" not in said and "status: disabled" in said
        assert running(state)
    finally:
        told.doitw("stop", "NAME=guest")
    told.obey(second)
    assert (checkout.build / "verity" / "roothash.txt").exists()


def _said(told: Told, command: str) -> str:
    done = told.doitw("ssh", "NAME=guest", "-c", command)
    return done.stdout if "status: " in done.stdout else ""
