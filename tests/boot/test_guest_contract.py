# SPDX-License-Identifier: Apache-2.0
"""The contract of a running guest: its ports, modules, drivers, tables, words and settings are those of a list."""

from pathlib import Path

import pytest

from sevsnp.vm_config.cmdline import hardening_words
from tests.conftest import Built
from tests.support.guest_contract import check_contract, found_contract, found_doors
from tests.support.shared_guests import Attested, Running, attested, ssh_unchecked, started, variant

pytestmark = pytest.mark.boot

# Words whose effect a program in the guest can see.
CLOSING = (" lockdown=confidentiality", " ia32_emulation=off")


def test_an_emulated_guest_keeps_the_contract(guest: Attested) -> None:
    check_contract("emulated", found_contract(guest.ssh))


def test_a_production_guest_keeps_the_contract(impostor: Running, built: Built) -> None:
    """Control for the lists: this guest does not match the emulated guest's, so one more driver would be noticed."""
    found = found_contract(lambda command: ssh_unchecked(built, impostor.ssh_port, command).stdout)
    check_contract("production", found)
    with pytest.raises(AssertionError, match="virtio_console"):
        check_contract("emulated", found)


@pytest.mark.full
def test_a_guest_without_acpi_keeps_its_contract(built: Built, tmp_path: Path) -> None:
    config = variant(built, tmp_path, acpi="off")
    with started(built, config, tmp_path / "state") as running:
        check_contract("without_acpi", found_contract(attested(running).ssh))


def test_no_interface_to_the_kernel_is_open(guest: Attested) -> None:
    words = guest.ssh("cat /proc/cmdline").split()
    assert {word.text for word in hardening_words(acpi=True)} <= set(words)
    assert found_doors(guest.ssh) == set()


@pytest.mark.full
def test_control_without_the_hardening_words_kernel_interfaces_are_open(built: Built, tmp_path: Path) -> None:
    """Control: the same guest, measured with a command line that lacks the words."""
    config = variant(built, tmp_path, words=dict.fromkeys(CLOSING, ""))
    with started(built, config, tmp_path / "state") as running:
        assert found_doors(attested(running).ssh) == {"kcore", "int80"}
