# SPDX-License-Identifier: Apache-2.0
"""What the firmware is not meant to go on with ends in a standstill.

The kernel, the initrd, the command line and the table of their hashes are the genuine ones. The control of each is the
pinned build that our firmware is made from.
"""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Built
from tests.support.firmware_machine import (
    DEAD_LOOP,
    KERNEL,
    Watched,
    our_firmware,
    stock_firmware,
    watched,
)
from tests.support.fw_cfg_memory import ID, INITRD_DATA, KERNEL_SIZE, SETUP_DATA, SETUP_SIZE, FwCfg

pytestmark = pytest.mark.boot

MARK = "a host's bytes run"
_PAGE = 4096
# cli; mov ecx, LENGTH; lea rsi, [text]; then a character and a pause until all are said; jmp to itself; the text
_SAY = bytes.fromhex("ac 66baf803 ee 89cb b9400d0300 e2fe 89d9")


def page() -> bytes:
    """A page of nothing, at whose end the mark is said, wherever it is run from."""
    text = f"\n{MARK}\n".encode() * 2
    loop = _SAY + b"\xe2" + struct.pack("b", -(len(_SAY) + 2)) + b"\xeb\xfe"
    code = b"\xfa\xb9" + struct.pack("<I", len(text)) + b"\x48\x8d\x35" + struct.pack("<i", len(loop)) + loop + text
    return code.rjust(_PAGE, b"\x90")


def kept_file(host: FwCfg) -> None:
    """A file that the firmware keeps before there is memory: of nearly 4 GiB. No DMA, which SEV has not either."""
    _, key = host.file("etc/e820")
    data, place = page() * 256, host.data(INITRD_DATA)
    host.put(INITRD_DATA, data)
    host.point(key, place, len(data))
    host.resize("etc/e820", 0xFFFFFFFA)
    host.put(ID, struct.pack("<I", 1))


def kernel_parts(host: FwCfg) -> None:
    """A kernel of two parts whose sizes together are 32 KiB more than 4 GiB."""
    data, place, setup = page() * 2816, host.data(INITRD_DATA), 1 << 24
    host.put(INITRD_DATA, data)
    host.point(SETUP_DATA, place, len(data))
    host.put(SETUP_SIZE, struct.pack("<I", setup))
    host.put(KERNEL_SIZE, struct.pack("<I", (1 << 32) - setup + 0x8000))
    host.rename("etc/boot/kernel", "etc/xoot/kernel")


def nothing(host: FwCfg) -> None:
    """All as it was."""


def changed(machine: Watched, change: Callable[[FwCfg], None]) -> None:
    host = FwCfg(machine.guest.process.pid)
    try:
        change(host)
    finally:
        host.close()
    machine.hands.go_on()


@pytest.mark.parametrize(
    ("change", "end"),
    [(kept_file, DEAD_LOOP), pytest.param(kernel_parts, DEAD_LOOP, marks=pytest.mark.full), (nothing, KERNEL)],
)
def test_it_stands_still(built: Built, tmp_path: Path, change: Callable[[FwCfg], None], end: str) -> None:
    """Control: the next test; and the last row, in which the kernel starts from a memory that was only looked at."""
    with watched(built, our_firmware(built), tmp_path / "state", ("-S",)) as machine:
        changed(machine, change)
        assert machine.wait_done() == end
        assert MARK[:9] not in machine.guest.log()


@pytest.mark.parametrize("change", [kept_file, pytest.param(kernel_parts, marks=pytest.mark.full)])
def test_control_it_goes_on(built: Built, tmp_path: Path, change: Callable[[FwCfg], None]) -> None:
    """With the unchanged build."""
    with watched(built, stock_firmware(built), tmp_path / "state", ("-S",)) as machine:
        changed(machine, change)
        # The first one is written over while it is being said.
        machine.guest.wait_for(MARK[:9])
