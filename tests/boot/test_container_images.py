# SPDX-License-Identifier: Apache-2.0
"""A container image of Debian, made here of the pinned packages, as a verified guest: adopted, booted, attested."""

from pathlib import Path

import pytest

from sevsnp.archives.tar import read_tar
from sevsnp.containers.dpkg import Installed, fulfils
from sevsnp.images.guest_packages import make_packages_layer, read_packages
from tests.boot.test_foreign_images import encrypted_guest
from tests.conftest import Built
from tests.support.container_images import PACKERS, MadeImage, layout_files, member, tar_bytes, write_layout
from tests.support.copies import copy_built
from tests.support.shared_guests import attested, started

pytestmark = [pytest.mark.boot, pytest.mark.full]


def base_packages(debs: Path) -> list[Path]:
    """What a container image of Debian has: the Essential packages, apt, and all that they need."""
    found = {package.name: package for package in read_packages(sorted(debs.glob("*.deb")))}
    known = {name: Installed(name, package.field("Version"), package.control) for name, package in found.items()}
    stack = [name for name, package in found.items() if package.field("Essential") == "yes"] + ["apt"]
    wanted: set[str] = set()
    while stack:
        if (name := stack.pop()) not in wanted:
            wanted.add(name)
            for group in known[name].needs:
                stack += [key for relation in group for key, one in known.items() if fulfils(one, relation)][:1]
    return [found[name].path for name in sorted(wanted)]


def test_a_compressed_tar_gives_the_same_root_hash_as_the_plain_tar(built: Built, tmp_path: Path) -> None:
    """IMAGE names the plain tar first, then the same tar packed by zstd."""
    built.doit("_guest_rootfs")
    tar = built.build / "guest" / "rootfs.tar"
    (tmp_path / "packed").write_bytes(PACKERS["zstd"](tar.read_bytes()))
    copy = copy_built(built, tmp_path / "project")
    hashes = []
    for image in (tar, tmp_path / "packed"):
        copy.doit("_verity_root", f"IMAGE={image}")
        hashes.append((copy.build / "verity" / "roothash.txt").read_text())
    assert hashes[0] == hashes[1]


def debian_container(built: Built, directory: Path) -> str:
    """A container image with an application on top of Debian, as IMAGE names it."""
    built.doit("_guest_packages")
    base = directory / "base.tar"
    make_packages_layer(base_packages(built.build / "debs" / "guest"), base)
    assert not {"usr/sbin/init", "usr/sbin/sshd", "usr/bin/sudo"} & read_tar(base).keys()
    application = [
        member("opt/app/run", "#!/bin/sh\necho from the container\n", mode=0o755),
        member("usr/share/doc/.wh.base-files"),
        member(".dockerenv"),
    ]
    runs = {"Entrypoint": ["/opt/app/run"], "Env": ["PATH=/usr/bin:/usr/sbin", "MODE=test"]}
    image = MadeImage([base.read_bytes(), tar_bytes(application)], pack="zstd", runs=runs)
    layout = write_layout(directory / "layout", layout_files(image, tags=["13"]))
    return f"oci:{layout}:13"


def test_a_debian_container_becomes_an_encrypted_guest(built: Built, tmp_path: Path) -> None:
    with encrypted_guest(built, debian_container(built, tmp_path), tmp_path) as guest:
        assert guest.ssh("/opt/app/run").strip() == "from the container"
        assert guest.ssh("systemctl is-system-running --wait || true").strip() == "running"
        assert guest.ssh("sudo sh -c 'echo kept >/kept && cat /kept'").strip() == "kept"


def test_a_debian_container_becomes_a_verified_guest(built: Built, tmp_path: Path) -> None:
    image = debian_container(built, tmp_path)
    copy = copy_built(built, tmp_path / "project")
    said = copy.doit("setup_verity", f"IMAGE={image}").stdout
    for line in (
        "container image, 2 layers",
        "added, from the pinned packages: ",
        "openssh-server",
        "removed: /.dockerenv",
        'not started: ["/opt/app/run"]',
        "not set: the environment variables MODE",
        "switched on: systemd-networkd.service",
    ):
        assert line in said, said
    with started(copy, copy.config("emulated"), tmp_path / "state") as running:
        guest = attested(running)
        assert guest.ssh("id -un").strip() == "user"
        assert guest.ssh("/opt/app/run").strip() == "from the container"
        state = guest.ssh("systemctl is-system-running --wait || true").strip()
        assert state == "running", guest.ssh("systemctl --failed --no-legend")
        assert "nf_tables " in guest.ssh("cat /proc/modules")
        assert guest.ssh("sudo id -un").strip() == "root"
        assert guest.ssh("sudo dpkg --audit").strip() == ""
        assert guest.ssh("dpkg-query -W -f '${Version}' systemd").strip().startswith("257")
        assert guest.ssh("test -e /usr/share/doc/base-files && echo there || echo gone").strip() == "gone"
        assert guest.ssh("systemd-detect-virt --container || true").strip() == "none"
