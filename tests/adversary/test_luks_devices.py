# SPDX-License-Identifier: Apache-2.0
"""Devices of the host and the encrypted guest."""

import pytest

from tests.adversary.test_devices import MACHINE, ask_for_report, check_locked, inspect, interfaces, table
from tests.conftest import Built
from tests.support.luks_guests import Unlocked

pytestmark = pytest.mark.boot


def test_the_encrypted_guest_keeps_no_report_interface(luks_guest: Unlocked, built: Built) -> None:
    """The control, a guest that keeps it, is in test_devices."""
    assert interfaces(luks_guest) == []
    assert ask_for_report(built, luks_guest) == "OSError: no virtio-serial port org.openend2e.psp"
    check_locked(found := inspect(luks_guest))
    assert table(found["bound"]) == {**MACHINE, "pci virtio-pci": 2, "virtio virtio_blk": 1, "virtio virtio_net": 1}
