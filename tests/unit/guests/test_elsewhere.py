# SPDX-License-Identifier: Apache-2.0
"""Facts about a guest on this machine are not used for a guest of the same name on another machine."""

from pathlib import Path

import pytest

from sevsnp.guests.local import Guest, meant, ports_of
from sevsnp.host.state import Run

HERE = Guest("verity", Path("build/run/verity"), Run("verity", "emulated", "vm.toml", 2300, 8100))


@pytest.mark.parametrize("host", ["192.0.2.1", "guest.example.org", "127.example.org.invalid", "::2"])
def test_a_guest_on_another_host_does_not_get_the_ports_of_this_machine(host: str) -> None:
    """HOST may also be set in config.yaml and not in this run."""
    elsewhere = meant(HERE, host)
    assert elsewhere.run is None and elsewhere.state == HERE.state
    assert ports_of(elsewhere, {}, host, 8088, 2222) == (8088, 2222) == ports_of(HERE, {}, host, 8088, 2222)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_a_guest_on_this_machine_gets_its_own_ports(host: str) -> None:
    assert meant(HERE, host) is HERE
    assert ports_of(HERE, {}, host, 8088, 2222) == (8100, 2300)
    assert ports_of(HERE, {"HOST": host}, host, 8088, 2222) == (8088, 2222)
