# SPDX-License-Identifier: Apache-2.0
"""podman in a verified guest: its images, containers and volumes are on the data disk, and stay over a reboot."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sevsnp.e2e.guest import ssh
from tests.boot.test_written_volume import Owner, new_owner
from tests.conftest import Built
from tests.support.podman_guest import make_podman_root

pytestmark = [pytest.mark.boot, pytest.mark.full]

STORE = "/var/lib/containers"
# The guest has no systemd bus for podman, and no network that a container could use.
PODMAN = "sudo podman --cgroup-manager=cgroupfs"
# An image with a shell, made of the guest's own files.
IMPORT = f"""\
set -e
root=$(mktemp -d)
mkdir -p $root/bin $root/lib64 $root/lib/x86_64-linux-gnu
cp /bin/dash $root/bin/sh
cp /lib64/ld-linux-x86-64.so.2 $root/lib64
cp /lib/x86_64-linux-gnu/libc.so.6 $root/lib/x86_64-linux-gnu
tar -C $root -c . | {PODMAN} import - small
"""
WRITE = "echo written; echo more >>/kept/file"
RUN = f"{PODMAN} run --network=none --name=one --volume=kept:/kept small /bin/sh -c '{WRITE}'"


@pytest.fixture
def owner(built: Built, tmp_path: Path) -> Iterator[Owner]:
    with new_owner(built, tmp_path) as one:
        yield one


def run(config: Path, script: str) -> str:
    return ssh(config, f"sh -s 2>&1 <<'END'\n{script}\nEND", 300)


def test_containers_stay_over_a_reboot(built: Built, owner: Owner, tmp_path: Path) -> None:
    image = tmp_path / "root.tar"
    make_podman_root(built, image)
    owner.doit("setup_verity", f"IMAGE={image}", "DATA_SIZE=256M", f"DATA_PATH={STORE}", "PLATFORM=emulated")
    with owner.running("run_sev_snp_verity", "verity") as config:
        assert run(config, f"{PODMAN} info --format '{{{{.Store.GraphDriverName}}}}'").split() == ["overlay"]
        run(config, IMPORT)
        assert run(config, RUN).strip() == "written"
    with owner.running("run_sev_snp_verity", "verity") as config:
        assert run(config, f"{PODMAN} ps --all --format '{{{{.Names}}}} {{{{.ExitCode}}}}'").split() == ["one", "0"]
        assert run(config, f"{PODMAN} start --attach one").strip() == "written"
        assert run(config, f"sudo cat {STORE}/storage/volumes/kept/_data/file").split() == ["more", "more"]
        # Control: beside the data disk, podman has nothing to keep its images on but an overlay.
        refused = run(config, f"{PODMAN} --root /var/lib/other --runroot /run/other info || echo refused")
        assert "refused" in refused or "vfs" in refused
