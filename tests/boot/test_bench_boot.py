# SPDX-License-Identifier: Apache-2.0
"""The boot benchmark with real guests."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from sevsnp.bench.boot import bench_boot
from sevsnp.bench.guest import Login, boot_once, look_inside
from sevsnp.e2e.guest import free_port
from sevsnp.errors import UserError
from sevsnp.qemu.platforms import Platform
from sevsnp.qemu.run_options import RunOptions
from sevsnp.vm_config.config import VmConfig
from tests.conftest import Built
from tests.support.shared_guests import Attested, variant

pytestmark = pytest.mark.boot

MIB = 1 << 20
EMULATED = Platform("emulated", "tcg", "asked for")


def once(built: Built, config: VmConfig, state: Path) -> dict[str, float]:
    options = RunOptions(built.qemu, 1 << 30, free_port(), free_port(), state, restricted=True)
    login = Login(built.keys.user_private, "user", built.project / "templates" / "ssh_config.j2")
    return boot_once(EMULATED, config, options, login)


@pytest.mark.full
def test_the_times_and_sizes_of_one_boot_are_plausible(built: Built, tmp_path: Path) -> None:
    found = once(built, built.config("emulated"), tmp_path / "state")
    assert 0 < found["init"] < found["root"] < found["ssh"] < 600
    assert 0 < found["used"] == found["total"] - found["available"] < found["total"] <= 1024 * MIB
    # Over the root, the tmpfs holds what the guest has written and nothing of what was there.
    assert found["var_tmpfs"] < MIB < found["var"]


@pytest.mark.full
def test_bytes_written_to_var_are_counted(guest: Attested, copied: Attested) -> None:
    for one in (guest, copied):
        before = look_inside(one.ssh_config, one.running.config)
        one.ssh("sudo sh -c 'head -c 16M /dev/urandom > /var/lib/.bench'")
        after = look_inside(one.ssh_config, one.running.config)
        one.ssh("sudo rm /var/lib/.bench")
        for name in ("var_tmpfs", "var"):
            assert 16 * MIB <= after[name] - before[name] < 17 * MIB
        assert 8 * MIB < after["used"] - before["used"] < 32 * MIB
    with pytest.raises(UserError, match="/var is no overlay"):
        look_inside(copied.ssh_config, guest.running.config)


@pytest.mark.full
def test_a_guest_that_does_not_boot_is_an_error_with_its_last_messages(built: Built, tmp_path: Path) -> None:
    """Control: the first test of this file boots."""
    config = variant(built, tmp_path, words={" sevsnp.rootfs=ext4": ""})
    with pytest.raises(UserError, match=r"the guest ended before 'init: mode '[^$]*sevsnp.rootfs is missing"):
        once(built, config, tmp_path / "state")


@pytest.mark.full
def test_an_overlay_does_not_grow_with_var_and_a_copy_does(built: Built, tmp_path: Path) -> None:
    large = 256 * MIB
    out = tmp_path / "bench"
    bench_boot(
        rootfs=built.build / "guest" / "rootfs.tar",
        denied=built.project / "guest-vm" / "denied.yaml",
        filesystem="ext4",
        tools=built.tools,
        directory=built.build / "verity",
        qemu=built.qemu,
        platform="emulated",
        probe_cache=tmp_path / "platform.json",
        identity=built.keys.user_private,
        user="user",
        ssh_template=built.project / "templates" / "ssh_config.j2",
        config_template=built.project / "templates" / "vm-config.toml.j2",
        chart_template=built.project / "templates" / "bench-boot.svg.j2",
        results=out / "boot.json",
        chart=out / "boot.svg",
        stage_code=built.build / "boot" / "stage.bin",
        stage_kernel=built.build / "kernel" / "vmlinuz",
        large=large,
        memory=2 << 30,
    )
    document = json.loads((out / "boot.json").read_text())
    assert (document["platform"], document["accelerator"], len(document["runs"])) == ("emulated", "tcg", 7)
    best = document["best"]

    def growth(writable: str, name: str) -> float:
        return float(best[f"{writable}, large /var"][name] - best[f"{writable}, small /var"][name])

    for writable in ("overlay", "copy"):
        assert large <= growth(writable, "var") < large + MIB  # both really had it
    assert abs(growth("overlay", "var_tmpfs")) < 16 * MIB
    assert growth("copy", "var_tmpfs") >= large
    assert growth("overlay", "used") < large / 4
    assert growth("copy", "used") > large * 3 / 4
    # The copy is made before the root is handed over. No more than that is certain of times on a machine in use.
    phases = {
        name: best[f"{name}, large /var"]["root"] - best[f"{name}, large /var"]["init"] for name in ("overlay", "copy")
    }
    assert phases["copy"] > phases["overlay"]
    ET.fromstring((out / "boot.svg").read_text())
    assert sorted(path.name for path in out.iterdir()) == ["boot.json", "boot.lock", "boot.svg"]
