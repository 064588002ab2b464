# SPDX-License-Identifier: Apache-2.0
"""The device-mapper tables over an encrypted root, as text; test_luks_flips tests their effect."""

import pytest

from tests.support.key_guest import guest_module

root_guard = guest_module("root_guard")
MIB = 2048  # sectors


@pytest.mark.parametrize("sectors", [MIB, 260 * MIB + 8, 4 << 31])
def test_each_device_has_the_length_of_the_root_and_uses_earlier_devices_only(sectors: int) -> None:
    made = {"/dev/mapper/root"}
    for name, table in root_guard.tables("root", sectors):
        start, length, *words = table.split()
        assert start == "0"
        assert int(length) == sectors or (words == ["zero"] and int(length) > 2 * sectors)
        assert {word for word in words if word.startswith("/")} <= made
        made.add(f"/dev/mapper/{name}")
    assert name == "root_guarded"


def test_the_devices_of_two_disks_have_different_names() -> None:
    root, data = (str(root_guard.tables(name, MIB)) for name in ("root", "data"))
    assert "data" not in root and "root" not in data and data.replace("data", "root") == root


def test_the_trap_checks_every_block_and_panics() -> None:
    table = dict(root_guard.tables("root", MIB))["root_trap"].split()
    assert table[6:8] == ["4096", "4096"] and int(table[8]) * 8 == MIB
    assert table[-2:] == ["panic_on_corruption", "panic_on_error"]


def test_reads_go_to_the_root_first() -> None:
    """The root is the first leg of the lower mirror, and the leg of the upper one that is not write-mostly."""
    tables = dict(root_guard.tables("root", MIB))
    assert tables["root_mirror"].endswith("2 /dev/mapper/root 0 /dev/mapper/root_sink 0 1 handle_errors")
    assert tables["root_guarded"].endswith("write_mostly 1 2 - /dev/mapper/root_mirror - /dev/mapper/root_sink")
