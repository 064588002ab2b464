# SPDX-License-Identifier: Apache-2.0
"""What an ordinary KVM host can show of SEV-SNP: its split interrupt controller, and KVM's own interfaces.

Where KVM does not boot a kernel, these tests are skipped, and say so.
"""

import re
from pathlib import Path

import pytest

from sevsnp.qemu import platforms
from tests.conftest import Built
from tests.support.shared_guests import attested, started, variant

pytestmark = [pytest.mark.boot, pytest.mark.full]

# As on SEV-SNP (sevsnp/qemu/snp_options.py).
SPLIT = ("-machine", "kernel-irqchip=split")
# The interrupt that tells a guest about KVM's asynchronous page faults; the row is there if the kernel took it.
ASYNCHRONOUS = re.compile(r"^ *HYP:", re.MULTILINE)


@pytest.fixture
def kvm(built: Built, tmp_path: Path) -> str:
    accelerator = platforms.accelerator(built.config("emulated").launch.kernel.path, built.qemu, tmp_path / "probe")
    if accelerator != "kvm":
        pytest.skip("KVM boots no kernel on this machine")
    return accelerator


def interrupts(text: str, name: str) -> int:
    match = re.search(rf"^ *{name}:((?: +\d+)+)", text, re.MULTILINE)
    return sum(map(int, match[1].split())) if match else 0


def test_a_guest_on_kvm(built: Built, kvm: str, tmp_path: Path) -> None:
    """x2APIC, KVM's clock, timers that go on, and no asynchronous page faults."""
    with started(built, built.config("emulated"), tmp_path / "state", SPLIT, kvm) as running:
        guest = attested(running)
        log, before = guest.ssh("sudo dmesg"), guest.ssh("cat /proc/interrupts; sleep 1")
        after = guest.ssh("cat /proc/interrupts")
        clock = guest.ssh("cat /sys/devices/system/clocksource/clocksource0/current_clocksource").strip()
    assert "Hypervisor detected: KVM" in log
    assert re.search(r"x2apic.* enabled|enabled x2apic|physical x2apic", log, re.IGNORECASE), log
    assert clock in ("kvm-clock", "tsc")
    assert interrupts(after, "LOC") > interrupts(before, "LOC")
    assert not ASYNCHRONOUS.search(after)


def test_control_without_its_word_kvm_may_stop_page_faults(built: Built, kvm: str, tmp_path: Path) -> None:
    config = variant(built, tmp_path, words={" no-kvmapf": ""})
    with started(built, config, tmp_path / "state", SPLIT, kvm) as running:
        assert ASYNCHRONOUS.search(attested(running).ssh("cat /proc/interrupts"))
