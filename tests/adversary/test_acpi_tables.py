# SPDX-License-Identifier: Apache-2.0
"""A host's ACPI tables with code, of every kind that a kernel loads: none of it runs in a guest that the stage starts.

Each table writes its own mark to an I/O port when the kernel interprets it. In the control guest, which has ACPI
without the stage, each leaves its mark.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Built
from tests.support.aml import Ids, marking_ssdt
from tests.support.shared_guests import ssh_unchecked, started, variant, wait_for_sshd
from tests.support.stages import Stages

pytestmark = [pytest.mark.boot, pytest.mark.full]

PORT = 0x4E9
# Tables of the three kinds that Linux loads beside the DSDT; and some that claim to be the machine's or the stage's.
OFFERS = {
    b"ssdt": Ids(device=b"EVL0"),
    b"psdt": Ids(b"PSDT", device=b"EVL1"),
    b"osdt": Ids(b"OSDT", device=b"EVL2"),
    b"as-qemu": Ids(oem=b"BOCHS ", table=b"BXPC    ", device=b"EVL3"),
    b"as-the-stage": Ids(oem=b"SEVSNP", table=b"MEASURED", device=b"EVL4"),
}
# QEMU's own tables claim to be the stage's, too.
FAKED = ("-machine", "x-oem-id=SEVSNP,x-oem-table-id=MEASURED")


@dataclass(frozen=True)
class Host:
    """QEMU's options for the tables, and what their code has written."""

    arguments: tuple[str, ...]
    log: Path

    def marks(self) -> set[bytes]:
        return set(self.log.read_bytes().split())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    log = tmp_path / "port.log"
    log.touch()
    arguments = [*("-chardev", f"file,id=aml,path={log}"), *("-device", f"isa-debugcon,iobase={PORT:#x},chardev=aml")]
    for mark, ids in OFFERS.items():
        table = tmp_path / f"{mark.decode()}.aml"
        table.write_bytes(marking_ssdt(PORT, mark + b"\n", ids))
        arguments += ["-acpitable", f"file={table}"]
    return Host((*arguments, *FAKED), log)


@pytest.fixture(scope="module")
def stages(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    made = Stages.of(built, tmp_path_factory.mktemp("hostile-acpi"))
    yield made
    made.remove()


LOOK = "sudo ls /sys/firmware/acpi/tables /sys/firmware/acpi/tables/dynamic /sys/firmware/acpi/tables/data"


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_no_code_of_the_host_runs(stages: Stages, host: Host, tmp_path: Path, vcpus: int) -> None:
    with started(stages.copy, stages.setup(vcpus), tmp_path / "state", host.arguments) as running:
        wait_for_sshd(running)
        shown = ssh_unchecked(stages.copy, running.ssh_port, f"nproc; {LOOK}").stdout
    assert shown.split("\n", 1)[0] == f"{vcpus}"
    assert {word for word in shown.split() if word.isupper()} == {"APIC", "DSDT", "FACP", "FACS"}
    assert host.marks() == set()


def test_control_without_the_stage_each_table_leaves_its_mark(built: Built, host: Host, tmp_path: Path) -> None:
    config = variant(built, tmp_path / "config", acpi="on", vcpus=2)
    with started(built, config, tmp_path / "state", host.arguments) as running:
        wait_for_sshd(running)
        shown = ssh_unchecked(built, running.ssh_port, LOOK).stdout
    assert {"PSDT", "OSDT"} <= set(shown.split())
    assert host.marks() == set(OFFERS)
