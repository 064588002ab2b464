# SPDX-License-Identifier: Apache-2.0
"""The stage: what is made with it, that the stage is the same everywhere, and that ACPI's own tools read its tables."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sevsnp.stage.tables import all_tables
from sevsnp.vm_config.config import read_vm_config
from tests.conftest import Built
from tests.pipeline.test_source_firmware import CONFIGS, graph
from tests.support.copies import one_line, ran
from tests.support.odd_builds import made_oddly
from tests.support.replacing import replaced_once
from tests.support.stages import Stages
from tests.unit.stage.test_tables import found

VMLINUZ = "build/kernel/vmlinuz"
PARTS = {"build/boot/stage.bin", "build/boot/acpi-2.bin", VMLINUZ}
# What the DSDT says, in ACPI's own language.
ASL = """\
DefinitionBlock ("", "DSDT", 2, "SEVSNP", "MEASURED", 1)
{
    Name (_S5, Package () {0, 0, 0, 0})
    Scope (\\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_CRS, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0xFF, 0, 0x100)
                IO (Decode16, 0xCF8, 0xCF8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0, 0xCF7, 0, 0xCF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0xD00, 0xFFFF, 0, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0, 0xC0000000, 0xDFFFFFFF, 0, 0x20000000)
            })
        }
    }
}
"""


@pytest.mark.slow
def test_every_vm_config_launches_the_stage_unless_acpi_says_otherwise() -> None:
    plain, own = graph(ACPI="off"), graph(CPUS="2")
    assert not {"_stage", "_stage_code", "_acpi_tables"} & {*plain}
    assert own["_stage"][1] == ["build/boot/stage-2.efi"]
    assert {*own["_stage"][0]} == PARTS
    for name in CONFIGS:
        assert VMLINUZ in plain[name][0]
        assert PARTS | {"build/boot/stage-2.efi"} <= {*own[name][0]}


@pytest.fixture(scope="module")
def stages(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stages]:
    made = Stages.of(built, tmp_path_factory.mktemp("stage"))
    shutil.rmtree(made.copy.build / "boot")
    made.setup(2)
    yield made
    made.remove()


@pytest.mark.full
def test_more_vcpus_than_tables_are_refused(stages: Stages) -> None:
    done = stages.copy.doit("setup_verity", "ACPI=own", "CPUS=65", check=False)
    assert done.returncode == 3 and "CPUS=65: the stage has ACPI tables for 1 to 64 vCPUs" in one_line(done.stdout)


@pytest.mark.full
def test_the_vm_config_names_the_parts(stages: Stages) -> None:
    config = read_vm_config(stages.copy.build / "verity/vm-config-verity.toml")
    reference = config.require_reference()
    assert not reference.acpi and reference.stage
    made = {path.name: path for path in (stages.copy.build / "boot").iterdir()}
    assert set(made) == {"stage.bin", "acpi-2.bin", "stage-2.efi"}
    assert made["acpi-2.bin"].read_bytes() == all_tables(2)
    assert config.launch.kernel.path == made["stage-2.efi"].resolve()


@pytest.mark.full
def test_a_changed_table_makes_the_stage_and_the_vm_configs_again(stages: Stages) -> None:
    module = stages.copy.project / "sevsnp/stage/tables.py"
    text = module.read_text()
    module.write_text(replaced_once(text, 'b"MEASURED"', 'b"MEASURE2"'))
    try:
        done = stages.copy.doit("setup_verity", "ACPI=own", "CPUS=2").stdout
    finally:
        module.write_text(text)
    assert ran(done) == {"acpi tables", "stage", "verity config", "verity config emulated"}
    stages.setup(2)


MAKE = """\
import sys
from pathlib import Path
from sevsnp.images.stage_code import make_stage_code
output, release, sources = map(Path, sys.argv[1:])
make_stage_code(tools=release / "bin", sources=sources, output=output)
"""


@pytest.mark.full
def test_another_directory_gives_the_same_bytes(stages: Stages) -> None:
    """The second build also has another user without rights, umask, time zone and locale."""
    made = made_oddly(MAKE, (stages.copy.build / "snp-release").resolve(), stages.copy.project / "initramfs/stage")
    assert made == (stages.copy.build / "boot/stage.bin").read_bytes()


@pytest.fixture(scope="module")
def iasl(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the pinned iasl, ACPI's reference compiler and disassembler, in a directory; returns what it printed."""
    root = tmp_path_factory.mktemp("acpica")
    stages.copy.doit("_compiler", "FIRMWARE=source")
    (deb,) = (stages.copy.build / "debs/compiler").glob("acpica-tools_*.deb")
    subprocess.run(["dpkg-deb", "-x", deb, root], check=True, timeout=60)
    # Its C library may be newer than this machine's.
    release = (stages.copy.build / "snp-release/usr/lib/x86_64-linux-gnu").resolve()

    def run(directory: Path, *words: str) -> str:
        done = subprocess.run(
            [release / "ld-linux-x86-64.so.2", "--library-path", release, root / "usr/bin/iasl", *words],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


@pytest.mark.full
def test_the_reference_compiler_makes_the_same_dsdt(iasl: Any, tmp_path: Path) -> None:
    (tmp_path / "dsdt.asl").write_text(ASL)
    iasl(tmp_path, "dsdt.asl")
    compiled = (tmp_path / "dsdt.aml").read_bytes()
    ours = found(all_tables(2))[b"DSDT"]
    # The header names the compiler.
    assert compiled[36:] == ours[36:] and compiled[10:28] == ours[10:28]


@pytest.mark.full
@pytest.mark.parametrize("vcpus", [1, 2, 64])
def test_the_reference_disassembler_finds_no_fault(iasl: Any, tmp_path: Path, vcpus: int) -> None:
    content = all_tables(vcpus)
    tables = found(content)  # all but the RSDP, which it does not read
    shown = {}
    for name, table in tables.items():
        file = tmp_path / f"{name.decode().lower()}.dat"
        file.write_bytes(table)
        printed = iasl(tmp_path, "-d", file.name)
        shown[name] = file.with_suffix(".dsl").read_text()
        for word in ("warning", "error", "incorrect", "invalid", "unknown"):
            assert word not in (printed + shown[name]).lower().replace("0 errors", ""), printed + shown[name]
    assert shown[b"APIC"].count("[Processor Local APIC]") == vcpus
    assert "Method" not in shown[b"DSDT"] and "OperationRegion" not in shown[b"DSDT"]
    # Control: a checksum that is not right is named.
    file = tmp_path / "broken-apic.dat"
    file.write_bytes(tables[b"APIC"][:-1] + b"\x02")
    assert "incorrect checksum" in (iasl(tmp_path, "-d", file.name) + file.with_suffix(".dsl").read_text()).lower()
