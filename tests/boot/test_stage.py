# SPDX-License-Identifier: Apache-2.0
"""Guests that boot through the stage, with one and with several vCPUs, under emulation.

What emulation does not show: that the other vCPUs start on SEV-SNP by the same tables, and that the digest of a real
launch is the computed one (docs/hardware.md).
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sevsnp.attestation.appraisal import ACPI_OPEN, Refused
from sevsnp.measurement.launch_digest import KernelHashes
from sevsnp.owner.attestation import attest
from tests.conftest import Built
from tests.support.configs import file
from tests.support.hands import hands_on, sockets, wait_dead_loop
from tests.support.harness import accelerator_here, boot
from tests.support.shared_guests import Attested, attested, ssh_unchecked, started, variant, wait_for_sshd
from tests.support.stages import Stages
from tests.unit.stage.test_tables import found

pytestmark = [pytest.mark.boot, pytest.mark.full]
TABLES = "/sys/firmware/acpi/tables"


@pytest.fixture(scope="module")
def stages(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    made = Stages.of(built, tmp_path_factory.mktemp("stages"))
    yield made
    made.remove()


def timer_interrupts(guest: Attested) -> list[int]:
    """The interrupts of each vCPU's own timer."""
    (line,) = (line for line in guest.ssh("cat /proc/interrupts").splitlines() if line.strip().startswith("LOC:"))
    return [int(word) for word in line.split()[1:] if word.isdigit()]


def opened(guest: Attested) -> list[str]:
    """The residual risks of a fresh verdict."""
    running = guest.running
    verdict = attest(running.config, "127.0.0.1", running.port, running.guest.root).verdict
    return list(verdict.to_json()["open"])


def end(guest: Attested, command: str) -> str:
    """The console's log after the guest has ended by ``command``."""
    guest.ssh(f"sudo systemctl {command} || true")
    log = guest.running.guest.wait_end()
    assert guest.running.guest.process.returncode == 0
    return log


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_a_guest_boots_with_the_acpi_tables_of_the_stage_alone(stages: Stages, tmp_path: Path, vcpus: int) -> None:
    config = stages.setup(vcpus)
    assert config.launch.kernel.path.name == f"stage-{vcpus}.efi"
    with started(stages.copy, config, tmp_path / "state") as running:
        guest = attested(running)
        assert guest.ssh("nproc").strip() == f"{vcpus}"
        # "running": no unit has failed.
        assert guest.ssh("systemctl is-system-running --wait || true").strip() == "running"
        ours = found(stages.tables(vcpus))
        del ours[b"XSDT"]  # the kernel does not show it
        assert set(guest.ssh(f"sudo find {TABLES} -type f -printf '%f '").encode().split()) == set(ours)
        for name, table in ours.items():
            assert bytes.fromhex(guest.ssh(f"sudo od -An -v -tx1 {TABLES}/{name.decode()}")) == table
        words = guest.ssh("cat /proc/cmdline").split()
        assert "efi=noruntime" in words and "acpi=off" not in words
        before = timer_interrupts(guest)
        devices, with_msi = guest.ssh(
            "ls -d /sys/bus/virtio/devices/* | wc -l; ls -d /sys/bus/pci/devices/*/msi_irqs | wc -l"
        ).split()
        assert devices == with_msi and int(devices) >= 4
        assert guest.ssh("cat /sys/class/rtc/rtc0/name").startswith("rtc_cmos")
        assert all(later > earlier for earlier, later in zip(before, timer_interrupts(guest), strict=True))
        assert ACPI_OPEN not in opened(guest)
        log = end(guest, "poweroff")
    assert "reboot: Power down" in log and "Restarting system" not in log


def test_control_without_the_stage_the_verdict_says_that_aml_runs(built: Built, tmp_path: Path) -> None:
    """And the kernel then uses the ACPI tables of QEMU."""
    config = variant(built, tmp_path / "config", acpi="on", vcpus=2)
    reference = replace(config.require_reference(), acpi=True)
    with started(built, replace(config, reference=reference), tmp_path / "state") as running:
        guest = attested(running)
        assert ACPI_OPEN in opened(guest)
        assert "BOCHS" in guest.ssh(f"sudo cat {TABLES}/DSDT | head -c 36 | tr -cd A-Z")
        end(guest, "poweroff")


# The kernel takes this board for a notebook of 1998, and switches ACPI off.
OLD_BOARD = ("-smbios", "type=2,manufacturer=IBM,product=2629H1G")


def test_the_host_s_smbios_tables_are_removed(stages: Stages, tmp_path: Path) -> None:
    with started(stages.copy, stages.setup(2), tmp_path / "state", OLD_BOARD) as running:
        guest = attested(running)
        assert guest.ssh("nproc; ls /sys/firmware/dmi/tables 2>/dev/null || true").split() == ["2"]
        end(guest, "poweroff")


def test_control_without_the_stage_an_smbios_table_switches_acpi_off(built: Built, tmp_path: Path) -> None:
    config = variant(built, tmp_path / "config", acpi="on", vcpus=2)
    with started(built, config, tmp_path / "state", OLD_BOARD) as running:
        wait_for_sshd(running)
        assert ssh_unchecked(built, running.ssh_port, "nproc; ls /sys/firmware/dmi/tables").stdout.split() == [
            "1", "DMI", "smbios_entry_point",
        ]  # fmt: skip


def test_the_guest_boots_on_a_kvm_host_with_a_split_interrupt_controller(stages: Stages, tmp_path: Path) -> None:
    """What an ordinary KVM host can show of SEV-SNP: the local APICs are the host kernel's, the I/O APIC is QEMU's."""
    config = stages.setup(2)
    if accelerator_here(config.launch.kernel.path, stages.copy.qemu) != "kvm":
        pytest.skip("KVM boots no guest on this machine")
    with started(stages.copy, config, tmp_path / "state", ("-machine", "kernel-irqchip=split"), "kvm") as running:
        guest = attested(running)
        before = timer_interrupts(guest)
        assert guest.ssh("nproc").strip() == "2" and len(before) == 2
        assert "IO-APIC" in guest.ssh("cat /proc/interrupts")
        assert all(later > earlier for earlier, later in zip(before, timer_interrupts(guest), strict=True))
        end(guest, "poweroff")


def test_a_reboot_ends_qemu(stages: Stages, tmp_path: Path) -> None:
    with started(stages.copy, stages.setup(2), tmp_path / "state") as running:
        assert "reboot: Restarting system" in end(attested(running), "reboot")


def test_a_host_that_starts_more_vcpus_adds_none_to_the_guest(stages: Stages, tmp_path: Path) -> None:
    """The tables list two vCPUs and this host starts four: the guest uses two, and its evidence is refused."""
    config = stages.setup(2)
    with started(stages.copy, config, tmp_path / "state", ("-smp", "4")) as running:
        wait_for_sshd(running)
        shown = ssh_unchecked(stages.copy, running.ssh_port, "nproc; cat /sys/devices/system/cpu/possible").stdout
        assert shown.split() == ["2", "0-1"]
        with pytest.raises(Refused) as refused:
            attest(config, "127.0.0.1", running.port, running.guest.root)
        assert refused.value.reason == "measurement"


def test_a_stage_for_another_number_of_vcpus_is_never_started(stages: Stages, tmp_path: Path) -> None:
    """Control: with its own hashes it starts, in the first test of this file."""
    other = stages.setup(4).launch.kernel.path
    launch = stages.setup(2).launch
    table = KernelHashes.of(launch)
    changed = replace(launch, kernel=file(other))
    with (
        sockets() as where,
        boot(changed, stages.copy.qemu, tmp_path / "state", hashes=table, extra=where.arguments) as guest,
        hands_on(where) as hands,
    ):
        wait_dead_loop(hands, guest.process)
        assert not re.search("EFI stub|Linux version|init:", guest.log())
