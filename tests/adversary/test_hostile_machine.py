# SPDX-License-Identifier: Apache-2.0
"""Machines that are not the measured one: other CPUs, memory and buses. The guest takes nothing that they add.

The guest only says what it sees (tests/support/looking_guest.py).
"""

from pathlib import Path
from typing import Any

import pytest

from sevsnp.vm_config.config import VmConfig
from tests.conftest import Built
from tests.support.firmware_machine import our_firmware, watched
from tests.support.looking_guest import looking, seen
from tests.support.shared_guests import variant

pytestmark = [pytest.mark.boot, pytest.mark.full]

DIMM = ("-m", "512M,slots=2,maxmem=4G", "-object", "memory-backend-ram,id=dimm,size=512M", "-device")
MACHINES = {
    "more CPUs": ("-smp", "4"),
    "room for CPUs": ("-smp", "1,maxcpus=4"),
    "a DIMM": (*DIMM, "pc-dimm,memdev=dimm"),
    "a second root bus": ("-device", "pxb-pcie,id=pxb,bus_nr=128", "-device", "pcie-root-port,bus=pxb,id=port"),
}


NOTHING_MORE = {"online": "0", "possible": "0", "buses": ["0000:00"], "memory_devices": 0}


def look(built: Built, config: VmConfig, directory: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the guest sees of that machine: the rest, and what NOTHING_MORE is about."""
    launch = looking(config, directory / "looking").launch
    with watched(built, our_firmware(built), directory / "state", MACHINES[name], launch=launch) as machine:
        found = seen(machine)
        machine.guest.wait_end(60)
    return found, {key: found[key] for key in NOTHING_MORE}


@pytest.mark.parametrize("name", MACHINES)
def test_the_guest_takes_nothing_more(built: Built, tmp_path: Path, name: str) -> None:
    found, more = look(built, built.config("emulated"), tmp_path, name)
    assert found["tables"] == {}
    assert more == NOTHING_MORE


@pytest.mark.parametrize("name", MACHINES)
def test_control_a_guest_that_reads_the_host_s_tables_takes_it(built: Built, tmp_path: Path, name: str) -> None:
    config = variant(built, tmp_path / "open", words={" acpi=off": ""})
    _, more = look(built, config, tmp_path, name)
    assert more != NOTHING_MORE
