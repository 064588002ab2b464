# SPDX-License-Identifier: Apache-2.0
"""Every kind of ACPI table that a host can offer: none of its AML runs in the guest's kernel.

The tables come as additional ones (SSDT, PSDT, OSDT; with OEM IDs of their own, with QEMU's, and with those of our own
tables), and in place of the host's own (DSDT, FADT). Each writes its own mark to a port when the kernel uses it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sevsnp.vm_config.config import Launch
from tests.conftest import Built
from tests.support.aml import marking_table, replace_dsdt, replace_fadt
from tests.support.firmware_machine import Watched, our_firmware, watched
from tests.support.fw_cfg_memory import FwCfg
from tests.support.looking_guest import looking, seen
from tests.support.shared_guests import variant

pytestmark = [pytest.mark.boot, pytest.mark.full]

PORT = 0x5E9
# By the mark: the signature of an additional table, and its OEM IDs.
ADDED = {
    b"<SSDT>": ("SSDT", b"HOSTIL", b"HOSTMARK"),
    b"<PSDT>": ("PSDT", b"HOSTIL", b"HOSTMARK"),
    b"<OSDT>": ("OSDT", b"HOSTIL", b"HOSTMARK"),
    b"<QEMU>": ("SSDT", b"BOCHS ", b"BXPC    "),
}
DSDT, FADT = b"<DSDT>", b"F"
FAKED = ("-machine", "x-oem-id=HOSTIL,x-oem-table-id=HOSTMARK")


@contextlib.contextmanager
def hostile(
    built: Built, launch: Launch, directory: Path, replace: Callable[[bytearray], None]
) -> Iterator[tuple[Watched, Path]]:
    """A running machine with all added tables, and with the host's own changed by ``replace``; and its port's log."""
    log, spare = directory / "port.log", directory / "spare"
    arguments = [
        *("-chardev", f"file,id=aml,path={log}"),
        *("-device", f"isa-debugcon,iobase={PORT:#x},chardev=aml"),
        *("-fw_cfg", f"name=opt/spare,file={spare}"),
    ]
    for number, (mark, (signature, oem, table)) in enumerate(ADDED.items()):
        (directory / f"{number}.aml").write_bytes(marking_table(PORT, mark, signature, oem, table))
        arguments += ["-acpitable", f"file={directory}/{number}.aml"]
    spare.write_bytes(bytes(1 << 20))
    with watched(built, our_firmware(built), directory / "state", ("-S", *FAKED, *arguments), launch=launch) as machine:
        host = FwCfg(machine.guest.process.pid)
        _, key = host.file("etc/acpi/tables")
        tables = bytearray(host.content(key))
        replace(tables)
        # QEMU writes the tables anew when they are read for the first time, so the entry must point to other memory.
        _, other = host.file("opt/spare")
        host.put(other, bytes(tables))
        host.point(key, host.data(other), len(tables))
        host.close()
        machine.hands.go_on()
        yield machine, log


def replace_both(tables: bytearray) -> None:
    replace_dsdt(tables, PORT, DSDT)
    replace_fadt(tables, PORT, FADT)


@pytest.fixture
def open_launch(built: Built, tmp_path: Path) -> Launch:
    """The kernel as it is, with ACPI on: it reads the host's tables."""
    return looking(variant(built, tmp_path / "open", words={" acpi=off": ""}), tmp_path / "looking").launch


def test_control_every_table_leaves_its_mark(built: Built, open_launch: Launch, tmp_path: Path) -> None:
    replace = functools.partial(replace_dsdt, port=PORT, mark=DSDT)
    with hostile(built, open_launch, tmp_path, replace) as (machine, log):
        assert {"SSDT1", "SSDT2", "PSDT", "OSDT"} <= seen(machine)["tables"].keys()
        assert all(mark in log.read_bytes() for mark in (*ADDED, DSDT)), log.read_bytes()


def test_control_a_replaced_fadt_leaves_its_mark(built: Built, open_launch: Launch, tmp_path: Path) -> None:
    replace = functools.partial(replace_fadt, port=PORT, mark=FADT)
    with hostile(built, open_launch, tmp_path, replace) as (machine, log):
        seen(machine)
        assert log.read_bytes() == FADT


def test_no_table_of_the_host_leaves_a_mark(built: Built, tmp_path: Path) -> None:
    launch = looking(built.config("emulated"), tmp_path / "looking").launch
    with hostile(built, launch, tmp_path, replace_both) as (machine, log):
        assert seen(machine)["tables"] == {}
        machine.guest.wait_end(60)
        assert log.read_bytes() == b""
